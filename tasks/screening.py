"""Screening: both networks on every material that has bands, joined, judged for trust, and ranked.

A **chunk** of materials is predicted at a time and stored as a part, named by a hash of everything it depends on: a run
that was killed goes on where it stood, and a changed network reaches every part. At first BNAS is asked about one image
of each material, then the best are asked about in all 24. ``finish_screening`` puts the parts together, ranks what is
new, and writes ``candidates/candidates.parquet``.

What comes from a source is screened in a collection, a workspace of its own (``tasks.grid_sources``). Bands and grids
of the first candidates are kept there beside what the report reads, so that it can be made there.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from prefect import task
from prefect.context import TaskRunContext

from tasks.exceptions import InputError, RefusedError
from tasks.figures import candidate_figure, figure_bytes
from tasks.grid_sources import collection, collection_name
from tasks.mp_grids import as_tables, may_pass
from tasks.prediction import SUPERCONDUCTOR_PROBABILITY, SUPERCONDUCTORS, Prediction, predict
from tasks.progress import leave_figure, leave_summary, leave_table
from tasks.schemas import CANDIDATES
from tasks.screening_chunks import (
    STAGE,
    forget_networks,
    open_networks,
    screen_materials,
    screen_to_part,
)
from tasks.screening_kept import KEPT, keep_best
from tasks.screening_plan import (
    CODE_VERSION,
    PARTS,
    PLAN,
    Chunk,
    Plan,
    best_names,
    plan_best,
    plan_screening,
)
from tasks.settings import GridSettings, MpBandSettings, ScreeningSettings
from tasks.shards import INDEX
from tasks.stages import Rejection, StageOutcome, StageReport, run_stage
from tasks.workspace import Workspace

__all__ = [
    "Plan",
    "Prediction",
    "finish_screening",
    "plan_screening",
    "predict",
    "rank_candidates",
    "screen_chunk",
    "screen_materials",
]

RESULT = "candidates/candidates.parquet"
RETRY_SECONDS = (5.0, 30.0)
# settings that the rows depend on, beside the versions of the networks
SHAPING = {"best", "coverage", "elements", "ids", "limit", "max_distance", "max_gap_ev", "since"}
SHOWN_CANDIDATES = 50  # in a run's artifacts
SHOWN_COLUMNS = ("rank", "formula", "space_group", "tc_kelvin", "probability", "known", "nearest_formula")


def screening_place(
    home: Workspace, sources: Sequence[str], name: str | None, settings: ScreeningSettings
) -> Workspace:
    """Where the answers for sources go: the workspace itself without any, or a collection.

    Raises
    ------
    InputError
        If the collection holds grids that were not kept by a screening: they are screened without sources.
    """
    if not sources and not name:
        return home
    place = collection(home, name or _default_name(sources))
    if sources and not settings.keep_grids and place.exists(INDEX) and not place.exists(KEPT):
        raise InputError(
            f"The collection {place.url} holds grids already; screen them by --collection alone, or name another "
            "collection for what is read from the sources"
        )
    return place


def _default_name(sources: Sequence[str]) -> str:
    files, _ = as_tables(sources)
    return f"screen-{collection_name(files[0]) if files else 'mp'}"


def table_choice(settings: ScreeningSettings) -> MpBandSettings:
    """Rows of a table whose grids are kept before they are screened.

    Raises
    ------
    InputError
        For several elements: the grids of a table are chosen by elements that a crystal holds together.
    """
    if len(settings.elements) > 1:
        raise InputError("With --keep-grids at most one element can be chosen")
    choice = settings.model_dump(include={"max_gap_ev", "elements", "ids", "limit", "since"})
    return MpBandSettings(**choice)


def missing_chunks(place: Workspace, chunks: Sequence[Chunk]) -> list[Chunk]:
    """Chunks without a part, or with refusals that may pass another time."""
    there = set(place.list(f"{PARTS}/*"))
    return [chunk for chunk in chunks if chunk.result not in there or chunk.again in there]


def count_refused(place: Workspace, chunks: Sequence[Chunk]) -> int:
    """Materials that the chunks refused, of those whose parts are there."""
    there = set(place.list(f"{PARTS}/*-rejected.parquet"))
    return sum(len(place.read_table(chunk.rejected, ["item"])) for chunk in chunks if chunk.rejected in there)


def choose_best(place: Workspace, plan: Plan, settings: ScreeningSettings) -> tuple[Chunk, ...]:
    """The best of what was asked about in one image, in chunks that are asked about in all."""
    there = set(place.list(f"{PARTS}/*"))
    columns = ["material_id", "score", "known", "abstain"]
    tables = [place.read_table(chunk.result, columns) for chunk in plan.chunks if chunk.result in there]
    if not tables:
        return ()
    return plan_best(plan, best_names(pa.concat_tables(tables), settings.best), settings)


def join_parts(
    place: Workspace,
    plan: Plan,
    settings: ScreeningSettings,
    best: Sequence[Chunk] = (),
    lost: Sequence[Rejection] = (),
    started: datetime | None = None,
    home: Workspace | None = None,
) -> StageReport:
    """Stage "screen": all parts as one ranked table.

    Parameters
    ----------
    best
        Chunks whose rows stand in for those of the same materials in the plan's chunks.
    lost
        Why there is no part of some chunks, by the part.
    home
        The workspace with the networks, by default ``place``.
    """
    reasons = {rejection.item: rejection for rejection in lost}
    made = [chunk for chunk in plan.chunks if chunk.part not in reasons]
    better = [chunk for chunk in best if chunk.part not in reasons]

    def compute() -> StageOutcome:
        table = rank_candidates(_replaced(_rows(place, made), _rows(place, better)))
        table = table.replace_schema_metadata(_provenance(home or place, table, settings))
        rejected = [*plan.excluded, *plan.refused, *_refused(place, made), *_lost(plan.chunks, reasons)]
        parts = [*made, *better]
        seconds = sum(place.read_json(chunk.timing)["seconds"] for chunk in parts)
        counts = {"gap_too_large": len(plan.excluded), "not_asked_for": plan.not_asked}
        return StageOutcome(
            rows_in=plan.materials + len(plan.excluded) + len(plan.refused),
            accounted=len(table),
            tables={RESULT: table},
            rejected=rejected,
            counts=summarise(table) | counts | {"seconds_of_both_networks": round(seconds, 2)},
        )

    told = [*plan.excluded, *plan.refused, *lost]
    inputs = [chunk.part + place.fingerprint(chunk.rejected) for chunk in (*made, *better)]
    inputs += [*(f"{rejection.item} {rejection.reason}" for rejection in told), str(plan.not_asked)]
    report = run_stage(
        place, STAGE, compute, code_version=CODE_VERSION, inputs=inputs, settings=settings, started=started
    )
    place.write_json(PLAN, {"parts": sorted(chunk.part for chunk in (*plan.chunks, *best))})
    return report


def rank_candidates(table: pa.Table) -> pa.Table:
    """Number the unknown materials that the model does not abstain from, best score first, and sort the table so.

    Those that BNAS was asked about in all images stand before those that it was asked about in one. Known materials and
    abstentions follow without a rank, by score. Equal scores stand in the order of their ids.
    """
    unranked = pc.or_(pc.not_equal(table["known"], "none"), table["abstain"])
    first = pc.if_else(unranked, 0, pc.fill_null(table["images"], 1))
    keyed = table.append_column("unranked", unranked).append_column("of_all", first)
    order = pc.sort_indices(
        keyed,
        [("unranked", "ascending"), ("of_all", "descending"), ("score", "descending"), ("material_id", "ascending")],
    )
    ranked = len(table) - pc.sum(pc.cast(unranked, pa.int64())).as_py() if len(table) else 0
    ranks = pa.array([place + 1 if place < ranked else None for place in range(len(table))], pa.int32())
    sorted_table = table.take(order)
    return sorted_table.set_column(0, CANDIDATES.field("rank"), ranks).cast(CANDIDATES).combine_chunks()


def summarise(table: pa.Table) -> dict[str, Any]:
    """Counts worth showing of a ranked table."""
    columns = ["rank", "known", "abstain", "tc_kelvin", "agree", "probability"]
    rows = table.select(columns).to_pylist()
    ranked = [row for row in rows if row["rank"] is not None]
    return {
        "screened": len(rows),
        "known": sum(row["known"] != "none" for row in rows),
        "abstained": sum(row["abstain"] for row in rows),
        "ranked": len(ranked),
        "above_2_kelvin": sum(row["tc_kelvin"] > 2 for row in ranked),
        "above_10_kelvin": sum(row["tc_kelvin"] > 10 for row in ranked),
        "both_networks_agree": sum(row["agree"] for row in ranked),
        "both_say_superconductor": sum(
            row["agree"] and row["probability"] >= SUPERCONDUCTOR_PROBABILITY for row in ranked
        ),
    }


def _provenance(home: Workspace, table: pa.Table, settings: ScreeningSettings) -> dict[str, str]:
    """Versions of data, code, networks and parameters, for the table's metadata."""
    used = {name: pc.unique(table[f"{name}_version"].drop_null()).to_pylist() for name in ("bnas", "s2snet")}
    found = {
        "code": {"meissner": version("meissner"), "screening": CODE_VERSION},
        "networks": {name: " ".join(versions) for name, versions in used.items()},
        "data": {name: home.fingerprint(name) for name in (SUPERCONDUCTORS, INDEX) if home.exists(name)},
        "settings": settings.model_dump(mode="json", include=SHAPING),
    }
    return {"meissner": json.dumps(found, sort_keys=True)}


def show_candidates(table: pa.Table) -> None:
    """Leave the best candidates as a table, and both networks' answers as a picture, in the run's artifacts."""
    rows = table.select(list(SHOWN_COLUMNS)).to_pylist()
    leave_table("candidates", [row for row in rows if row["rank"]][:SHOWN_CANDIDATES], "The best candidates")
    groups: dict[str, list[tuple[float, float]]] = {"ranked": [], "measured": [], "too far to judge": []}
    for row in rows:
        kind = "ranked" if row["rank"] else "measured" if row["known"] != "none" else "too far to judge"
        groups[kind].append((row["tc_kelvin"], row["probability"]))
    leave_figure("screen-answers", figure_bytes(candidate_figure(groups), "png"), "Both networks on every material")


def check_refused(place: Workspace, report: StageReport, settings: ScreeningSettings) -> None:
    """Raise RefusedError where more of the materials asked for were refused than is allowed."""
    asked = report.rows_in - report.counts["gap_too_large"]
    refused = report.rows_refused - report.counts["gap_too_large"]
    if refused > settings.max_refused_share * asked:
        first = place.read_table(f"stages/{STAGE}/rejected.parquet").slice(report.counts["gap_too_large"], 1)
        raise RefusedError(
            f"{refused} of {asked} materials were refused, more than the share of {settings.max_refused_share:g} "
            f"that screening.max_refused_share allows; the first: {first['reason'][0].as_py()}"
        )


def _rows(place: Workspace, chunks: Sequence[Chunk]) -> pa.Table:
    return pa.concat_tables([CANDIDATES.empty_table(), *(place.read_table(chunk.result) for chunk in chunks)])


def _replaced(rows: pa.Table, better: pa.Table) -> pa.Table:
    """Rows, with the better ones in place of those of the same materials."""
    old = rows.filter(pc.invert(pc.is_in(rows["material_id"], value_set=better["material_id"].combine_chunks())))
    return pa.concat_tables([old, better])


def _refused(place: Workspace, chunks: Sequence[Chunk]) -> list[Rejection]:
    rows = [row for chunk in chunks for row in place.read_table(chunk.rejected).to_pylist()]
    return [Rejection(row["item"], row["reason"], row["retryable"]) for row in rows]


def _lost(chunks: Sequence[Chunk], reasons: dict[str, Rejection]) -> list[Rejection]:
    """Every material of the chunks that have no part."""
    return [
        Rejection(name, reasons[chunk.part].reason, retryable=True)
        for chunk in chunks
        if chunk.part in reasons
        for name in chunk.material_ids
    ]


@task(
    name="plan-screening",
    retries=len(RETRY_SECONDS),
    retry_delay_seconds=list(RETRY_SECONDS),
    retry_condition_fn=may_pass,
)
def plan_chunks(workspace: str, place: str, sources: tuple[str, ...], settings: ScreeningSettings) -> Plan:
    """Name the chunks to screen, and see that both networks can be loaded; see ``plan_screening``."""
    home = Workspace(workspace)
    open_networks(home, settings)
    return plan_screening(home, settings, Workspace(place), sources)


@task(name="plan-best")
def plan_best_chunks(place: str, plan: Plan, settings: ScreeningSettings) -> tuple[Chunk, ...]:
    """Name the chunks of the best; see ``choose_best``."""
    return choose_best(Workspace(place), plan, settings)


@task(
    name="screen-chunk",
    task_run_name="screen-{chunk.part}",
    retries=len(RETRY_SECONDS),
    retry_delay_seconds=list(RETRY_SECONDS),
    retry_condition_fn=may_pass,
)
def screen_chunk(
    workspace: str, place: str, chunk: Chunk, settings: ScreeningSettings, grid: GridSettings = GridSettings()
) -> int:
    """Screen one chunk into its part; gives the number of refused materials. The last try refuses what is not given."""
    run = TaskRunContext.get()
    last = run is None or run.task_run.run_count > len(RETRY_SECONDS)
    return screen_to_part(Workspace(workspace), chunk, settings, Workspace(place), grid, last)


@task(name="finish-screening")
def finish_screening(
    workspace: str,
    place: str,
    plan: Plan,
    settings: ScreeningSettings,
    best: Sequence[Chunk] = (),
    lost: Sequence[Rejection] = (),
    grid: GridSettings = GridSettings(),
    started: datetime | None = None,
) -> StageReport:
    """Put the parts together, rank them, and write ``candidates/candidates.parquet``; keep what the report needs.

    Raises
    ------
    RefusedError
        If too much was refused; all that is there has been written.
    """
    home, there = Workspace(workspace), Workspace(place)
    forget_networks()
    report = leave_summary(there, join_parts(there, plan, settings, best, lost, started, home))
    show_candidates(there.read_table(RESULT))
    if place != workspace:
        keep_best(home, there, plan, settings, grid)
    check_refused(there, report, settings)
    return report
