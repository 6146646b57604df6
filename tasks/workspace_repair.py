"""Take away what is damaged, so that exactly that is made again, and find the settings that made it."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from jobflow import JobStore
from pydantic import ValidationError

from tasks.cleaning import MDR_SOURCE
from tasks.crystal_sources import as_sources, source_hash
from tasks.downloads import fetch_mdr
from tasks.exceptions import InputError
from tasks.screening_kept import KEPT
from tasks.settings import Settings
from tasks.shards import forget_shards
from tasks.sources import hash_source
from tasks.stages import read_report, shown_inputs
from tasks.workspace import Workspace
from tasks.workspace_check import GONE, Finding, inner_workspace
from tasks.workspace_tables import COMMANDS

ASIDE = "damaged"
FACTS = "grids/facts"
FROM_BANDS = ("grids/*", "crystals/ordered.parquet", "bands/*", "stages/grid/*")  # what a screening of a source keeps

STEPS = {  # the settings that a stage's manifest holds
    "clean": "cleaning",
    "crystals": "crystal",
    "match": "matching",
    "order": "ordering",
    "bands": "bands",
    "grid": "grid",
    "s2s": "s2s",
    "audit": "audit",
    "pretrain-s2snet": "s2snet_pretraining",
    "train-bnas": "bnas",
    "train-s2snet": "s2snet",
    "tune": "tuning",
    "screen": "screening",
    "report": "report",
    "time-machine": "time_machine",
}


def repair_workspace(workspace: Workspace, findings: Sequence[Finding], jobs: JobStore | None = None) -> list[str]:
    """Remove or move aside what is damaged, with the keys that vouch for it, and say what was done with each.

    A damaged shard goes with its record and the index; what cannot be made again for certain is kept under
    ``damaged/``. A stage whose key was taken away runs again.

    Parameters
    ----------
    jobs
        The store of the band calculations: the job that stored damaged bands is forgotten there, so that it runs again.
    """
    return [_repair(workspace, finding, jobs) for finding in findings]


def _repair(workspace: Workspace, finding: Finding, jobs: JobStore | None) -> str:
    place = inner_workspace(workspace, finding.collection) if finding.collection else workspace
    if finding.remedy == "none":
        return "left as it is"
    if finding.stage:
        _take_key(place, finding.stage)
    if any(fnmatchcase(finding.name, pattern) for pattern in FROM_BANDS):
        place.remove(KEPT)  # the next screening of the source keeps its best anew
    if finding.remedy == "shard" and finding.shard is not None:
        forget_shards(place, [finding.shard])
        place.remove(f"{FACTS}/{finding.shard:06d}.json")
        return "shard and index removed"
    if finding.remedy == "aside":
        return _put_aside(place, finding, jobs)
    for name in (finding.name, *_beside(place, finding.name)):
        place.remove(name)
    return "key removed" if finding.problem == GONE else "removed"


def _put_aside(place: Workspace, finding: Finding, jobs: JobStore | None) -> str:
    if jobs is not None and fnmatchcase(finding.name, "bands/*.parquet") and not finding.collection:
        jobs.connect()
        jobs.remove_docs({"output": finding.name})
    if not place.exists(finding.name):
        return "nothing to move"
    aside = f"{ASIDE}/{finding.name}"
    place.write_bytes(aside, place.read_bytes(finding.name))
    place.remove(finding.name)
    return f"moved to {aside}"


def _take_key(place: Workspace, stage: str) -> None:
    """Let a stage run again, though its manifest still tells what it had made."""
    name = f"stages/{stage}/manifest.json"
    try:
        manifest = place.read_json(name)
    except (FileNotFoundError, ValueError):
        return
    if manifest["key"]:
        place.write_json(name, {**manifest, "key": ""})


def _beside(place: Workspace, name: str) -> list[str]:
    """The other files of one piece of work, which must be there together or not at all."""
    folder, _, file = name.rpartition("/")
    if not folder.endswith("/parts"):
        return []
    stem = file.partition(".")[0]
    if folder == "candidates/parts":
        stem = stem.removesuffix("-rejected")
        return place.list(f"{folder}/{stem}-rejected.parquet") + place.list(f"{folder}/{stem}.*")
    return place.list(f"{folder}/{stem}.*")


def plan_repair(findings: Sequence[Finding]) -> list[tuple[str, str]]:
    """Collection (empty: the workspace) and stage of all that runs again, in the order of the pipeline."""
    order = list(COMMANDS)
    work = {(finding.collection, finding.rerun) for finding in findings if finding.rerun}
    return sorted(work, key=lambda one: (one[0], order.index(one[1])))


def made_with(place: Workspace, stage: str, settings: Settings) -> Settings:
    """The settings with those of the stage's last run, as its manifest holds them.

    Raises
    ------
    InputError
        If the stage reads reports or crystals, and those of the settings are not the ones that it was made from.
    """
    report = read_report(place, stage)
    if report and stage in STEPS:
        own = type(getattr(settings, STEPS[stage]))
        try:
            settings = settings.model_copy(update={STEPS[stage]: own.model_validate(report.settings)})
        except ValidationError as error:
            raise InputError(f"The settings in the manifest of {stage} are of another version of the code") from error
    if stage in ("clean", "crystals"):
        named = settings.supercon if stage == "clean" else ", ".join(settings.crystals)
        if report is None:
            raise InputError(f"What the stage {stage} was made from is no longer known")
        if shown_inputs(_given_inputs(place, stage, settings)) != report.inputs:
            raise InputError(f"The stage {stage} was made from something else than {named}: give its profile")
    return settings


def _given_inputs(place: Workspace, stage: str, settings: Settings) -> list[str]:
    """Content hashes of what the settings name, as the stage's own task makes them."""
    if stage == "crystals":
        return [source_hash(place, source) for source in as_sources(settings.crystals)]
    source = settings.supercon
    return [hash_source(str(fetch_mdr(settings.mdr, settings.fetch)) if source == MDR_SOURCE else source)]


def still_lost(workspace: Workspace, before: Sequence[Finding], after: Sequence[Finding]) -> list[Finding]:
    """What is damaged after a repair, and what was moved aside and did not come back."""
    told = {finding.place for finding in after}
    gone = [
        one for one in before if one.remedy == "aside" and one.place not in told and not workspace.exists(one.place)
    ]
    return sorted([*after, *gone], key=lambda finding: finding.place)
