"""Screening: both networks on every material with bands, ranked."""

from datetime import UTC, datetime

from prefect import flow, unmapped

from tasks.screening import finish_screening, plan_chunks, screen_chunk
from tasks.settings import ScreeningSettings
from tasks.stages import StageReport


@flow(name="screen")
def screen(workspace: str, settings: ScreeningSettings = ScreeningSettings(), chunk: int = 200) -> StageReport:
    """Screen all materials with a small enough gap.

    1. plan: which materials, in which chunks
    2. screen: each chunk by both networks
    3. finish: one ranked table
    """
    started = datetime.now(UTC)
    plan = plan_chunks(workspace, settings, chunk)
    screen_chunk.map(unmapped(workspace), plan.chunks, unmapped(settings)).result()
    return finish_screening(workspace, plan, settings, started)
