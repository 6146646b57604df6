"""What databases of crystals tell beside the crystal: energy above the hull, and whether it was ever made."""

import json
from typing import Any

from tasks.mp_identifiers import table_identifier
from tasks.stages import hash_text
from tasks.workspace import Workspace

CRYSTALS_TABLE = "crystals/crystals.parquet"
SOURCES = "crystals/sources/*.parquet"
COLUMNS = ("energy_above_hull_ev", "theoretical")

Facts = dict[str, dict[str, Any]]


def read_crystal_facts(home: Workspace) -> Facts:
    """``energy_above_hull_ev`` and ``theoretical``, as far as they are known, by the crystal's name.

    A crystal of the Materials Project stands under its name in the table of bands, too, where both have one number.
    """
    found: Facts = {}
    for file in [*([CRYSTALS_TABLE] if home.exists(CRYSTALS_TABLE) else []), *home.list(SOURCES)]:
        columns = ["crystal_id", *COLUMNS[: 1 if file == CRYSTALS_TABLE else 2]]
        for row in home.read_table(file, columns).to_pylist():
            name = row.pop("crystal_id")
            facts = {key: value for key, value in row.items() if value is not None}
            for one in filter(None, (name, _table_name(name))):
                if facts:
                    found[one] = found.get(one, {}) | facts
    return found


def hash_facts(facts: Facts) -> str:
    """A hash of facts, whatever their order."""
    return hash_text(json.dumps(facts, sort_keys=True))


def _table_name(crystal_id: str) -> str | None:
    number = crystal_id.removeprefix("mp-")
    return table_identifier(crystal_id) if number != crystal_id and number.isdigit() else None
