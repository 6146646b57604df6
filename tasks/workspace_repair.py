"""Take away what is damaged, so that the next run makes exactly that again."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from jobflow import JobStore

from tasks.screening_kept import KEPT
from tasks.shards import forget_shards
from tasks.workspace import Workspace
from tasks.workspace_check import GONE, Finding, inner_workspace

ASIDE = "damaged"
FACTS = "grids/facts"
FROM_BANDS = ("grids/*", "crystals/ordered.parquet", "bands/*", "stages/grid/*")  # what a screening of a source keeps


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
