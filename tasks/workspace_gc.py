"""What nothing in a workspace refers to any more, and its removal.

Sources, bands, grids and the outputs of stages are never named here, and nothing that is younger than a day, for it may
belong to a run that is under way.
"""

import gzip
import json
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict

from tasks.bands import ORDERED_TABLE
from tasks.exceptions import MissingStageError
from tasks.job_store import DATA, DOCUMENTS
from tasks.screening_chunks import STAGE as SCREEN
from tasks.screening_plan import PARTS, PLAN
from tasks.stages import read_report
from tasks.workspace import Workspace
from tasks.workspace_check import Place, find_places

YOUNG = timedelta(days=1)
SCRATCH = re.compile(r"^\.(.+\.[0-9a-f]{8}\.part|write-test-[0-9a-f]{32})$")  # as tasks.workspace names them
ELSEWHERE = ("prefect/", "scratch/")  # folders that others write in
BLOB = re.compile(r'"blob_uuid":\s*"([^"]+)"')
NAMING = ("candidates/candidates.parquet", "validation/pairs.parquet")  # tables that name versions of networks


class Leftover(BaseModel):
    """Something that nothing refers to: its files, and when the youngest of them was written."""

    model_config = ConfigDict(frozen=True)

    place: str
    why: str
    files: tuple[str, ...]
    size: int
    written: datetime


def find_leftovers(workspace: Workspace, now: bool = False) -> list[Leftover]:
    """All that nothing refers to, in the workspace and its collections, by place.

    Parameters
    ----------
    now
        Also what is younger than a day.

    Raises
    ------
    WorkspaceError
        If a table that names what is in use is damaged: nothing is removed then.
    """
    places = list(find_places(workspace))
    named = {version for place in places for version in _named_versions(place.workspace)}
    named |= {start for place in places if place.folder for start in _starts(_configs(place.workspace).values())}
    found = [*_scratch(workspace)]
    for place in places:
        found += [*_models(place, named), *_parts(place), *_jobs(place)]
    oldest = datetime.now(UTC) - YOUNG
    return sorted((one for one in found if now or one.written < oldest), key=lambda one: one.place)


def remove_leftovers(workspace: Workspace, leftovers: Sequence[Leftover]) -> int:
    """Remove them, and give how many bytes that freed."""
    for leftover in leftovers:
        for name in leftover.files:
            workspace.remove(name)
    return sum(leftover.size for leftover in leftovers)


def _leftover(place: Place, name: str, why: str, files: Sequence[str]) -> Leftover | None:
    """Files or folders of a place as one leftover; None where they have gone meanwhile."""
    fs, size, written = place.workspace.fs, 0, []
    for file in files:
        for path, info in fs.find(place.workspace.path(file), detail=True).items():
            size += info["size"]
            written.append(_aware(fs.modified(path)))
        if place.workspace.is_local:
            written.append(place.workspace.modified(file))  # of an empty folder, too
    if not written:
        return None
    inner = f"{place.folder}/" if place.folder else ""
    return Leftover(
        place=inner + name, why=why, files=tuple(inner + file for file in files), size=size, written=max(written)
    )


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _scratch(workspace: Workspace) -> Iterator[Leftover]:
    """Scratch files and folders of writes that were killed; an object store has none."""
    if not workspace.is_local:
        return
    root = len(workspace.root) + 1
    found: set[str] = set()
    for path in workspace.fs.find(workspace.root, withdirs=True):
        steps = str(path)[root:].split("/")
        place = next((number for number, step in enumerate(steps) if SCRATCH.match(step)), None)
        if place is not None:
            found.add(posixpath.join(*steps[: place + 1]))
    home = Place(workspace, workspace)
    for name in sorted(found):
        if not name.startswith(ELSEWHERE) and (one := _leftover(home, name, "left by a write that broke off", [name])):
            yield one


def _named_versions(workspace: Workspace) -> set[str]:
    """Versions of networks that candidates and pairs name."""
    named: set[str] = set()
    for table in NAMING:
        if not workspace.exists(table):
            continue
        columns = ["bnas_version", "s2snet_version"] if table.startswith("candidates") else ["bnas_version"]
        for column in workspace.read_table(table, columns).columns:
            named.update(filter(None, column.unique().to_pylist()))
    return named


def _models(place: Place, named: set[str]) -> Iterator[Leftover]:
    """Whole versions that are not latest, never promoted, not named, not what a stage has made, and no version's start.

    A version that is not whole may be a training that goes on.
    """
    workspace = place.workspace
    configs = _configs(workspace)
    kept = {(name.split("/")[1], version) for name in configs for version in _pointed(workspace, name.split("/")[1])}
    for manifest in workspace.list("stages/*/manifest.json"):
        report = read_report(workspace, manifest.split("/")[1])
        outputs = [output.split("/") for output in (report.outputs if report else ())]
        kept |= {(parts[1], parts[2]) for parts in outputs if parts[0] == "models" and len(parts) > 3}
    idle = [name for name in configs if tuple(name.split("/")[1:3]) not in kept and name.split("/")[2] not in named]
    starts = _starts(document for name, document in configs.items() if name not in idle)
    for name in idle:
        folder, version = name.removesuffix("/config.json"), name.split("/")[2]
        if version not in starts:
            why = "neither latest nor ever promoted, and no candidate names it"
            if one := _leftover(place, folder, why, [folder]):
                yield one


def _configs(workspace: Workspace) -> dict[str, dict[str, Any]]:
    """What each whole version says of itself, by its file."""
    return {name: workspace.read_json(name) for name in workspace.list("models/*/*/config.json")}


def _starts(configs: Iterable[dict[str, Any]]) -> set[str]:
    """The pre-trainings that networks began with."""
    return {str(config["pretrained"]) for config in configs if config.get("pretrained")}


def _pointed(workspace: Workspace, model: str) -> Iterator[str]:
    for pointer in ("latest", "promoted"):
        if workspace.exists(name := f"models/{model}/{pointer}.json"):
            document = workspace.read_json(name)
            yield str(document["version"])
            yield from (str(entry["version"]) for entry in document.get("promotions", ()))


def _parts(place: Place) -> Iterator[Leftover]:
    """Parts that the newest screening was not made of; none while another one has not finished."""
    workspace = place.workspace
    if not workspace.exists(PLAN) or read_report(workspace, SCREEN) is None:
        return
    named, planned = set(workspace.read_json(PLAN)["parts"]), workspace.modified(PLAN)
    others: dict[str, list[str]] = {}
    for file in workspace.list(f"{PARTS}/*"):
        part = file.removeprefix(f"{PARTS}/").partition(".")[0].removesuffix("-rejected")
        if part and part not in named:  # scratch files begin with a dot
            others.setdefault(part, []).append(file)
    if any(workspace.modified(file) > planned for files in others.values() for file in files):
        return
    for part, files in others.items():
        if one := _leftover(place, f"{PARTS}/{part}", "not of the newest screening", files):
            yield one


def _jobs(place: Place) -> Iterator[Leftover]:
    """Documents of jobs, with their large parts, of materials that are no longer among the ordered crystals."""
    workspace = place.workspace
    documents = workspace.list(f"{DOCUMENTS}/*.json.gz")
    if not documents or not workspace.exists(ORDERED_TABLE):
        return
    there = set(workspace.read_table(ORDERED_TABLE, ["material_id"])["material_id"].to_pylist())
    for name in documents:
        try:
            text = gzip.decompress(workspace.read_bytes(name)).decode()
        except MissingStageError:
            continue
        material = (json.loads(text).get("metadata") or {}).get("material_id")
        if material is None or material in there:
            continue
        blobs = [blob for uuid in BLOB.findall(text) for blob in workspace.list(f"{DATA}/{_safe(uuid)}.*gz")]
        if one := _leftover(place, name, f"a job of {material}, which is gone", [name, *blobs]):
            yield one


def _safe(uuid: str) -> str:
    return re.sub(r"[^A-Za-z0-9-]", "_", uuid)
