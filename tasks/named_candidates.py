"""Candidates that the papers name, looked for among what was screened here: found or not, and at what rank."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pymatgen.core import Structure

from models.exceptions import MeissnerError
from models.splits import composition_key
from tasks.bands import ORDERED_TABLE
from tasks.exceptions import MissingStageError
from tasks.held_out import read_held_out
from tasks.mp_identifiers import material_number
from tasks.s2snet_ensemble import load_s2snet
from tasks.workspace import Workspace

RUN = ", a crystal of this composition; its run has another number"  # than the material, which may be the same
MAX_SITES = 60  # of a crystal that only the papers' table asks for


@dataclass(frozen=True)
class Named:
    """A material that a paper names.

    Attributes
    ----------
    material_id
        The Materials Project's, where the paper gives it.
    published
        What the paper says of it: a score of S2SNet; None where no number is printed.
    discovered
        Whether the paper marks it as a known superconductor.
    """

    paper: str
    formula: str
    material_id: str | None = None
    published: float | None = None
    discovered: bool = False


BNAS_NAMED = (  # of the text and Fig. 4; said to be above 10 K, no temperature is printed
    Named("BNAS", "BaAgO2", "mp-996990"),
    Named("BNAS", "AlAgO3", "mp-1404877"),
    Named("BNAS", "InAgO2", "mp-1097001"),
    Named("BNAS", "BaAuO2", "mp-1147676"),
)
TABLE_A1 = (  # of the S2SNet paper: element combination and score
    ("LiFeAs*", 0.9890),
    ("InFeAs", 0.9939),
    ("TiFeSe2", 0.9825),
    ("ZrFeSe", 0.9849),
    ("SmFeAsO", 0.9890),
    ("La2CuO4*", 0.9396),
    ("LiCuO", 0.9738),
    ("La7Ti27Al5Cu24O96", 0.9999),
    ("Ba9La9Cu9Ru9O46", None),  # shares its line with the one above, which prints one number
    ("H2S*", 0.6269),
    ("Mo3H", 0.9510),
    ("Ti3SnH", 0.9009),
    ("NbH2", 0.7034),
    ("Ta2H", 0.6826),
    ("Hg*", 0.9953),
    ("NbSn2*", 0.9976),
    *((formula, 1.0) for formula in (
        "Bi4Te3*", "C*", "TaSe2", "Na3Sr14Nd3Ti20O60", "Ge4Te7As2", "Ge1Bi2Te4", "Tl12In8Se20", "Ta4AgS8", "Ge3Bi2Te6",
        "Tl8In12Se20", "Ba5Bi14O21", "ErZr11Si11PO48", "SiC", "TaS2", "PbI2", "Bi8Te9", "Sb16Te3", "Al8C3N4",
        "Sr8Ru7O24", "Sb8Te3", "Sc2Te3", "Zr3S4", "La39Se56", "Rb4Mo21Se24", "Ti7S12",
    )),
)  # fmt: skip
S2SNET_NAMED = tuple(
    Named("S2SNet", formula.rstrip("*"), None, score, formula.endswith("*")) for formula, score in TABLE_A1
)
NAMED = BNAS_NAMED + S2SNET_NAMED


def find_named(workspace: Workspace, candidates: pa.Table, named: Sequence[Named] = NAMED) -> list[dict[str, Any]]:
    """A row for each named material, with what this workspace says of it.

    A material is looked for by its id, also where that is written in letters as in the Materials Project's table, else
    by its composition; of several polymorphs the one with the best rank, then the highest score, stands for it. What
    was not screened but has an ordered crystal is put to S2SNet alone.

    Returns
    -------
    Rows with the fields of ``Named``, ``status`` in plain words, and ``rank``, ``found_id``, ``tc_kelvin`` and
    ``probability``, None where there is none.
    """
    screened = _by_composition(candidates.drop_columns(["structure"]).to_pylist())
    rows = [_look_up(one, screened) for one in named]
    missing = {composition_key(row["formula"]) for row in rows if row["found_id"] is None}
    crystals = _ask_crystals(workspace, missing)
    return [row if row["found_id"] else row | crystals.get(composition_key(row["formula"]), {}) for row in rows]


def _by_composition(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        name = row["material_id"]
        for key in (material_number(name) or name, composition_key(row["formula"])):
            found.setdefault(key, []).append(row)
    return found


def _look_up(one: Named, screened: Mapping[str, list[Mapping[str, Any]]]) -> dict[str, Any]:
    known = {"paper": one.paper, "formula": one.formula, "material_id": one.material_id, "published": one.published}
    known |= {"discovered": one.discovered, "rank": None, "found_id": None, "tc_kelvin": None, "probability": None}
    own = screened.get(one.material_id or "", [])
    same = own or screened.get(composition_key(one.formula), [])
    if not same:
        return known | {"status": "not in the workspace"}
    best = min(same, key=lambda row: (row["rank"] is None, row["rank"] or 0, -(row["score"] or 0), row["material_id"]))
    if best["rank"] is not None:
        status = f"rank {best['rank']}"
    elif best["known"] != "none":
        status = f"measured ({best['known']}: {best['known_formula']})"
    else:
        status = "too far from the training set to judge"
    if one.material_id and not own:
        status += ", another crystal of this composition" if _names_material(best["material_id"]) else RUN
    picked = {"found_id": best["material_id"], "tc_kelvin": best["tc_kelvin"], "probability": best["probability"]}
    return known | picked | {"rank": best["rank"], "status": status}


def _names_material(name: str) -> bool:
    """Whether an id is not that of a run in the Materials Project's table of bands, in letters."""
    return material_number(name) in {name, None}


def _ask_crystals(workspace: Workspace, compositions: set[str]) -> dict[str, dict[str, Any]]:
    """S2SNet's answer for ordered crystals of some compositions, by composition; the likeliest polymorph of each."""
    if not compositions or not workspace.exists(ORDERED_TABLE):
        return {}
    table = workspace.read_table(ORDERED_TABLE, ["material_id", "formula", "sites", "tc_kelvin", "structure"])
    small = table.filter(pc.less_equal(table["sites"], MAX_SITES)).to_pylist()
    rows = [row for row in small if composition_key(row["formula"]) in compositions]
    if not rows:
        return {}
    try:
        s2snet, held_out = load_s2snet(workspace), read_held_out(workspace, "s2snet")
    except MissingStageError:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        try:
            probability = _probability(row, s2snet, held_out.values)
        except MeissnerError:
            continue
        key, measured = composition_key(row["formula"]), row["tc_kelvin"]
        note = "" if measured is None else ", measured without superconductivity" if measured == 0 else ", measured"
        if probability > found.get(key, {"probability": -np.inf})["probability"]:
            status = f"crystal without bands{note}"
            found[key] = {"status": status, "found_id": row["material_id"], "probability": probability}
    return found


def _probability(row: Mapping[str, Any], s2snet: Any, held_out: Mapping[str, float]) -> float:
    if row["material_id"] in held_out:
        return float(held_out[row["material_id"]])
    return float(s2snet.predict([Structure.from_str(row["structure"], fmt="json")]).probability[0])
