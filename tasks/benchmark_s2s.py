"""Stage benchmark-s2s: S2SNet and all baselines on the same folds of one dataset, and the paper's tables again.

The stage is cut into parts, a method on a fold each (``tasks.benchmark_plan``, ``tasks.benchmark_parts``). A part
writes one file, named by the hash of everything that it depends on, and is skipped where that file is there: a killed
run goes on, and another run with other methods shares what is the same.
"""

from collections.abc import Sequence
from datetime import datetime

import pyarrow as pa
from prefect import task

from tasks.benchmark_methods import describe_method
from tasks.benchmark_parts import blend, run_part
from tasks.benchmark_plan import CODE_VERSION, FOLDER, BenchmarkPart, BenchmarkPlan, make_plan
from tasks.benchmark_tables import (
    METHODS_FILE,
    OUTPUT,
    as_markdown,
    leave_results,
    score_table,
    write_benchmark_figures,
)
from tasks.events import StageEvent, publish
from tasks.model_store import without_nan
from tasks.progress import leave_summary
from tasks.settings import BenchmarkSettings
from tasks.stages import StageOutcome, StageReport, run_stage
from tasks.workers import close_workers, make_part
from tasks.workspace import Workspace

STAGE = "benchmark-s2s"
PREDICTED = f"{FOLDER}/predictions.parquet"
TABLES = f"{FOLDER}/tables.md"


def gather(workspace: Workspace, plan: BenchmarkPlan) -> StageOutcome:
    """Put the parts together: blends, scores beside the forest's, the paper's tables in words, figures."""
    dataset, settings = plan.read(), plan.settings
    tables, methods, chosen = [], dict[str, str](), dict[str, list[str]]()
    for part in plan.parts:
        table = workspace.read_table(part.file)
        tables.append(table)
        methods |= dict.fromkeys(table["model"].unique().to_pylist(), part.method.name)
        if workspace.exists(f"{part.file}.json") and part.method.tuned:
            chosen.setdefault(part.method.title, []).append(workspace.read_json(f"{part.file}.json")["chosen"])
    predictions = pa.concat_tables(tables)
    titles = {method.name: method.title for method in plan.methods}
    blended = [method for method in plan.methods if method.of]
    predictions = pa.concat_tables([predictions, *(blend(predictions, method, titles) for method in blended)])
    methods |= {method.title: method.name for method in blended}
    scores = score_table(predictions, methods, settings.seed)
    positive = int(dataset.labels.sum())
    sizes = {"superconductors": positive, "others": len(dataset.labels) - positive}
    document = {
        "data": {"source": plan.data, "hash": plan.data_hash, **sizes, "refused": len(dataset.rejected)},
        "settings": settings.model_dump(mode="json"),
        "methods": {method.title: describe_method(method, settings) for method in plan.methods},
        "chosen": chosen,
        "leakage": plan.leakage,
    }
    workspace.write_json(METHODS_FILE, without_nan(document))
    source = f"{plan.data.rstrip('/').rpartition('/')[2]} (hash {plan.data_hash[:12]})"
    if dataset.rejected:
        source += f", lines refused: {len(dataset.rejected)} (stages/{STAGE}/rejected.parquet)"
    seen = plan.pretraining_sizes()
    text = as_markdown(scores, plan.methods, settings, source=source, chosen=chosen, sizes=sizes, seen=seen)
    workspace.write_bytes(TABLES, text.encode())
    figures = write_benchmark_figures(workspace, predictions, scores)
    return StageOutcome(
        rows_in=len(dataset.names) + len(dataset.rejected),
        accounted=len(dataset.names),
        tables={OUTPUT: scores, PREDICTED: predictions},
        rejected=dataset.rejected,
        counts={**sizes, "parts": len(plan.parts), "methods": len(methods)},
        files=[METHODS_FILE, TABLES, *figures],
    )


def _count_done(store: Workspace, parts: Sequence[BenchmarkPart]) -> int:
    return sum(store.exists(part.file) for part in parts)


@task(name="plan-benchmark")
def plan_benchmark(data: str, settings: BenchmarkSettings) -> BenchmarkPlan:
    """Check data and settings, make and audit the folds, name the parts."""
    return make_plan(data, settings)


@task(name="benchmark-fold", task_run_name="{part.name}")
def benchmark_fold(workspace: str, plan: BenchmarkPlan, part: BenchmarkPart, processes: int) -> str:
    """Train one method on one fold and predict its held-out crystals."""
    file = make_part(workspace, part.file, run_part, plan, part, device=plan.settings.device, processes=processes)
    publish(StageEvent(STAGE, _count_done(Workspace(workspace), plan.parts), len(plan.parts)))
    return file


@task(name="finish-benchmark")
def finish_benchmark(workspace: str, plan: BenchmarkPlan, started: datetime | None = None) -> StageReport:
    """Score all methods and write the tables and figures."""
    close_workers()
    store = Workspace(workspace)
    report = run_stage(
        store,
        STAGE,
        lambda: gather(store, plan),
        code_version=CODE_VERSION,
        inputs=[plan.data_hash, plan.unlabelled_hash, plan.reports_hash, *(part.file for part in plan.parts)],
        settings=plan.settings,
        started=started,
    )
    leave_results(store)
    return leave_summary(store, report)
