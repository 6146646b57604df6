"""Figures of the report that speak of many materials: scores, parity, ROC, densities of states, elements.

Each function gives a matplotlib Figure, made without pyplot, so that it works in any thread and never opens a window.
Colours are those of Okabe and Ito, which people with any colour vision can tell apart.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from numpy.typing import ArrayLike, NDArray
from pymatgen.core import Element

from models.reliability import calibration_error

BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE, YELLOW = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#56B4E9",
    "#CC79A7",
    "#F0E442",
)
INK, QUIET, FAINT = "#1b2530", "#5b6875", "#c9d1d9"
ORBITAL_COLOURS = {"s": BLUE, "p": ORANGE, "d": GREEN}
TC_TICKS = (0, 1, 3, 10, 30, 100)
LAST_ELEMENT = 103
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "svg.hashsalt": "meissner",  # the same figure is the same file
    "text.color": INK,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
}


@dataclass(frozen=True)
class Interval:
    """A number with its interval."""

    value: float
    low: float
    high: float


def parity_figure(panels: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> Figure:
    """Measured against predicted Tc, a panel for each split.

    Parameters
    ----------
    panels
        By title, the measured and the out-of-fold predicted Tc, each (n,) kelvin. Axes are linear in ln(Tc/K + 1),
        the label that BNAS learns.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.1 * len(panels), 4.3), layout="constrained")
        axes = np.atleast_1d(figure.subplots(1, len(panels), sharex=True, sharey=True))
        values = [np.asarray(array, dtype=float) for pair in panels.values() for array in pair]
        top = max((float(array.max()) for array in values if array.size), default=1.0) * 1.15 + 0.5
        for axis, (title, (measured, predicted)) in zip(axes, panels.items(), strict=True):
            axis.plot([0, top], [0, top], color=FAINT, linewidth=1.2, zorder=0)
            axis.scatter(measured, predicted, s=15, color=BLUE, alpha=0.55, linewidths=0)
            _tc_axes(axis, top)
            axis.set_title(f"{title}\n({len(np.asarray(measured))} materials)")
            axis.set_xlabel("measured $T_c$ (K)")
        axes[0].set_ylabel("predicted $T_c$ (K), held out")
        return figure


def score_figure(splits: Mapping[str, Mapping[str, Interval]], network: str, label: str, chance: float = 0.0) -> Figure:
    """Scores of a network and its baselines with their intervals, a panel for each split.

    Parameters
    ----------
    splits
        By split, the score of each model; the model called ``network`` is drawn in colour.
    label
        Name of the score with its unit.
    chance
        The score of knowing nothing, where a line is drawn.
    """
    best: dict[str, float] = {}
    for scores in splits.values():
        for name, score in scores.items():
            best[name] = max(best.get(name, -np.inf), score.value)
    models = sorted(best, key=lambda name: (name != network, -best[name], name))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.6 + 3.2 * len(splits), 0.9 + 0.36 * len(models)), layout="constrained")
        axes = np.atleast_1d(figure.subplots(1, len(splits), sharey=True, sharex=True))
        for axis, (split, scores) in zip(axes, splits.items(), strict=True):
            for place, model in enumerate(models):
                if model in scores:
                    _score_bar(axis, place, scores[model], VERMILION if model == network else SKY, chance)
            axis.set_yticks(range(len(models)), models)
            axis.set_ylim(len(models) - 0.4, -0.6)
            axis.set_title(split)
            axis.set_xlabel(label)
            axis.axvline(chance, color=QUIET, linewidth=0.8)
            axis.grid(axis="x", color=FAINT, linewidth=0.5)
            axis.set_axisbelow(True)
            axis.tick_params(left=False)
        lowest = min((score.value for scores in splits.values() for score in scores.values()), default=chance)
        axes[0].set_xlim(left=max(min(chance, lowest) - 0.02, -1.0))
        return figure


def roc_figure(panels: Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]], network: str) -> Figure:
    """Receiver operating characteristic of a network and its baselines, a panel for each split.

    Parameters
    ----------
    panels
        By split and model, the labels (n,) 0/1 and the held-out probabilities (n,).
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    colours = _colours(panels, network)
    with mpl.rc_context(STYLE):
        figure, axes = _square_panels(panels)
        for axis, (split, models) in zip(axes, panels.items(), strict=True):
            axis.plot([0, 1], [0, 1], color=FAINT, linewidth=1.2)
            for model, (label, probability) in sorted(models.items(), key=lambda item: item[0] != network):
                if len(np.unique(label)) < 2:
                    continue
                false, true, _ = roc_curve(label, probability)
                own = model == network
                area = roc_auc_score(label, probability)
                axis.plot(
                    false,
                    true,
                    label=f"{model}: {area:.3f}",
                    color=colours[model],
                    linewidth=2.2 if own else 1.0,
                    zorder=3 if own else 2,
                )
            axis.set(title=split, xlabel="false positive rate", xlim=(0, 1), ylim=(0, 1.01), aspect="equal", anchor="S")
            if len(axis.lines) > 1:
                _legend_below(axis, "area under the curve")
        axes[0].set_ylabel("true positive rate")
        return figure


def dos_figure(groups: Mapping[str, tuple[int, NDArray]], energies: NDArray) -> Figure:
    """Mean s, p and d densities of states of groups of materials, a panel a group.

    Parameters
    ----------
    groups
        By name, the number of materials, and their mean densities (3, n_energies) in states per eV and atom in the
        order s, p, d.
    energies
        (n_energies,) eV relative to E_F.
    """
    columns = min(len(groups), 2)
    rows = -(-len(groups) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6 * columns, 0.4 + 2.7 * rows), layout="constrained")
        axes = np.atleast_2d(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False))
        for axis, (name, (count, densities)) in zip(axes.flat, groups.items(), strict=False):
            for orbital, density in zip("spd", densities, strict=True):
                axis.plot(energies, density, color=ORBITAL_COLOURS[orbital], linewidth=1.5, label=f"{orbital} states")
            axis.axvline(0, color=QUIET, linewidth=0.8, linestyle=":")
            axis.set(title=f"{name} ({count})", xlim=(energies[0], energies[-1]))
            axis.xaxis.set_tick_params(labelbottom=True)
        for axis in axes.flat[len(groups) :]:
            axis.remove()
        axes.flat[0].set_ylim(bottom=0)
        for axis in axes.flat[max(0, len(groups) - columns) : len(groups)]:
            axis.set_xlabel("$E - E_F$ (eV)")
        figure.supylabel("mean density (states / eV / atom)", fontsize=STYLE["font.size"])
        figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8.5)
        return figure


def element_figure(groups: Mapping[str, Mapping[str, float]]) -> Figure:
    """How often each element occurs, as one periodic table a group.

    Parameters
    ----------
    groups
        By title, the share of materials (0 to 1) that hold each element, by symbol. All tables share one logarithmic
        colour scale, so that they can be compared.
    """
    shares = [share for group in groups.values() for share in group.values() if share > 0]
    low, high = (min(shares), max(shares)) if shares else (0.01, 1.0)
    norm = LogNorm(100 * low, 100 * max(high, low * 1.01))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4 * len(groups), 3.9), layout="constrained")
        axes = np.atleast_1d(figure.subplots(1, len(groups)))
        for axis, (title, group) in zip(axes, groups.items(), strict=True):
            for number in range(1, LAST_ELEMENT + 1):
                element = Element.from_Z(number)
                _element_box(axis, element, 100 * group.get(element.symbol, 0.0), norm)
            axis.set(xlim=(0.4, 18.6), ylim=(9.9, 0.4), aspect="equal")
            axis.set_title(title)
            axis.axis("off")
        scale = mpl.cm.ScalarMappable(norm, "cividis_r")
        bar = figure.colorbar(scale, ax=axes, orientation="horizontal", shrink=0.4, aspect=40, pad=0.02)
        bar.set_label("materials that hold the element (%)")
        bar.ax.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
        bar.ax.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        return figure


def curve_figure(parts: Mapping[str, Mapping[str, NDArray]]) -> Figure:
    """Loss by epoch, solid for the training, dashed for what was held out, and the learning rate below it.

    Parameters
    ----------
    parts
        By part of a training, such as ``random-0``: ``epoch`` (n,), ``loss`` (n,), ``learning_rate`` (n,) and
        ``validation_loss`` (n,), which is nan where it was not asked. Parts of one cross-validation share a colour.
    """
    colours = dict(
        zip(
            dict.fromkeys(part.rpartition("-")[0] for part in parts), (BLUE, VERMILION, GREEN, PURPLE) * 9, strict=False
        )
    )
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.6), layout="constrained")
        axis, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        named: set[str] = set()
        for part, columns in parts.items():
            name = part.rpartition("-")[0]
            label = None if name in named else name
            axis.plot(columns["epoch"], columns["loss"], color=colours[name], linewidth=1.0, alpha=0.8, label=label)
            asked = np.isfinite(np.asarray(columns["validation_loss"], dtype=float))
            axis.plot(
                columns["epoch"][asked],
                np.asarray(columns["validation_loss"], dtype=float)[asked],
                color=colours[name],
                linewidth=1.0,
                linestyle=(0, (3, 2)),
                marker="o",
                markersize=2.5,
                alpha=0.8,
            )
            below.plot(columns["epoch"], columns["learning_rate"], color=colours[name], linewidth=1.0, alpha=0.8)
            named.add(name)
        axis.set(ylabel="loss (dashed: held out)", yscale="log")
        below.set(xlabel="epoch", ylabel="learning rate")
        below.set_ylim(bottom=0)
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        below.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        below.grid(color=FAINT, linewidth=0.5)
        for which in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            which(StrMethodFormatter("{x:g}"))
        axis.grid(color=FAINT, linewidth=0.5)
        axis.legend(fontsize=8.5)
        return figure


def bar_figure(shares: Mapping[str, float], label: str) -> Figure:
    """A horizontal bar for each name, in the order given, with its number."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 0.8 + 0.32 * len(shares)), layout="constrained")
        axis = figure.subplots()
        axis.barh(range(len(shares)), list(shares.values()), height=0.66, color=BLUE)
        for place, share in enumerate(shares.values()):
            axis.text(share, place, f" {share:.2f}", va="center", color=INK, fontsize=8.5)
        axis.set_yticks(range(len(shares)), list(shares))
        axis.set_ylim(len(shares) - 0.4, -0.6)
        axis.set_xlim(0, max([*shares.values(), 0.01]) * 1.15)
        axis.set_xlabel(label)
        axis.tick_params(left=False)
        return figure


def candidate_figure(groups: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """Both networks' answers, a point a material: (Tc in kelvin, probability) by the name of the group."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.6), layout="constrained")
        axis = figure.subplots()
        for (name, points), colour in zip(groups.items(), (VERMILION, SKY, FAINT), strict=False):
            if points:
                temperatures, probabilities = np.transpose(points)
                axis.scatter(temperatures, probabilities, s=12, color=colour, label=f"{name}: {len(points)}")
        axis.set_xscale("function", functions=(np.log1p, np.expm1))
        ticks = [tick for tick in TC_TICKS if tick <= max([x for points in groups.values() for x, _ in points] or [1])]
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.set(ylim=(-0.02, 1.02), xlabel="BNAS: Tc / K", ylabel="S2SNet: probability")
        axis.minorticks_off()
        axis.legend(fontsize=8.5)
        return figure


def calibration_figure(
    points: Sequence[tuple[float, float]],
    expected: str,
    observed: str,
    before: Sequence[tuple[float, float]] = (),
    intervals: Sequence[tuple[float, float]] = (),
) -> Figure:
    """Observed against expected shares (0 to 1), with the line on which they agree.

    Parameters
    ----------
    before
        The same before calibration, drawn behind; none: not drawn.
    intervals
        Low and high end of the observed share of each of ``points``; none: not drawn.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.6, 3.4), layout="constrained")
        axis = figure.subplots()
        axis.plot([0, 1], [0, 1], color=FAINT, linewidth=1.2, zorder=0)
        line: dict[str, Any] = {"marker": "o", "markersize": 4, "linewidth": 1.2}
        if before:
            axis.plot(*zip(*before, strict=True), color=ORANGE, linestyle=(0, (3, 2)), label="before", **line)
        for (place, _), (low, high) in zip(points, intervals, strict=bool(intervals)):
            axis.plot([place, place], [low, high], color=BLUE, linewidth=0.9, alpha=0.6)
        axis.plot(*zip(*points, strict=True), color=BLUE, label="after", **line)
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xlabel=expected, ylabel=observed)
        if before:
            axis.legend(title="calibration", fontsize=8.5, title_fontsize=8.5, loc="lower right")
        return figure


def reliability_figure(panels: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]) -> Figure:
    """Observed shares against predicted probabilities of several models, a panel for each split.

    Parameters
    ----------
    panels
        By split and model, the rows of a reliability curve: ``predicted``, ``observed``, ``materials``, and the ends
        ``low`` and ``high`` of its interval. The model named first of all stands out, with its intervals.
    """
    first = next((model for models in panels.values() for model in models), "")
    colours = _colours(panels, first)
    with mpl.rc_context(STYLE):
        figure, axes = _square_panels(panels)
        for axis, (split, models) in zip(axes, panels.items(), strict=True):
            axis.plot([0, 1], [0, 1], color=FAINT, linewidth=1.2, zorder=0)
            for model, curve in models.items():
                own = model == first
                if own:
                    places, low, high = _columns_of(curve, "predicted", "low", "high")
                    axis.vlines(places, low, high, color=colours[model], linewidth=0.9, alpha=0.6)
                axis.plot(
                    *_columns_of(curve, "predicted", "observed"),
                    label=f"{model}: {calibration_error(curve):.3f}",
                    color=colours[model],
                    marker="o",
                    markersize=4.5 if own else 3,
                    linewidth=2.2 if own else 1.0,
                    zorder=3 if own else 2,
                )
            axis.set(
                title=split, xlabel="probability", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", anchor="S"
            )
            _legend_below(axis, "expected calibration error")
        axes[0].set_ylabel("share that superconducts")
        return figure


def _square_panels(panels: Mapping[str, Mapping[str, Any]]) -> tuple[Figure, Sequence[Axes]]:
    """A figure with a square for each panel and room for a legend of its models below."""
    rows = max((len(models) for models in panels.values()), default=0)
    figure = Figure(figsize=(4.1 * len(panels), 4.7 + 0.18 * rows), layout="constrained")
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    return figure, list(axes)


def _legend_below(axis: Axes, title: str) -> None:
    below: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0.0, -0.15), "frameon": False}
    axis.legend(title=title, fontsize=7.5, title_fontsize=7.5, **below)


def _colours(panels: Mapping[str, Mapping[str, Any]], first: str) -> dict[str, str]:
    """A colour for each model, the same in every panel; that of ``first`` stands out."""
    others = [GREEN, PURPLE, ORANGE, SKY, BLUE, YELLOW, QUIET, INK]
    models = [model for model in dict.fromkeys(model for each in panels.values() for model in each) if model != first]
    return {first: VERMILION} | {model: others[place % len(others)] for place, model in enumerate(models)}


def _columns_of(rows: Sequence[Mapping[str, float]], *names: str) -> list[list[float]]:
    return [[row[name] for row in rows] for name in names]


def figure_bytes(figure: Figure, kind: str = "svg", dpi: int = 110) -> bytes:
    """The figure as a file of the same bytes each time."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata)
    return buffer.getvalue()


def to_data_url(figure: Figure, kind: str = "svg", dpi: int = 110) -> str:
    """The figure as a ``data:`` URL for an ``img``, of the same bytes each time."""
    mime = "image/svg+xml" if kind == "svg" else "image/png"
    return f"data:{mime};base64,{base64.b64encode(figure_bytes(figure, kind, dpi)).decode()}"


def _tc_axes(axis: Axes, top: float) -> None:
    ticks = [tick for tick in TC_TICKS if tick <= top]
    for which in (axis.xaxis, axis.yaxis):
        which.axes.set_aspect("equal")
    axis.set_xscale("function", functions=(np.log1p, np.expm1))
    axis.set_yscale("function", functions=(np.log1p, np.expm1))
    axis.set(xlim=(-0.06, top), ylim=(-0.06, top))
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.set_yticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()


def _score_bar(axis: Axes, place: int, score: Interval, colour: str, chance: float) -> None:
    axis.barh(place, score.value - chance, left=chance, height=0.66, color=colour, alpha=0.9)
    reach = [[max(score.value - score.low, 0)], [max(score.high - score.value, 0)]]
    axis.errorbar(score.value, place, xerr=reach, color=INK, capsize=2.5, linewidth=1.0)


def _element_box(axis: Axes, element: Element, percent: float, norm: LogNorm) -> None:
    column, row = float(element.group), float(element.row)
    if 57 <= element.Z <= 70 or 89 <= element.Z <= 102:  # f elements stand below; Lu and Lr under Sc and Y
        column, row = 3.0 + element.Z - (57 if element.row == 6 else 89), element.row + 2.4
    colour = mpl.colormaps["cividis_r"](norm(percent)) if percent > 0 else "#f3f5f7"
    axis.add_patch(Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, facecolor=colour, edgecolor="white"))
    dark = percent > 0 and np.dot(colour[:3], (0.299, 0.587, 0.114)) < 0.5
    text = "white" if dark else INK if percent > 0 else "#98a2ad"
    axis.text(column, row - 0.08, element.symbol, ha="center", va="center", fontsize=7.5, color=text, weight="bold")
    if percent > 0:
        axis.text(column, row + 0.3, f"{percent:.2g}", ha="center", va="center", fontsize=4.8, color=text)
