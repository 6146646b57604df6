"""Crystals with a number on each atom, as files of their own: a still picture, and a page that turns.

The page loads plotly from a file beside it (``PLOTLY``), so it works without a network and many pages share one copy.
"""

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from pymatgen.core import Structure

from tasks.drawn_bonds import bonds, covalent_radii
from tasks.figures import FAINT, INK, STYLE
from tasks.material_figures import cell_edges, crystal_figure, shown_atoms
from tasks.report_panels import figure_json, pretty_formula

PLOTLY = "plotly.min.js"
VIEWS = tuple((azimuth, elevation) for azimuth in range(-80, -9, 5) for elevation in (12, 17))  # degrees
VIEW_GAP = 0.1  # angstrom between discs, and between a bond and a disc, from which on they do not disturb
BALL, GROWTH = 0.2, 0.15  # radius of a drawn atom: angstrom, and angstrom more for each angstrom of covalent radius
BOND_PARTS = 4  # a bond may pass behind one atom and before another
BOND_COLOURS = ("#bcc5cd", "#5b6875")  # far, near
COLOURS = "RdBu_r"
LETTER = 0.1  # inches a letter of the title


@dataclass(frozen=True, eq=False)
class Balls:
    """The atoms of a picture: element, place (n, 2), depth (n,; larger is nearer) and radius (n,), angstrom."""

    symbols: Sequence[str]
    across: NDArray[np.float64]
    depth: NDArray[np.float64]
    radii: NDArray[np.float64]


def still_figure(structure: Structure, maps: Mapping[str, NDArray], title: str = "") -> Figure:
    """The unit cell seen from one side, a panel for each map over its atoms.

    Parameters
    ----------
    maps
        By title, (n_sites,) in [-1, 1] in the order of the sites, shown as colour.
    title
        Of the whole picture.
    """
    sites, fractional = shown_atoms(structure)
    positions = fractional @ structure.lattice.matrix
    symbols = [structure[site].specie.symbol for site in sites]
    radii = BALL + GROWTH * covalent_radii(symbols)
    pairs = bonds(structure, sites, positions)
    view = clearest_view(positions, radii, pairs)
    balls = Balls(symbols, *_project(positions, view), radii)
    corners, _ = _project(cell_edges(structure), view)
    low = np.nanmin(np.vstack([balls.across - balls.radii[:, None], corners]), axis=0) - 0.1
    high = np.nanmax(np.vstack([balls.across + balls.radii[:, None], corners]), axis=0) + 0.1
    width, height = high - low
    panel = float(np.clip(4.4 * width / height, 2.2, 5.0))
    with mpl.rc_context(STYLE):
        figure = Figure(
            figsize=(panel * len(maps) + 0.9, panel * height / width + 0.7),
            layout="constrained",
        )
        title = textwrap.fill(title, int(figure.get_figwidth() / LETTER))
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, weight="bold")
        axes = np.atleast_1d(figure.subplots(1, len(maps)))
        for axis, (name, weights) in zip(axes, maps.items(), strict=True):
            axis.plot(*corners.T, color=FAINT, linewidth=1.0, zorder=0)
            values = np.asarray(weights)[sites]
            _paint(axis, balls, pairs, mpl.colormaps[COLOURS](Normalize(-1, 1)(values)))
            _write_symbols(axis, balls, values, panel / width)
            axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
            axis.set_title(name, weight="normal")
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


def clearest_view(positions: NDArray, radii: NDArray, pairs: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The one of ``VIEWS`` where atoms cover each other and bonds pass over atoms the least."""
    return min(VIEWS, key=lambda view: _hidden(_project(positions, view)[0], radii, pairs))


def _hidden(across: NDArray, radii: NDArray, pairs: Sequence[tuple[int, int]]) -> float:
    """How far discs reach into each other and into bonds, squared and summed; angstrom squared."""
    apart = np.linalg.norm(across[:, None] - across[None], axis=-1)
    inside = np.clip(radii[:, None] + radii[None] + VIEW_GAP - apart, 0, None)
    found = float((np.triu(inside, 1) ** 2).sum())
    if pairs:
        one, other = np.array(pairs).T
        along = across[other] - across[one]
        away = across[None] - across[one][:, None]
        step = np.einsum("bni,bi->bn", away, along) / np.maximum((along**2).sum(axis=1), 1e-9)[:, None]
        near = np.linalg.norm(away - np.clip(step, 0, 1)[..., None] * along[:, None], axis=-1)
        inside = np.clip(radii[None] + VIEW_GAP - near, 0, None)
        inside[np.arange(len(one)), one] = inside[np.arange(len(one)), other] = 0
        found += float((inside**2).sum())
    return round(found, 6)


def _project(positions: NDArray, view: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places on the picture (n, 2) and depths (n,), larger is nearer; angstrom, z goes up."""
    azimuth, elevation = np.radians(view)
    toward = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    right = np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
    return positions @ np.stack([right, np.cross(toward, right)], axis=1), positions @ toward


def _paint(axis: Axes, balls: Balls, pairs: Sequence[tuple[int, int]], colours: NDArray) -> None:
    """Atoms and bonds, the farthest first, in one collection, which is quick for hundreds of atoms."""
    found: list[tuple[float, Path, Any, Any, float]] = [
        (deep, Path.circle(tuple(place), radius), colour, INK, 0.8)
        for place, deep, radius, colour in zip(balls.across, balls.depth, balls.radii, colours, strict=True)
    ]
    found += [
        (deep, Path(ends), "none", _bond_colour(balls.depth, deep), 1.8) for ends, deep in visible_bonds(balls, pairs)
    ]
    found.sort(key=lambda item: item[0])
    _, paths, faces, edges, widths = zip(*found, strict=True)
    axis.add_collection(PathCollection(paths, facecolors=faces, edgecolors=edges, linewidths=widths, capstyle="round"))


def visible_bonds(balls: Balls, pairs: Sequence[tuple[int, int]]) -> list[tuple[NDArray[np.float64], float]]:
    """Ends (2, 2) and depth of the parts of each bond, from the edge of one disc to that of the other."""
    found = []
    for one, other in pairs:
        along, deeper = balls.across[other] - balls.across[one], balls.depth[other] - balls.depth[one]
        length = np.linalg.norm(along)
        start, end = balls.radii[one], length - balls.radii[other]
        if start >= end:
            continue
        steps = np.linspace(start / length, end / length, BOND_PARTS + 1)
        for first, last in itertools.pairwise(steps):
            ends = balls.across[one] + np.outer((first, last), along)
            found.append((ends, float(balls.depth[one] + (first + last) / 2 * deeper)))
    return found


def _write_symbols(axis: Axes, balls: Balls, values: NDArray, inch: float) -> None:
    """The element on each disc whose middle no nearer disc covers; ``inch`` is the length of an angstrom in inches."""
    for symbol, value, place, radius, deep in zip(
        balls.symbols, values, balls.across, balls.radii, balls.depth, strict=True
    ):
        nearer = balls.depth > deep + 1e-6
        if (np.linalg.norm(balls.across[nearer] - place, axis=1) < balls.radii[nearer]).any():
            continue
        colour, outline = ("white", INK) if abs(value) > 0.65 else (INK, "white")
        axis.text(
            float(place[0]),
            float(place[1]),
            symbol,
            ha="center",
            va="center",
            fontsize=float(np.clip(72 * inch * radius, 3.0, 9.0)),
            color=colour,
            path_effects=[withStroke(linewidth=1.2, foreground=outline)],
            zorder=3,
        ).set_in_layout(False)


def _bond_colour(depth: NDArray, here: float) -> tuple[float, float, float]:
    """Pale far away, dark near."""
    pale, dark = (np.array(to_rgb(colour)) for colour in BOND_COLOURS)
    nearness = (here - depth.min()) / max(np.ptp(depth), 1e-9)
    return tuple(pale + nearness * (dark - pale))
