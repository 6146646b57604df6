"""The papers' results beside those of this workspace: counts, and the candidates that they name."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tasks.named_candidates import find_named
from tasks.report_panels import kelvin_text, pretty_formula
from tasks.workspace import Workspace

PUBLISHED = {"name": "BNAS paper", "screened": 46_442, "above_2": 14_956, "above_10": 1_502}


def papers_section(workspace: Workspace, candidates: pa.Table) -> dict[str, Any]:
    """Counts above 2 K and 10 K, and what became of the named candidates."""
    ranked = candidates.filter(pc.is_valid(candidates["rank"]))
    named = [
        row
        | {
            "pretty": pretty_formula(row["formula"]),
            "published_text": "above 10 K" if row["paper"] == "BNAS" else _number(row["published"], ".4f"),
            "tc_text": "–" if row["tc_kelvin"] is None else kelvin_text(row["tc_kelvin"]),
            "p_text": _number(row["probability"], ".2f"),
        }
        for row in find_named(workspace, candidates)
    ]
    named.sort(key=lambda row: (row["paper"], row["found_id"] is None, row["rank"] or 10**9))
    counts = [PUBLISHED, _counts("here, all screened", candidates), _counts("here, new candidates", ranked)]
    return {"counts": counts, "named": named, "found": sum(row["found_id"] is not None for row in named)}


def _counts(name: str, table: pa.Table) -> dict[str, Any]:
    above = {kelvin: pc.sum(pc.greater(table["tc_kelvin"], kelvin)).as_py() or 0 for kelvin in (2, 10)}
    return {"name": name, "screened": len(table), "above_2": above[2], "above_10": above[10]}


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"
