"""Judge S2SNet and all baselines on the same folds."""

from datetime import UTC, datetime

from prefect import flow, unmapped

from tasks.benchmark_s2s import benchmark_fold, finish_benchmark, plan_benchmark
from tasks.settings import BenchmarkSettings
from tasks.stages import StageReport


@flow(name="benchmark-s2s")
def benchmark_s2s(
    workspace: str, data: str, settings: BenchmarkSettings = BenchmarkSettings(), processes: int = 1
) -> StageReport:
    """Make the tables of the S2SNet paper again; finished parts of an earlier run count.

    1. plan: check the crystals, make the folds, audit them and the pre-training for leakage
    2. folds: train each method on each, and predict what was held out
    3. finish: scores beside the forest's, tables, figures
    """
    started = datetime.now(UTC)
    plan = plan_benchmark(data, settings)
    benchmark_fold.map(unmapped(workspace), unmapped(plan), list(plan.parts), unmapped(processes)).result()
    return finish_benchmark(workspace, plan, started)
