"""What a file of the workspace should be, by its name: its schema, whether it can be read, what makes it again."""

import gzip
import json
import zlib
from fnmatch import fnmatchcase

import pyarrow as pa
import pyarrow.parquet as pq
import safetensors

from tasks import schemas

SCHEMAS = {
    "supercon/superconductors.parquet": schemas.SUPERCONDUCTORS,
    "supercon/under_pressure.parquet": schemas.UNDER_PRESSURE,
    "crystals/sources/*.pages/*.parquet": schemas.FETCHED_CRYSTALS,
    "crystals/sources/*.parquet": schemas.FETCHED_CRYSTALS,
    "crystals/crystals.parquet": schemas.CRYSTALS,
    "crystals/matches.parquet": schemas.MATCHES,
    "crystals/ordered.parquet": schemas.ORDERED,
    "bands/*.parquet": schemas.BANDS,
    "grids/index.parquet": schemas.GRID_INDEX,
    "grids/coefficients/*.parquet": schemas.STAR_BANDS,
    "datasets/s2s.parquet": schemas.S2S,
    "models/*/folds.parquet": schemas.FOLDS,
    "models/*/predictions.parquet": schemas.PREDICTIONS,
    "models/*/curves.parquet": schemas.CURVES,
    "tuning/*-importance.parquet": schemas.IMPORTANCE,
    "tuning/*.parquet": schemas.TRIALS,
    "benchmarks/s2s/scores.parquet": schemas.BENCHMARK,
    "benchmarks/s2s/reliability.parquet": schemas.BENCHMARK_RELIABILITY,
    "audit/leakage.parquet": schemas.LEAKAGE,
    "candidates/candidates.parquet": schemas.CANDIDATES,
    "candidates/parts/*-rejected.parquet": schemas.REJECTED,
    "candidates/parts/*.parquet": schemas.CANDIDATES,
    "report/figures/dos_by_tc.parquet": schemas.DENSITIES_BY_TC,
    "validation/pairs.parquet": schemas.PAIRS,
    "validation/time_machine.parquet": schemas.TIME_MACHINE,
    "validation/time_machine_lists.parquet": schemas.TIME_MACHINE_LISTS,
    "stages/*/rejected.parquet": schemas.REJECTED,
}

COMMANDS = {  # what runs a stage
    "clean": "meissner refresh --until clean",
    "crystals": "meissner refresh --until crystals",
    "match": "meissner refresh --until match",
    "order": "meissner refresh --until order",
    "bands": "meissner refresh --until bands",
    "grid": "meissner grid",
    "s2s": "meissner dataset s2s",
    "audit": "meissner audit",
    "pretrain-bnas": "meissner pretrain bnas",
    "pretrain-s2snet": "meissner pretrain s2snet",
    "train-bnas": "meissner train bnas",
    "train-s2snet": "meissner train s2snet",
    "tune": "meissner tune bnas",
    "screen": "meissner screen",
    "report": "meissner report",
    "benchmark-s2s": "meissner benchmark s2s",
    "validate-pairs": "meissner validate pairs",
    "time-machine": "meissner validate time-machine",
}


UNREADABLE = "cannot be read"


def training_stage(model: str) -> str:
    """The stage that makes the versions of a network or of a pre-training, named by its folder in ``models/``."""
    return f"pretrain-{model.removesuffix('-pretraining')}" if model.endswith("-pretraining") else f"train-{model}"


def find_schema(name: str) -> pa.Schema | None:
    """The declared schema of a table; None where none is declared."""
    return next((schema for pattern, schema in SCHEMAS.items() if fnmatchcase(name, pattern)), None)


def find_problem(name: str, data: bytes) -> str:
    """Why these bytes cannot be the file of that name; nothing where they can.

    Tables, JSON (also gzipped) and weights are read whole, other files are not judged.
    """
    try:
        if name.endswith((".parquet", ".parquet.curves", ".safetensors.curves")):
            return _compare(pq.read_table(pa.BufferReader(data)).schema, find_schema(name))
        if name.endswith(".safetensors"):
            safetensors.deserialize(data)
        elif name.endswith(".json"):
            json.loads(data)
        elif name.endswith(".json.gz"):
            json.loads(gzip.decompress(data))
    except (pa.ArrowException, OSError, EOFError, ValueError, zlib.error, safetensors.SafetensorError) as error:
        return f"{UNREADABLE}: {' '.join(str(error).split())[:200] or type(error).__name__}"
    return ""


def _compare(found: pa.Schema, declared: pa.Schema | None) -> str:
    if declared is None:
        return ""
    types = {field.name: field.type for field in found}
    if missing := [field.name for field in declared if field.name not in types]:
        return f"lacks the columns {', '.join(missing)}"
    wrong = [f"{field.name} is {types[field.name]}" for field in declared if types[field.name] != field.type]
    return f"has other types than declared: {', '.join(wrong)}" if wrong else ""
