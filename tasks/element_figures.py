"""Figures of how S2SNet sees the elements; matplotlib, as in ``tasks.figures``."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from pymatgen.core import Element

from models.element_maps import SYMBOLS
from tasks.figures import BLUE, FAINT, GREEN, INK, ORANGE, QUIET, STYLE, VERMILION

BLOCK_COLOURS = {"s": VERMILION, "p": ORANGE, "d": BLUE, "f": GREEN}
MOST_BARS = 30
CORRELATION_CAPTION = "Pearson correlation of the elements' embeddings, in Mendeleev's order."
MAP_CAPTION = (
    "t-SNE of the elements' embeddings: near ones are alike to the network; far distances and directions mean nothing."
)


def correlation_figure(symbols: Sequence[str], correlations: NDArray) -> Figure:
    """Correlations (n, n) in [-1, 1] of n elements in the order given."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 7.9), layout="constrained")
        axis = figure.subplots()
        image = axis.imshow(correlations, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        for set_ticks, place in ((axis.set_xticks, "x"), (axis.set_yticks, "y")):
            set_ticks(range(len(symbols)), symbols, fontsize=4.6, rotation=90 if place == "x" else 0)
        axis.tick_params(length=0, pad=1.5)
        axis.spines[:].set_visible(False)
        figure.colorbar(image, ax=axis, shrink=0.6, label="Pearson correlation of the embeddings")
        return figure


def element_map_figure(
    places: NDArray, shares: Mapping[str, float] | None = None, trained: Mapping[str, int] | None = None
) -> Figure:
    """The elements Z = 1 to 95 at places (95, 2), coloured by block of the periodic table, or shaded by shares.

    Parameters
    ----------
    shares
        Share of the predicted superconductors that hold each element, by symbol; none: blocks are shown.
    trained
        Training crystals with each element, by symbol; elements without one are drawn hollow. None: unknown.
    """
    shown = {symbol: share for symbol, share in (shares or {}).items() if share > 0}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 6.8), layout="constrained")
        axis = figure.subplots()
        if shown:
            norm = LogNorm(100 * min(shown.values()), 100 * max(*shown.values(), 1.01 * min(shown.values())))
            scale = mpl.cm.ScalarMappable(norm, "cividis_r")
        for symbol, (x, y) in zip(SYMBOLS, places, strict=True):
            colour: Any = BLOCK_COLOURS[Element(symbol).block]
            if shares is not None:
                colour = scale.to_rgba(np.array(100 * shown[symbol])) if symbol in shown else "white"
            hollow = trained is not None and not trained.get(symbol)
            face, edge = ("white" if hollow else colour), (QUIET if shares is not None else colour)
            axis.scatter(x, y, s=150, color=[face], edgecolors=[edge], linewidths=1.0, zorder=2)
            rgb = mpl.colors.to_rgb(face)
            text = "white" if np.dot(rgb, (0.299, 0.587, 0.114)) < 0.55 else INK
            axis.text(x, y, symbol, ha="center", va="center", fontsize=6.5, color=text, zorder=3)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        if shares is None:
            marks = [
                Line2D([], [], marker="o", linestyle="", color=colour, label=f"{block} block")
                for block, colour in BLOCK_COLOURS.items()
            ]
            if trained is not None and not all(trained.get(symbol) for symbol in SYMBOLS):
                marks.append(
                    Line2D(
                        [], [], marker="o", linestyle="", color=QUIET, fillstyle="none", label="in no training crystal"
                    )
                )
            figure.legend(handles=marks, loc="outside upper center", ncols=len(marks), fontsize=8.5)
        elif shown:
            bar = figure.colorbar(scale, ax=axis, shrink=0.6)
            bar.set_label("predicted superconductors that hold the element (%); white: none")
            bar.ax.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
            bar.ax.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
            bar.ax.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        return figure


def frequency_figure(
    by_materials: Mapping[str, float], by_atoms: Mapping[str, float], screened: Mapping[str, float]
) -> Figure:
    """How often the elements occur among predicted superconductors, the most frequent ones.

    Parameters
    ----------
    by_materials
        Share of the predicted superconductors that hold each element, by symbol.
    by_atoms
        Share of the atoms in their formulas.
    screened
        Share of all screened materials that hold each element, for comparison.
    """
    chosen = sorted(by_materials, key=lambda symbol: (-by_materials[symbol], symbol))[:MOST_BARS]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 4.6), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True)
        rows = ((upper, by_materials, BLUE, "materials (%)"), (lower, by_atoms, GREEN, "atoms (%)"))
        for axis, shares, colour, label in rows:
            axis.bar(range(len(chosen)), [100 * shares[symbol] for symbol in chosen], width=0.72, color=colour)
            axis.set_ylabel(label)
            axis.grid(axis="y", color=FAINT, linewidth=0.5)
            axis.set_axisbelow(True)
        upper.plot(
            range(len(chosen)),
            [100 * screened.get(symbol, 0.0) for symbol in chosen],
            linestyle="",
            marker="_",
            markersize=11,
            markeredgewidth=2,
            color=ORANGE,
            label="of all screened materials",
        )
        upper.legend(fontsize=8.5)
        lower.set_xticks(range(len(chosen)), chosen)
        lower.set_xlim(-0.6, len(chosen) - 0.4)
        lower.tick_params(axis="x", length=0)
        return figure
