"""Write docs/formats.md, every table's columns, from the Arrow schemas and the comments beside their fields.

Run as ``python -m deployments.formats_page > docs/formats.md``; a test keeps the page in step.
"""

import inspect
import re
import sys

import pyarrow as pa

from tasks import schemas

TABLES = {  # schema to the files that hold it
    "SUPERCONDUCTORS": "supercon/superconductors.parquet",
    "UNDER_PRESSURE": "supercon/under_pressure.parquet",
    "FETCHED_CRYSTALS": "crystals/sources/DATABASE.parquet",
    "CRYSTALS": "crystals/crystals.parquet",
    "MATCHES": "crystals/matches.parquet",
    "ORDERED": "crystals/ordered.parquet",
    "BANDS": "bands/MATERIAL.parquet",
    "GRID_INDEX": "grids/index.parquet",
    "STAR_BANDS": "grids/coefficients/SHARD.parquet",
    "S2S": "datasets/s2s.parquet",
    "FOLDS": "models/NETWORK/VERSION/folds.parquet",
    "PRETRAINING_ROLES": "models/NETWORK-pretraining/VERSION/materials.parquet",
    "PREDICTIONS": "models/NETWORK/VERSION/predictions.parquet",
    "CURVES": "models/bnas/VERSION/curves.parquet",
    "TRIALS": "tuning/STUDY.parquet",
    "IMPORTANCE": "tuning/STUDY-importance.parquet",
    "BENCHMARK": "benchmarks/s2s/scores.parquet",
    "BENCHMARK_RELIABILITY": "benchmarks/s2s/reliability.parquet",
    "LEAKAGE": "audit/leakage.parquet",
    "CANDIDATES": "candidates/candidates.parquet",
    "DENSITIES_BY_TC": "report/figures/dos_by_tc.parquet",
    "PAIRS": "validation/pairs.parquet",
    "TIME_MACHINE": "validation/time_machine.parquet",
    "TIME_MACHINE_LISTS": "validation/time_machine_lists.parquet",
    "REJECTED": "stages/STAGE/rejected.parquet",
}
HEAD = """# Data formats

Every table is Parquet (zstd) with one of these schemas; words in capitals stand for a name. Structures are pymatgen's
JSON as text. Units stand in the names. How tables hang together: [architecture](architecture.md#the-workspace).

```python
import pandas as pd

candidates = pd.read_parquet("workspace/candidates/candidates.parquet")
```

Grids are one Zarr v3 array `grids/energies.zarr` of shape (materials, 18, 32, 32, 32), float32, eV relative to E_F
([grids](grids.md)).
"""


def formats_page() -> str:
    """The page as Markdown."""
    notes = _notes(inspect.getsource(schemas))
    return "\n".join([HEAD, *(_section(name, file, notes[name]) for name, file in TABLES.items())])


def _section(name: str, file: str, notes: dict[str, str]) -> str:
    schema: pa.Schema = getattr(schemas, name)
    rows = [f"| `{field.name}` | {_type(field)} | {notes.get(field.name, '')} |" for field in schema]
    return "\n".join([f"## {name}", f"`{file}`", "", "| column | type | what |", "|---|---|---|", *rows, ""])


def _type(field: pa.Field) -> str:
    kind = re.sub(r"list<(?:item|element): (.*)>", r"list of \1", str(field.type))
    while "list<" in kind:
        kind = re.sub(r"list<(?:item|element): (.*)>", r"list of \1", kind)
    return kind + (", or null" if field.nullable else "")


def _notes(source: str) -> dict[str, dict[str, str]]:
    """Comment beside each field, by schema and column."""
    found: dict[str, dict[str, str]] = {}
    table = ""
    for line in source.splitlines():
        if start := re.match(r"([A-Z0-9_]+) = pa\.schema\(", line):
            table = start[1]
            found[table] = {}
        elif note := re.search(r'pa\.field\("(\w+)".*\),\s+# (.*)$', line):
            found[table][note[1]] = note[2].replace("|", "\\|")
    return found


if __name__ == "__main__":
    sys.stdout.write(formats_page())
