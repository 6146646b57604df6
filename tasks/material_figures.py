"""Figures of one material: bands with densities of states, planes beside the rollout, Fermi surface, crystal.

Bands come from the grid that BNAS reads, so what is shown is what the network saw. Three-dimensional figures are
plotly's, which a reader can turn; their arrays are float32 and small integers, to keep the page light.
"""

import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure
from numpy.typing import NDArray
from plotly.subplots import make_subplots
from pymatgen.core import Structure
from pymatgen.symmetry.bandstructure import HighSymmKpath
from scipy.ndimage import map_coordinates

from tasks.drawn_bonds import bonds, covalent_radii
from tasks.fermi_surface import crossing_bands, fermi_meshes
from tasks.figures import BLUE, GREEN, INK, ORANGE, ORBITAL_COLOURS, PURPLE, QUIET, SKY, STYLE, VERMILION

BAND_COLOURS = (VERMILION, BLUE, GREEN, PURPLE, ORANGE, SKY)  # of the bands that cross E_F, lowest first
OTHER_BANDS = "#a9b4c0"
WINDOW_EV = 4.0  # shown below and above E_F
POINTS_A_SEGMENT = 24
PLANES = {"k_x–k_y": (0, 1, 2), "k_x–k_z": (0, 2, 1), "k_z–k_y": (2, 1, 0)}  # across, up, fixed at 0; as in the paper
FONT = {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12, "color": INK}


def nearest_band(grid: NDArray) -> int:
    """The band that comes nearest to E_F in the mean of |E - E_F|, among those that cross it where some do.

    Channels that are zero everywhere are padding and left out.
    """
    distance = np.abs(grid).mean(axis=(1, 2, 3))
    distance[~grid.any(axis=(1, 2, 3))] = np.inf
    crossing = crossing_bands(grid)
    chosen = crossing or range(len(grid))
    return int(min(chosen, key=lambda band: distance[band]))


def interpolate_periodic(grid: NDArray, kpoints: NDArray) -> NDArray[np.float32]:
    """Energies (n_bands, n_k) at fractional k points (n_k, 3) by cubic splines on the periodic grid."""
    mesh = np.array(grid.shape[1:])
    where = (np.asarray(kpoints) * mesh).T
    return np.stack([map_coordinates(band, where, order=3, mode="grid-wrap") for band in grid]).astype(np.float32)


def band_path(structure: Structure) -> list[tuple[str, NDArray[np.float64]]]:
    """Corner points of a path through the Brillouin zone: label and fractional coordinates, breaks as empty labels.

    Setyawan and Curtarolo's path (Comput. Mater. Sci. 49, 299 (2010)) where the cell is their standard primitive cell;
    elsewhere from the centre along the three reciprocal axes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            path = HighSymmKpath(structure, symprec=0.01)
            standard = np.allclose(path.prim.lattice.matrix, structure.lattice.matrix, atol=1e-3)
        except (ValueError, KeyError, TypeError, AttributeError):  # spglib finds no symmetry
            standard = False
    if not standard or path.kpath is None:
        halves = [(f"½b<sub>{axis + 1}</sub>", np.eye(3)[axis] / 2) for axis in range(3)]
        return [corner for half in halves for corner in (("Γ", np.zeros(3)), half, ("", np.zeros(3)))][:-1]
    corners: list[tuple[str, NDArray[np.float64]]] = []
    for branch in path.kpath["path"]:
        corners += [(_label(name), np.asarray(path.kpath["kpoints"][name], dtype=float)) for name in branch]
        corners.append(("", np.zeros(3)))
    return corners[:-1]


def band_figure(structure: Structure, grid: NDArray, densities: dict[str, NDArray] | None) -> go.Figure:
    """Bands along a path through the Brillouin zone, and beside them the s, p and d densities of states.

    Parameters
    ----------
    grid
        (n_bands, k, k, k) eV relative to E_F at fractional k points i/k.
    densities
        ``energies`` (eV relative to E_F), ``s``, ``p``, ``d`` (states per eV and cell); None leaves them out.
    """
    widths = [1.0] if densities is None else [0.7, 0.3]
    figure = make_subplots(1, len(widths), shared_yaxes=True, column_widths=widths, horizontal_spacing=0.03)
    points, positions, ticks = _sample_path(structure, band_path(structure))
    energies = interpolate_periodic(grid, points)
    energies[:, np.isnan(positions)] = np.nan
    crossing = crossing_bands(grid)
    for band, values in enumerate(energies):
        if not grid[band].any() or np.nanmin(values) > WINDOW_EV or np.nanmax(values) < -WINDOW_EV:
            continue
        colour = BAND_COLOURS[crossing.index(band) % len(BAND_COLOURS)] if band in crossing else OTHER_BANDS
        line = {"color": colour, "width": 2 if band in crossing else 1.2}
        trace = {"name": f"band {band + 1}", "showlegend": False, "hovertemplate": "%{y:.2f} eV"}
        figure.add_scatter(x=positions.astype(np.float32), y=values, mode="lines", line=line, **trace, row=1, col=1)
    if densities is not None:
        shown = np.abs(densities["energies"]) <= WINDOW_EV
        for orbital in "spd":
            x = np.round(densities[orbital][shown], 3).astype(np.float32)
            y = np.round(densities["energies"][shown], 3).astype(np.float32)
            line = {"color": ORBITAL_COLOURS[orbital], "width": 1.6}
            figure.add_scatter(x=x, y=y, mode="lines", line=line, name=orbital, row=1, col=2)
        figure.update_xaxes(title_text="states / eV / cell", rangemode="tozero", row=1, col=2)
    figure.update_xaxes(tickvals=list(ticks.values()), ticktext=list(ticks), tickangle=0, row=1, col=1)
    figure.update_yaxes(range=[-WINDOW_EV, WINDOW_EV])
    figure.update_yaxes(title_text="E − E<sub>F</sub> (eV)", row=1, col=1)
    figure.add_hline(y=0, line={"color": INK, "width": 1, "dash": "dot"})
    return _finish(figure, legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"})


def plane_figure(
    grid: NDArray, rollout: NDArray, band: int | None = None, point: Sequence[float] = (0.0, 0.0, 0.0)
) -> Figure:
    """A band in three planes through a k point, and the attention rollout in the same planes below it.

    Parameters
    ----------
    grid
        (n_bands, k, k, k) eV relative to E_F.
    rollout
        (k, k, k) share of the class token's attention.
    band
        Number from 0; None: the one nearest to E_F (``nearest_band``).
    point
        Fractional coordinates of the point that the planes go through, taken to the nearest point of the grid.
    """
    band = nearest_band(grid) if band is None else band
    energies, attention = _centre(grid[band]), _centre(rollout)
    place = _nearest_point(point, len(rollout))
    limit = max(float(np.abs(energies.take(place[fixed], axis=fixed)).max()) for fixed in range(3)) or 1.0
    share = attention / attention.mean()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 5.2), layout="constrained")
        axes = figure.subplots(2, 3, sharex=True, sharey=True)
        for column, (name, (across, up, fixed)) in enumerate(PLANES.items()):
            plane, weights = (_plane(values, across, up, fixed, place[fixed]) for values in (energies, share))
            bands = _draw_plane(axes[0, column], plane, "RdBu_r", (-limit, limit))
            maps = _draw_plane(axes[1, column], weights, "cividis", (float(share.min()), float(share.max())))
            for axis, colour in ((axes[0, column], INK), (axes[1, column], "white")):
                if plane.min() < 0 < plane.max():
                    ticks = np.linspace(-0.5, 0.5, len(plane))
                    axis.contour(ticks, ticks, plane, levels=[0], colors=colour, linewidths=1.1)
            height = (place[fixed] - len(rollout) // 2) / len(rollout)
            axes[0, column].set_title(f"${name.replace('–', '$–$')}$ at $k_{'xyz'[fixed]}={height:g}$")
            axes[1, column].set_xlabel(f"$k_{'xyz'[across]}$")
            for row in (0, 1):
                axes[row, column].set_ylabel(f"$k_{'xyz'[up]}$")
        figure.colorbar(bands, ax=axes[0], label=f"band {band + 1}: $E - E_F$ (eV)", shrink=0.9)
        figure.colorbar(maps, ax=axes[1], label="rollout (1 = mean)", shrink=0.9)
        return figure


def fermi_figure(structure: Structure, grid: NDArray) -> go.Figure:
    """Fermi surface in the first Brillouin zone, Cartesian reciprocal coordinates (1/angstrom, with 2 pi).

    Each band that crosses E_F on the grid has the colour that it has in ``band_figure``.
    """
    figure = go.Figure()
    zone = structure.lattice.reciprocal_lattice
    facets = [np.asarray(facet) for facet in zone.get_wigner_seitz_cell()]
    for place, (band, vertices, triangles) in enumerate(fermi_meshes(structure, grid)):
        figure.add_mesh3d(
            **dict(zip("xyz", vertices.T.round(3).astype(np.float32), strict=True)),
            **dict(zip("ijk", triangles.T.astype(_smallest_integer(len(vertices))), strict=True)),
            color=BAND_COLOURS[place % len(BAND_COLOURS)],
            name=f"band {band + 1}",
            showlegend=True,
            hoverinfo="name",
            lighting={"ambient": 0.55, "diffuse": 0.7, "specular": 0.15, "roughness": 0.7},
        )
    edges = [np.vstack([facet, facet[:1], [[np.nan] * 3]]) for facet in facets]
    _add_lines(figure, np.vstack(edges), QUIET, 3)
    return _finish_3d(figure)


def crystal_figure(structure: Structure, weights: NDArray | None) -> go.Figure:
    """The unit cell with its atoms, those on faces and corners repeated, bonds, and a weight for each atom.

    Parameters
    ----------
    weights
        (n_sites,) in [-1, 1], how much each atom raises or lowers the logit of S2SNet's networks, shown as colour;
        None: unknown.
    """
    figure = go.Figure()
    _add_lines(figure, cell_edges(structure), QUIET, 2)
    sites, fractional = shown_atoms(structure)
    positions = fractional @ structure.lattice.matrix
    _add_lines(figure, _segments(positions, bonds(structure, sites, positions)), "#8a949f", 5)
    symbols = [structure[site].specie.symbol for site in sites]
    named = [
        symbol if site not in sites[:place] else ""
        for place, (site, symbol) in enumerate(zip(sites, symbols, strict=True))
    ]
    shown = np.zeros(len(structure)) if weights is None else np.asarray(weights, dtype=float)
    colour = {
        "color": shown[sites].round(4).astype(np.float32),
        "colorscale": "RdBu",
        "reversescale": True,
        "cmin": -1,
        "cmax": 1,
        "colorbar": {"title": {"text": "weight"}, "thickness": 12, "len": 0.7},
        "showscale": weights is not None,
        "size": (10 + 16 * covalent_radii(symbols)).round(1).tolist(),
        "line": {"color": INK, "width": 1.5},
        "opacity": 1.0,
    }
    figure.add_scatter3d(
        **dict(zip("xyz", positions.T.round(3).astype(np.float32), strict=True)),
        mode="markers+text",
        marker=colour,
        text=named,
        textfont={"size": 14, "color": INK},
        textposition="top center",
        customdata=[f"{symbol}, site {site + 1}" for site, symbol in zip(sites, symbols, strict=True)],
        hovertemplate="%{customdata}<br>weight %{marker.color:.3f}<extra></extra>",
        showlegend=False,
    )
    return _finish_3d(figure)


def _label(name: str) -> str:
    """A k point's name with a Greek letter and a subscript."""
    letter, _, number = name.partition("_")
    letter = {"\\Gamma": "Γ", "\\Sigma": "Σ", "\\Delta": "Δ", "\\Lambda": "Λ"}.get(letter, letter)
    return f"{letter}<sub>{number}</sub>" if number else letter


def _sample_path(
    structure: Structure, corners: Sequence[tuple[str, NDArray]]
) -> tuple[NDArray[np.float64], NDArray[np.float64], dict[str, float]]:
    """Points along a path, their places on the axis (NaN at breaks), and the places of the labels."""
    reciprocal = structure.lattice.reciprocal_lattice.matrix
    points, positions = [corners[0][1][None]], [np.zeros(1)]
    labels: dict[float, str] = {0.0: corners[0][0]}
    here = 0.0
    for (name, start), (following, end) in itertools.pairwise(corners):
        if not following:
            points.append(np.zeros((1, 3)))
            positions.append(np.array([np.nan]))
            continue
        length = 0.0 if not name else float(np.linalg.norm((end - start) @ reciprocal))
        steps = np.linspace(0, 1, POINTS_A_SEGMENT)[:, None]
        points.append(end[None] if not name else start + steps * (end - start))
        positions.append(here + length * (steps[:, 0] if name else np.zeros(1)))
        here = round(here + length, 6)
        labels[here] = following if name else f"{labels[here]}|{following}"
    ticks: dict[str, float] = {}
    for place, text in labels.items():
        ticks[text + "\u200b" * sum(known.strip("\u200b") == text for known in ticks)] = place
    return np.vstack(points), np.concatenate(positions), ticks


def _centre(values: NDArray) -> NDArray:
    """The grid from -1/2 to 1/2 with both borders, so that the zone centre is in the middle."""
    half = values.shape[0] // 2
    rolled = np.roll(values, half, axis=(0, 1, 2))
    return np.pad(rolled, ((0, 1),) * 3, mode="wrap")


def _nearest_point(point: Sequence[float], mesh: int) -> list[int]:
    """Index of a fractional k point in a grid that ``_centre`` gives."""
    return [int((round(float(coordinate) * mesh) + mesh // 2) % mesh) for coordinate in point]


def _plane(values: NDArray, across: int, up: int, fixed: int, place: int) -> NDArray:
    """A plane of a centred grid at one index of the fixed axis, with rows going up."""
    plane = np.take(values, place, axis=fixed)
    return np.asarray(plane.T if across < up else plane)


def _draw_plane(axis: Any, plane: NDArray, colours: str, limits: tuple[float, float]) -> Any:
    edge = 0.5 + 0.5 / (len(plane) - 1)  # a pixel stands around its point, so those on the border reach over it
    image = axis.imshow(plane, origin="lower", cmap=colours, vmin=limits[0], vmax=limits[1], extent=(-edge, edge) * 2)
    axis.set(xlim=(-0.5, 0.5), ylim=(-0.5, 0.5))
    axis.set_xticks([-0.5, 0, 0.5], ["−½", "0", "½"])
    axis.set_yticks([-0.5, 0, 0.5], ["−½", "0", "½"])
    return image


def _smallest_integer(count: int) -> type:
    return np.uint16 if count < 2**16 else np.uint32


def cell_edges(structure: Structure) -> NDArray[np.float64]:
    """The twelve edges of the unit cell as line segments, angstrom, broken by NaN."""
    corners = np.array(list(itertools.product((0, 1), repeat=3)))
    edges = [(a, b) for a, b in itertools.combinations(range(8), 2) if np.abs(corners[a] - corners[b]).sum() == 1]
    return _segments(corners @ structure.lattice.matrix, edges)


def shown_atoms(structure: Structure) -> tuple[list[int], NDArray[np.float64]]:
    """Site index and fractional coordinates of each atom in the cell, borders included."""
    sites, coordinates = [], []
    for index, site in enumerate(structure):
        inside = np.mod(np.round(site.frac_coords, 4), 1.0)
        borders = [(0, 1) if coordinate < 1e-3 else (0,) for coordinate in inside]
        for shift in itertools.product(*borders):
            sites.append(index)
            coordinates.append(inside + shift)
    return sites, np.array(coordinates)


def _segments(positions: NDArray, pairs: Sequence[tuple[int, int]]) -> NDArray[np.float64]:
    """Line segments one after the other, broken by NaN."""
    gap = np.full(3, np.nan)
    return np.array([point for a, b in pairs for point in (positions[a], positions[b], gap)]).reshape(-1, 3)


def _add_lines(figure: go.Figure, points: NDArray, colour: str, width: float) -> None:
    x, y, z = points.T.round(3).astype(np.float32)
    line = {"color": colour, "width": width}
    figure.add_scatter3d(x=x, y=y, z=z, mode="lines", line=line, hoverinfo="skip", showlegend=False)


def _finish(figure: go.Figure, **layout: Any) -> go.Figure:
    axis = {
        "linecolor": QUIET,
        "gridcolor": "#e3e8ed",
        "zeroline": False,
        "ticks": "",
        "mirror": True,
        "showline": True,
    }
    figure.update_layout(
        template="none",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#a9b4c0", "activecolor": INK},
        font=FONT,
        margin={"l": 52, "r": 8, "t": 26, "b": 42},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        **layout,
    )
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure


def _finish_3d(figure: go.Figure) -> go.Figure:
    hidden = {"visible": False, "showspikes": False}
    figure.update_layout(
        template="none",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#a9b4c0", "activecolor": INK},
        font=FONT,
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        paper_bgcolor="rgba(0,0,0,0)",
        legend={"x": 0, "y": 1, "bgcolor": "rgba(255,255,255,0.6)"},
        scene={
            "xaxis": hidden,
            "yaxis": hidden,
            "zaxis": hidden,
            "aspectmode": "data",
            "dragmode": "orbit",
            "camera": {"eye": {"x": 1.35, "y": 1.1, "z": 0.75}, "projection": {"type": "orthographic"}},
        },
    )
    return figure
