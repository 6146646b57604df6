"""Crystals with a number on each atom, as files of their own: a still picture, and a page that turns.

The page loads plotly from a file beside it (``PLOTLY``), so it works without a network and many pages share one copy.
"""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpy.typing import NDArray
from pymatgen.analysis.molecule_structure_comparator import CovalentRadius
from pymatgen.core import Structure

from tasks.figures import FAINT, INK, STYLE
from tasks.material_figures import bonds, cell_edges, crystal_figure, shown_atoms
from tasks.report_panels import figure_json, pretty_formula

PLOTLY = "plotly.min.js"
AZIMUTH, ELEVATION = np.radians(-62.0), np.radians(14.0)  # where the still picture is seen from
BALL = 0.45  # radius of a drawn atom in covalent radii
COLOURS = "RdBu_r"


def still_figure(structure: Structure, maps: Mapping[str, NDArray]) -> Figure:
    """The unit cell seen from one side, a panel for each map over its atoms.

    Parameters
    ----------
    maps
        By title, (n_sites,) in [-1, 1] in the order of the sites, shown as colour.
    """
    sites, fractional = shown_atoms(structure)
    positions = fractional @ structure.lattice.matrix
    across, depth = _project(positions)
    corners, _ = _project(cell_edges(structure))
    pairs = bonds(structure, sites, positions)
    radii = np.array([BALL * CovalentRadius.radius.get(structure[site].specie.symbol, 1.5) for site in sites])
    low = np.nanmin(np.vstack([across - radii[:, None], corners]), axis=0)
    high = np.nanmax(np.vstack([across + radii[:, None], corners]), axis=0)
    width, height = high - low
    panel = float(np.clip(4.4 * width / height, 2.2, 5.0))
    with mpl.rc_context(STYLE):
        figure = Figure(
            figsize=(panel * len(maps) + 0.9, panel * height / width + 0.6),
            layout="constrained",
        )
        axes = np.atleast_1d(figure.subplots(1, len(maps)))
        for axis, (title, weights) in zip(axes, maps.items(), strict=True):
            axis.plot(*corners.T, color=FAINT, linewidth=1.0, zorder=0)
            _draw_bonds(axis, pairs, positions, radii, depth)
            symbols = [structure[site].specie.symbol for site in sites]
            _draw_atoms(axis, symbols, np.asarray(weights)[sites], across, depth, radii)
            axis.set(xlim=(low[0] - 0.1, high[0] + 0.1), ylim=(low[1] - 0.1, high[1] + 0.1), aspect="equal")
            axis.set_title(title)
            axis.axis("off")
        scale = mpl.cm.ScalarMappable(Normalize(-1, 1), COLOURS)
        figure.colorbar(
            scale, ax=axes, shrink=0.6, label="lowers the networks' logit   |   raises it", ticks=[-1, 0, 1]
        )
        return figure


def crystal_page(
    structure: Structure,
    maps: Mapping[str, NDArray],
    facts: Mapping[str, str],
    words: Sequence[str],
    sites: Sequence[Mapping[str, Any]],
    trees: Sequence[Mapping[str, str]] = (),
) -> bytes:
    """A page with the crystal to turn, once for each map, what is known of it, and a table of its sites.

    Parameters
    ----------
    maps
        By title, (n_sites,) in [-1, 1].
    sites
        Rows of the table, all with the same columns.
    trees
        Rows of a second one: what the trees go by.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = (files("tasks") / "templates" / "crystal.html").read_text("utf-8")
    page = environment.from_string(template).render(
        formula=pretty_formula(structure.composition.reduced_formula),
        figures=[
            {"id": f"crystal-{number}", "title": title, "json": figure_json(crystal_figure(structure, weights))}
            for number, (title, weights) in enumerate(maps.items(), start=1)
        ],
        facts=facts,
        words=words,
        columns=list(sites[0]),
        sites=sites,
        trees=trees,
        plotly=f"../{PLOTLY}",
    )
    return page.encode()


def _project(positions: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places on the picture (n, 2) and depths (n,), larger is nearer; angstrom, z goes up."""
    toward = np.array([np.cos(ELEVATION) * np.cos(AZIMUTH), np.cos(ELEVATION) * np.sin(AZIMUTH), np.sin(ELEVATION)])
    right = np.array([-np.sin(AZIMUTH), np.cos(AZIMUTH), 0.0])
    return positions @ np.stack([right, np.cross(toward, right)], axis=1), positions @ toward


def _draw_bonds(
    axis: Axes, pairs: Sequence[tuple[int, int]], positions: NDArray, radii: NDArray, depth: NDArray
) -> None:
    """Each bond from the surface of one ball to that of the other, in halves that stand in the right depth."""
    for one, other in pairs:
        along = positions[other] - positions[one]
        along /= np.linalg.norm(along)
        start, end = positions[one] + radii[one] * along, positions[other] - radii[other] * along
        for part in ((start, (start + end) / 2), ((start + end) / 2, end)):
            ends, deep = _project(np.array(part))
            axis.plot(*ends.T, color="#8a949f", linewidth=1.6, zorder=_order(depth, deep.mean()))


def _draw_atoms(
    axis: Axes, symbols: Sequence[str], values: NDArray, across: NDArray, depth: NDArray, radii: NDArray
) -> None:
    colours = mpl.colormaps[COLOURS](Normalize(-1, 1)(values))
    for symbol, value, colour, place, deep, radius in zip(symbols, values, colours, across, depth, radii, strict=True):
        order = _order(depth, deep)
        axis.add_patch(Circle(tuple(place), radius, facecolor=colour, edgecolor=INK, linewidth=0.8, zorder=order))
        text = "white" if abs(value) > 0.65 else INK
        axis.text(
            place[0], place[1], symbol, ha="center", va="center", fontsize=7, color=text, zorder=order, clip_on=True
        )


def _order(depth: NDArray, here: float) -> float:
    """Drawing order from 1 (farthest) to 2 (nearest)."""
    return float(1 + (here - depth.min()) / max(np.ptp(depth), 1e-9))
