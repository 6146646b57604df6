"""One candidate in detail: its figures, atoms, nearest relatives and provenance, as the page's template takes them."""

import base64
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pymatgen.core import Structure
from pymatgen.io.cif import CifWriter

from models.exceptions import MeissnerError
from tasks.attention import AttentionChecks, describe_checks
from tasks.figures import to_data_url
from tasks.known import KnownSuperconductors, element_amounts
from tasks.material_figures import band_figure, crystal_figure, fermi_figure, plane_figure
from tasks.report_data import Provenance
from tasks.tree_contributions import describe_share, shown_rows, tree_table

NO_BANDS = "No bands of this material are kept in the workspace."
SMALLEST_KELVIN = 0.01  # shown as a number
NEAREST = 6  # measured superconductors shown beside a candidate
CAPTIONS = {
    "bands": "Bands along a path through the Brillouin zone (cubic interpolation of the grid).",
    "densities": "On the right: densities of states inside the atomic spheres.",
    "crystal": (
        "Unit cell. Colour: how much each atom raises (red) or lowers (blue) the logit of S2SNet's networks, from -1 "
        "to 1. Lines join atoms within bonding range. `meissner explain s2snet ID` says what the picture is worth."
    ),
    "planes": (
        "Planes through the zone centre in fractional coordinates along the reciprocal axes. Above: the band nearest "
        "to the Fermi level. Below: where BNAS looked (attention rollout, in patches). Lines: the Fermi level."
    ),
    "fermi": "First Brillouin zone in Cartesian reciprocal coordinates (1/Å). Thin necks can be lost.",
}


class BandsMissingError(MeissnerError, LookupError):
    """A figure needs bands of a material that has none."""


@dataclass(frozen=True)
class PanelInputs:
    """All that the panels draw from, read once."""

    bands: Mapping[str, Mapping[str, Any]]
    grids: Mapping[str, NDArray]
    bnas: Any
    s2snet: Any
    measured: pa.Table
    provenance: Provenance
    versions: Mapping[str, str]
    attention: Mapping[str, AttentionChecks]


def make_panel(row: Mapping[str, Any], inputs: PanelInputs) -> dict[str, Any]:
    """The panel of one row of CANDIDATES; a figure that cannot be drawn has the reason in its place."""
    structure = Structure.from_str(row["structure"], fmt="json")
    grid, bands = inputs.grids.get(row["material_id"]), inputs.bands.get(row["material_id"])
    checks = inputs.attention.get(row["material_id"])
    weights = np.asarray(inputs.s2snet.atom_weights(structure), dtype=float)
    trace = inputs.provenance.trace(row, inputs.versions)
    name, densities = file_name(row), None if bands is None else _densities(bands)
    title, captions = "Bands", dict(CAPTIONS)
    trees = inputs.s2snet.tree_contributions(structure)
    share = describe_share(inputs.s2snet.trees_share) if inputs.s2snet.trees else ""
    captions["crystal"] = f"{CAPTIONS['crystal']} {share}".strip()
    if densities is not None:
        title, captions["bands"] = "Bands and densities of states", f"{CAPTIONS['bands']} {CAPTIONS['densities']}"
    draw: list[tuple[str, str, str, Callable[[], go.Figure | Figure]]] = [
        ("bands", title, "wide", lambda: band_figure(structure, _present(grid), densities)),
        ("crystal", "Crystal", "narrow", lambda: crystal_figure(structure, weights)),
        (
            "planes",
            "Band and attention in three planes",
            "wide",
            lambda: plane_figure(_present(grid), inputs.bnas.rollout(grid)),
        ),
        ("fermi", "Fermi surface", "narrow", lambda: fermi_figure(structure, _present(grid))),
    ]
    return {
        "figures": [_figure(f"{name}-{kind}", title, size, captions[kind], make) for kind, title, size, make in draw],
        "attention": attention_rows(checks) if checks else [],
        "attention_words": describe_checks(checks) if checks else [NO_BANDS],
        "sites": _sites(structure, weights),
        "trees": [] if trees is None else shown_rows(tree_table(trees)),
        "trees_words": share,
        "nearest": nearest_superconductors(row["formula"], inputs.measured),
        "provenance": trace,
        "provenance_url": _data_url("application/json", json.dumps(trace, indent=1, default=str)),
        "cif": str(CifWriter(structure, symprec=0.01)),
        "cif_url": _data_url("chemical/x-cif", str(CifWriter(structure, symprec=0.01))),
        "file_name": name,
        "words": describe_trust(row, _hull_distance(row, inputs.provenance)),
    }


def _present(grid: NDArray | None) -> NDArray:
    """The grid; BandsMissingError where the workspace has none of the material."""
    if grid is None:
        raise BandsMissingError(NO_BANDS)
    return grid


def describe_trust(row: Mapping[str, Any], hull_ev: float | None) -> str:
    """What the numbers of a candidate mean, in a few plain sentences."""
    interval = (
        ""
        if row["tc_low_kelvin"] is None
        else f" (interval {row['tc_low_kelvin']:.2g} to {row['tc_high_kelvin']:.2g} K)"
    )
    sentences = [
        f"BNAS expects {kelvin_text(row['tc_kelvin'])} K{interval}.",
        f"S2SNet gives a probability of {row['probability']:.2f}{second_opinion(row.get('s2snet_tc_kelvin'))}.",
        "The two networks agree." if row["agree"] else "The two networks disagree, so take this one with caution.",
        f"Its distance from the training set is {row['distance']:.2f}, where 1 is the edge of what was tested.",
        {"none": f"No measured composition matches; the nearest in chemistry is {row['nearest_formula']}."}.get(
            row["known"], f"Its composition is known ({row['known']} match with {row['known_formula']})."
        ),
    ]
    if hull_ev is not None:
        sentences.append(f"It lies {1000 * hull_ev:.0f} meV per atom above the convex hull.")
    if row.get("theoretical") is not None:
        sentences.append(
            "As far as its source knows, it was never made." if row["theoretical"] else "Its source says it was made."
        )
    if row["band_gap_ev"] > 0:
        sentences.append(f"It has a band gap of {row['band_gap_ev']:.2g} eV: undoped it would not superconduct.")
    if row["hazards"]:
        sentences.append(f"Handle with care: {', '.join(row['hazards'])}.")
    return " ".join(sentences)


def second_opinion(tc_kelvin: float | None) -> str:
    """What S2SNet says of Tc, as the end of a sentence; nothing where it says nothing."""
    return "" if tc_kelvin is None else f" and, as a second opinion, a Tc of {kelvin_text(tc_kelvin)} K"


def _hull_distance(row: Mapping[str, Any], provenance: Provenance) -> float | None:
    """Energy above the hull, eV per atom, as the screening or the crystals of the workspace tell."""
    told = row.get("energy_above_hull_ev")
    return provenance.hull_distance(row["material_id"]) if told is None else float(told)


def attention_rows(checks: AttentionChecks) -> list[tuple[str, str]]:
    """Numbers of the checks of an attention map, as pairs of name and text."""
    rows = [
        ("symmetric share of the rollout", checks.symmetry),
        ("… of shuffled patches", checks.symmetry_shuffled),
        ("… at most in these patches", checks.symmetry_most),
        ("… of the band above it", checks.band_symmetry),
        ("rank correlation with random weights", checks.random_weights),
        ("… between the trained networks", checks.agreement),
    ]
    return [(name, "–" if value is None else f"{value:z.2f}") for name, value in rows]


def kelvin_text(value: float) -> str:
    """A temperature to three digits; what is too small to mean anything as such."""
    return f"{value:.3g}" if value >= SMALLEST_KELVIN else f"< {SMALLEST_KELVIN:g}"


def nearest_superconductors(formula: str, measured: pa.Table) -> list[dict[str, Any]]:
    """The chemically nearest compositions with a measured Tc above 0, nearest first."""
    positive = measured.filter(pa.compute.greater(measured["tc_kelvin"], 0))
    if not len(positive):
        return []
    places = KnownSuperconductors(positive).nearest([element_amounts(formula)], NEAREST)[0]
    rows = positive.select(["formula", "tc_kelvin", "year_first", "family"]).take(places).to_pylist()
    return [
        {
            "pretty": pretty_formula(row["formula"]),
            "tc": f"{row['tc_kelvin']:.3g}",
            "year": row["year_first"],
            "family": row["family"],
        }
        for row in rows
    ]


def pretty_formula(formula: str) -> Markup:
    """A formula with its amounts as subscripts, safe to put into a page."""
    parts = re.split(r"(?<=[A-Za-z)\]])(\d+(?:\.\d+)?)", formula)  # every second part is an amount
    return Markup("").join(Markup("<sub>{}</sub>").format(part) if i % 2 else part for i, part in enumerate(parts))


def file_name(row: Mapping[str, Any]) -> str:
    """Name of a candidate's files: rank and id, letters and digits only."""
    return f"{row['rank']:02d}-{re.sub(r'[^A-Za-z0-9._-]', '_', row['material_id'])}"


def figure_json(figure: go.Figure) -> str:
    """A plotly figure as JSON that may stand inside a script element."""
    return str(figure.to_json()).replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _figure(name: str, title: str, size: str, caption: str, make: Callable[[], go.Figure | Figure]) -> dict[str, Any]:
    shown = {"id": f"figure-{name}", "title": title, "size": size, "caption": caption}
    try:
        figure = make()
    except BandsMissingError as error:
        return shown | {"reason": str(error)}
    except (ValueError, RuntimeError, np.linalg.LinAlgError) as error:
        return shown | {"reason": f"This figure could not be drawn: {error}"}
    if isinstance(figure, Figure):
        return shown | {"url": to_data_url(figure, "png")}
    return shown | {"json": figure_json(figure)}


def _densities(row: Mapping[str, Any]) -> dict[str, NDArray] | None:
    if not row.get("dos_energies"):
        return None
    names = {"energies": "dos_energies", "s": "dos_s", "p": "dos_p", "d": "dos_d"}
    return {key: np.asarray(row[column], dtype=float) for key, column in names.items()}


def _sites(structure: Structure, weights: Sequence[float] | NDArray) -> list[dict[str, Any]]:
    return [
        {
            "number": number,
            "element": site.specie.symbol,
            "where": ", ".join(f"{coordinate:.3f}" for coordinate in np.mod(site.frac_coords.round(6), 1)),
            "weight": f"{weight:.3f}",
        }
        for number, (site, weight) in enumerate(zip(structure, weights, strict=True), start=1)
    ]


def _data_url(mime: str, text: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(text.encode()).decode()}"
