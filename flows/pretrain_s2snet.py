"""Pre-train S2SNet on crystals without labels."""

from datetime import UTC, datetime

from prefect import flow

from tasks.pretrain_s2snet import finish_pretraining, plan_pretraining, pretrain_network
from tasks.settings import S2SNetPretrainingSettings
from tasks.stages import StageReport


@flow(name="pretrain-s2snet")
def pretrain_s2snet(workspace: str, settings: S2SNetPretrainingSettings = S2SNetPretrainingSettings()) -> StageReport:
    """Let S2SNet guess hidden elements of all ordered crystals of the workspace.

    1. plan: check the crystals, name the version
    2. learn: guess hidden elements; the accuracy on held-out crystals beside that of the most frequent element
    3. finish: the stored weights, for `meissner train s2snet --pretrained latest`
    """
    started = datetime.now(UTC)
    plan = plan_pretraining(workspace, settings)
    pretrain_network(workspace, settings, plan)
    return finish_pretraining(workspace, settings, plan, started)
