"""Pre-train BNAS on grids without labels."""

from datetime import UTC, datetime

from prefect import flow

from tasks.grid_sources import collection
from tasks.pretrain_bnas import finish_pretraining, plan_pretraining, pretrain_network
from tasks.settings import PretrainingSettings
from tasks.stages import StageReport
from tasks.workspace import Workspace


@flow(name="pretrain-bnas")
def pretrain_bnas(
    workspace: str, settings: PretrainingSettings = PretrainingSettings(), grids_of: str | None = None
) -> StageReport:
    """Let BNAS restore hidden patches of all grids of the workspace, or of its collection ``grids_of``.

    1. plan: check the grids, name the version
    2. learn: restore hidden patches; the error on held-out grids beside plain answers
    3. finish: the stored weights, for `meissner train bnas --pretrained latest`
    """
    started = datetime.now(UTC)
    grids = collection(Workspace(workspace), grids_of).url if grids_of else workspace
    plan = plan_pretraining(grids, settings)
    pretrain_network(workspace, grids, settings, plan)
    return finish_pretraining(workspace, grids, settings, plan, started)
