"""Whether a workspace is whole: every table, shard and network against what vouches for it.

Outputs of stages are compared with the hashes in their manifests, shards with the checksums in their records, versions
of networks with the hashes in their configuration. Finer pieces, such as bands and parts of a screening, have no hash
and must only be readable, with the declared columns. Collections are workspaces of their own and are checked the same
way. Nothing is changed here.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, computed_field

from tasks.bands import BUNDLED_TABLE
from tasks.events import StageEvent, publish
from tasks.exceptions import MissingStageError, WorkspaceError
from tasks.screening_kept import KEPT
from tasks.shards import ARRAY, INDEX, RECORDS, ShardRecord, damaged_objects, open_array, read_records
from tasks.stages import StageReport, read_report
from tasks.workspace import Workspace
from tasks.workspace_tables import COMMANDS, UNREADABLE, find_problem, training_stage

STAGE = "check"
GONE = "is not there"
POINTER = "models/*/latest.json"  # moves with each training, so no manifest vouches for it

# How a finding is repaired: removed and made again by its stage, with its whole shard, moved aside, or not at all.
Remedy = Literal["remake", "shard", "aside", "none"]
# Files without a hash: where they are, the stage that makes them, and what is done with a damaged one.
PIECES: tuple[tuple[str, str, Remedy], ...] = (
    ("crystals/sources/*.parquet", "crystals", "aside"),
    ("crystals/sources/*.pages/*.parquet", "crystals", "remake"),
    ("bands/*.parquet", "bands", "aside"),
    ("bands/failed/*.json", "bands", "remake"),
    ("jobs/documents/*.json.gz", "bands", "remake"),
    ("jobs/data/*.json.gz", "bands", "remake"),
    ("candidates/parts/*", "screen", "remake"),
    ("candidates/*.json", "screen", "remake"),
    ("validation/time-machine/*.parquet", "time-machine", "remake"),
    ("benchmarks/s2s/parts/*", "benchmark-s2s", "remake"),
)
# Nothing is lost with these: what they help to make is there, or is asked of a database, which may answer otherwise.
SPARE = ("crystals/sources/*", "jobs/*", "stages/*/memo/*")
FROM_SOURCES = ("clean", "crystals", "match", "order", "bands", "grid", "s2s")  # in a collection, of what it was made


class Finding(BaseModel):
    """One thing that is damaged or missing.

    Attributes
    ----------
    collection
        Folder of the collection in the workspace; empty for the workspace itself.
    name
        The file, in the workspace or collection.
    again
        What makes it again.
    stage
        Whose manifest vouches for it; None without one.
    rerun
        The stage that makes it again from what the workspace and the settings name; empty where none does.
    """

    model_config = ConfigDict(frozen=True)

    collection: str
    name: str
    what: str
    problem: str
    again: str
    remedy: Remedy
    stage: str | None = None
    shard: int | None = None
    rerun: str = ""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def place(self) -> str:
        """The file, seen from the workspace."""
        return f"{self.collection}/{self.name}" if self.collection else self.name


@dataclass(frozen=True)
class Place:
    """The workspace itself, or a collection in it with its folder."""

    workspace: Workspace
    home: Workspace
    folder: str = ""

    def find(self, name: str, what: str, problem: str, remedy: Remedy, made_by: str = "", **more: Any) -> Finding:
        """A finding here, with the command of the stage that makes the file."""
        again = more.pop("again", "") or self.command(made_by)
        spare = any(fnmatchcase(name, pattern) for pattern in SPARE)
        more["rerun"] = made_by if remedy != "none" and not spare and self._can_rerun(made_by) else ""
        return Finding(
            collection=self.folder, name=name, what=what, problem=problem, again=again, remedy=remedy, **more
        )

    def _can_rerun(self, stage: str) -> bool:
        """Whether a stage runs again without being told a source that is noted nowhere."""
        if stage in ("pretrain-bnas", "benchmark-s2s"):
            return False
        from_sources = stage in FROM_SOURCES or (stage == "screen" and self.workspace.exists(KEPT))
        return not (self.folder and from_sources)

    def command(self, stage: str) -> str:
        """What runs a stage here; a collection is made from its sources again, which it does not name."""
        command = COMMANDS.get(stage, "meissner discover")
        if not self.folder:
            return command
        name = self.folder.rpartition("/")[2]
        if self.workspace.exists(KEPT) and stage in ("bands", "order", "grid", "screen", "time-machine"):
            return f"meissner screen SOURCES --collection {name}"
        if stage in ("grid", "screen"):
            return f"meissner {stage} {'SOURCES ' if stage == 'grid' else ''}--collection {name}"
        return f"{command} --workspace {self.workspace.url}"


Check = Callable[[], list[Finding]]


def check_workspace(workspace: Workspace) -> list[Finding]:
    """All that is damaged or missing, by place; the progress goes to the listeners of ``tasks.events``."""
    checks = [check for place in find_places(workspace) for check in _plan(place)]
    findings: dict[str, Finding] = {}
    for done, check in enumerate(checks):
        publish(StageEvent(STAGE, done, len(checks)))
        for finding in check():
            findings.setdefault(finding.place, finding)
    publish(StageEvent(STAGE, len(checks), len(checks)))
    return sorted(findings.values(), key=lambda finding: finding.place)


def find_places(workspace: Workspace, home: Workspace | None = None, folder: str = "") -> Iterator[Place]:
    """The workspace and all collections in it."""
    yield Place(workspace, home or workspace, folder)
    for name in workspace.list("collections/*"):
        if workspace.fs.isdir(workspace.path(name)):
            inner = f"{folder}/{name}" if folder else name
            yield from find_places(inner_workspace(workspace, name), workspace, inner)


def inner_workspace(workspace: Workspace, folder: str) -> Workspace:
    """A folder of a workspace as a workspace of its own."""
    return Workspace(f"{workspace.url.rstrip('/')}/{folder}")


def _plan(place: Place) -> list[Check]:
    """Every check of a place, small enough each that their number shows the progress."""
    reports: list[StageReport] = []
    checks: list[Check] = []
    for name in place.workspace.list("stages/*/manifest.json"):
        stage = name.split("/")[1]
        try:
            if report := read_report(place.workspace, stage):
                reports.append(report)
        except (ValueError, WorkspaceError):
            found = [place.find(name, "manifest", "cannot be read", "remake", stage)]
            checks.append(partial(list[Finding], found))
    owners = _owners(reports)
    checks += [partial(_check_output, place, name, *owner) for name, owner in owners.items()]
    checks += _plan_grids(place)
    checks += [partial(_check_model, place, name, owners) for name in place.workspace.list("models/*")]
    for pattern, stage, remedy in _pieces(place):
        for name in place.workspace.list(pattern):
            if name not in owners and place.workspace.fs.isfile(place.workspace.path(name)):
                checks.append(partial(_check_piece, place, name, stage, remedy))
    return checks


def _owners(reports: list[StageReport]) -> dict[str, tuple[str, str]]:
    """Stage and hash of each output; of several stages that wrote it, the last counts."""
    ordered = sorted(reports, key=lambda report: report.finished)
    return {name: (report.stage, sha256) for report in ordered for name, sha256 in report.outputs.items()}


def _pieces(place: Place) -> Iterator[tuple[str, str, Remedy]]:
    yield from PIECES
    for name in place.workspace.list("models/*"):
        yield f"{name}/*/parts/*", training_stage(name.split("/")[1]), "remake"
    for name in place.workspace.list("stages/*/memo"):
        yield f"{name}/*.parquet", name.split("/")[1], "remake"


def _check_output(place: Place, name: str, stage: str, sha256: str) -> list[Finding]:
    if fnmatchcase(name, POINTER):
        return []
    problem = GONE
    if place.workspace.exists(name):
        data = place.workspace.read_bytes(name)
        same = hashlib.sha256(data).hexdigest() == sha256
        problem = find_problem(name, data) or ("" if same else f"is not what the stage {stage} wrote")
    return [place.find(name, "output", problem, "remake", stage, stage=stage)] if problem else []


def _check_piece(place: Place, name: str, stage: str, remedy: Remedy) -> list[Finding]:
    """A file that no hash vouches for; of a part of a screening, all files must be there."""
    try:
        problem = find_problem(name, place.workspace.read_bytes(name))
    except MissingStageError:  # another process was done with it
        return []
    if fnmatchcase(name, "candidates/parts/*.parquet") and not name.endswith("-rejected.parquet"):
        part = name.removesuffix(".parquet")
        beside = [f"{part}{ending}" for ending in ("-rejected.parquet", ".json")]
        missing = [one for one in beside if not place.workspace.exists(one)]
        problem = problem or (f"stands without {missing[0].rpartition('/')[2]}" if missing else "")
    if remedy == "aside" and not problem.startswith(UNREADABLE):
        remedy = "none"  # whole, but of another version of the code: too dear to be taken away
    what = "adopted bands" if name == BUNDLED_TABLE else "piece"
    return [place.find(name, what, problem, remedy, stage)] if problem else []


def _plan_grids(place: Place) -> list[Check]:
    workspace = place.workspace
    records = workspace.list(f"{RECORDS}/*.json")
    if not records and not workspace.exists(ARRAY):
        return []
    checks: list[Check] = [partial(_check_array, place), partial(_check_index, place)]
    checks += [partial(_check_shard, place, name) for name in records]
    return checks + [partial(_check_facts, place, name) for name in workspace.list("grids/facts/*.json")]


def _check_array(place: Place) -> list[Finding]:
    try:
        problem = "" if open_array(place.workspace) is not None else GONE
    except WorkspaceError as error:
        problem = f"cannot be read: {error}"
    name = f"{ARRAY}/zarr.json"
    return [place.find(name, "array of grids", problem, "remake", "grid", stage="grid")] if problem else []


def _check_shard(place: Place, name: str) -> list[Finding]:
    """All objects of a shard by size and checksum."""
    shard = int(name.rpartition("/")[2].removesuffix(".json"))
    try:
        record = ShardRecord.model_validate(place.workspace.read_json(name))
    except (ValidationError, ValueError):
        return [place.find(name, "record of a shard", "cannot be read", "shard", "grid", stage="grid", shard=shard)]
    damaged = dict.fromkeys(damaged_objects(place.workspace, record), "size or checksum is not that of its record")
    damaged |= {one: GONE for one in damaged if not place.workspace.exists(one)}
    return [
        place.find(one, "shard", problem, "shard", "grid", stage="grid", shard=shard)
        for one, problem in damaged.items()
    ]


def _check_facts(place: Place, name: str) -> list[Finding]:
    shard = int(name.rpartition("/")[2].removesuffix(".json"))
    problem = find_problem(name, place.workspace.read_bytes(name))
    more = {"stage": "grid", "shard": shard}
    return [place.find(name, "facts of a shard", problem, "shard", "grid", **more)] if problem else []


def _check_index(place: Place) -> list[Finding]:
    """Whether the shards hold what the index names."""
    try:
        index = place.workspace.read_table(INDEX, ["position", "sha256"]).to_pylist()
    except (MissingStageError, WorkspaceError, ValueError):  # told where its hash is compared
        return []
    held = {slot.position: slot.sha256 for record in read_records(place.workspace) for slot in record.slots}
    lost = sum(held.get(row["position"]) != row["sha256"] for row in index)
    problem = f"names {lost} grids that no shard holds"
    return [place.find(INDEX, "index of grids", problem, "remake", "grid", stage="grid")] if lost else []


def _check_model(place: Place, folder: str, owners: Mapping[str, object]) -> list[Finding]:
    """Both pointers of a network and all its versions; files with a hash in a manifest are compared elsewhere."""
    workspace, model = place.workspace, folder.split("/")[1]
    stage = training_stage(model)
    findings = []
    configured = workspace.list(f"{folder}/*/config.json")
    versions = {name.split("/")[2] for name in configured}
    maker = "screen" if _is_lent(place, f"{folder}/latest.json") else stage
    pointers: tuple[tuple[str, Remedy, str, str], ...] = (
        ("latest", "remake", maker, ""),
        ("promoted", "aside", "", "meissner models promote VERSION"),
    )
    for pointer, remedy, made_by, again in pointers:
        name = f"{folder}/{pointer}.json"
        if not workspace.exists(name):
            continue
        try:
            named = _named_versions(workspace.read_json(name))
        except (ValueError, KeyError, TypeError):
            findings.append(place.find(name, "pointer", "cannot be read", remedy, made_by, again=again))
            continue
        if lost := [version for version in named if version not in versions]:
            problem = f"points to the version {lost[-1]}, which {GONE}"
            own: Remedy = "remake" if pointer == "latest" else "none"
            findings.append(place.find(name, "pointer", problem, own, made_by, again=again, stage=stage))
    for config in configured:
        findings += _check_version(place, config.removesuffix("/config.json"), stage, owners)
    return findings


def _is_lent(place: Place, name: str) -> bool:
    """Whether a collection has this file of a network from the workspace; a screening copies what is not there."""
    return bool(place.folder) and place.home.exists(name)


def _named_versions(pointer: Mapping[str, Any]) -> list[str]:
    return [str(entry["version"]) for entry in [*pointer.get("promotions", ()), pointer]]


def _check_version(place: Place, folder: str, stage: str, owners: Mapping[str, object]) -> list[Finding]:
    """Every file of a version that was stored whole."""
    workspace = place.workspace
    there = [name for name in workspace.list(f"{folder}/*") if workspace.fs.isfile(workspace.path(name))]
    try:
        config = workspace.read_json(f"{folder}/config.json")
        members, hashes = config.get("members"), dict(config.get("sha256", {}))  # versions of before have no hashes
    except (ValueError, AttributeError):
        members, hashes = 0, {}
    needed = ["config.json", "metrics.json"]
    if members is None:
        needed += ["weights.safetensors"]
    else:
        needed += [f"weights-{number}.safetensors" for number in range(members)]
        needed += ["predictions.parquet", "folds.parquet"]
    findings = []
    for name in sorted({*there, *(f"{folder}/{file}" for file in needed)} - set(owners)):
        problem = _compare(name, workspace.read_bytes(name), hashes) if name in there else GONE
        if not problem:
            continue
        if _is_lent(place, name):
            findings.append(place.find(name, "network", problem, "remake", "screen"))
            continue
        again = f"{place.command(stage)}, with the settings in {folder}/config.json"
        findings.append(place.find(name, "network", problem, "aside", again=again))
    return findings


def _compare(name: str, data: bytes, hashes: Mapping[str, str]) -> str:
    """What is wrong with a file of a version, read and by the hash in its configuration."""
    told = hashes.get(name.rpartition("/")[2], "")
    same = not told or hashlib.sha256(data).hexdigest() == told
    return find_problem(name, data) or ("" if same else "is not what the training wrote")
