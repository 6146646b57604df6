"""Grids on disk: a sharded Zarr array that only grows, and a record of what stands in each shard.

``grids/energies.zarr`` is [slot, band, k1, k2, k3] float32, one chunk a slot, one object a shard. A shard is written
whole by one process and never opened again; its record ``grids/shards/<number>.json`` comes after it and says which
bands each slot was made from, with checksums. What has no record does not exist: a run that was killed leaves at most
an object without a record, which is written again.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.exceptions import InputError, MissingStageError, WorkspaceError
from tasks.workspace import Workspace

ARRAY = "grids/energies.zarr"
INDEX = "grids/index.parquet"
RECORDS = "grids/shards"

Grids = npt.NDArray[np.float32]


class SlotRecord(BaseModel):
    """One slot of a shard: a grid with its checksum, or a refusal with its reason."""

    model_config = ConfigDict(frozen=True)

    position: int
    material_id: str
    bands_hash: str
    crossing_bands: int = 0
    first_band: int = 0
    real_bands: int = 0
    sha256: str = ""
    refusal: str = ""


class ShardRecord(BaseModel):
    """One finished shard: its object's size and checksum, and its slots."""

    model_config = ConfigDict(frozen=True)

    shard: int
    size: int
    sha256: str
    slots: tuple[SlotRecord, ...]


def checksum(grid: Grids) -> str:
    """SHA-256 of a grid's little-endian float32 bytes in C order."""
    return hashlib.sha256(np.ascontiguousarray(grid, dtype="<f4").tobytes()).hexdigest()


def shard_object(shard: int) -> str:
    """Name of a shard's object in the workspace."""
    return f"{ARRAY}/c/{shard}/0/0/0/0"


def open_array(workspace: Workspace, read_only: bool = True) -> Any:
    """The Zarr array, or None where there is none."""
    import zarr

    if not workspace.exists(f"{ARRAY}/zarr.json"):
        return None
    with _zarr_errors(f"Cannot open {ARRAY} in {workspace.url}"):
        return zarr.open_array(_store(workspace, read_only), mode="r" if read_only else "r+")


def prepare_array(workspace: Workspace, key: str, shape: Sequence[int], shard_slots: int) -> int:
    """Make sure that an array for grids of this shape and key is there, and say how many slots its shards have.

    An array made with another key (other settings or another version of the interpolation) goes, with its records
    and its index. The shard size of an array never changes.

    Parameters
    ----------
    key
        Hash of all that the numbers depend on beside the bands.
    shape
        Of one grid, e.g. (18, 32, 32, 32).
    shard_slots
        Slots a shard of a new array.
    """
    import zarr
    from zarr.codecs import BloscCodec

    array = open_array(workspace)
    if array is not None and array.attrs.get("key") == key:
        return int(array.shards[0])
    for name in (INDEX, RECORDS, ARRAY):
        workspace.remove(name)
    with _zarr_errors(f"Cannot write {ARRAY} in {workspace.url}"):
        zarr.create_array(
            _store(workspace, read_only=False),
            shape=(0, *shape),
            chunks=(1, *shape),
            shards=(shard_slots, *shape),
            dtype="float32",
            compressors=BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"),
            fill_value=np.nan,
            dimension_names=("slot", "band", "k1", "k2", "k3"),
            attributes={"key": key, "unit": "eV relative to E_F"},
        )
    return shard_slots


def grow_array(workspace: Workspace, shards: int) -> None:
    """Room for at least so many shards. Called by one process, before others write."""
    array = open_array(workspace, read_only=False)
    slots = shards * array.shards[0]
    if array.shape[0] < slots:
        with _zarr_errors(f"Cannot write {ARRAY} in {workspace.url}"):
            array.resize((slots, *array.shape[1:]))


def write_shard(workspace: Workspace, shard: int, grids: Sequence[Grids | None], slots: Sequence[SlotRecord]) -> None:
    """Write one shard whole, then its record.

    Parameters
    ----------
    grids
        One for each slot from the shard's first on; None for a refused material, whose slot stays empty.
    slots
        Records of the same slots; positions and checksums are filled in here.
    """
    array = open_array(workspace, read_only=False)
    length = int(array.shards[0])
    if len(grids) != len(slots) or len(grids) > length or (shard + 1) * length > array.shape[0]:
        raise WorkspaceError(f"Shard {shard} of {ARRAY} has no room for {len(grids)} grids ({array.shape=}, {length=})")
    block = np.full((length, *array.shape[1:]), np.nan, dtype=np.float32)
    first = shard * length
    filled = []
    for place, (grid, slot) in enumerate(zip(grids, slots, strict=True)):
        sha256 = ""
        if grid is not None:
            block[place] = grid
            sha256 = checksum(grid)
        filled.append(slot.model_copy(update={"position": first + place, "sha256": sha256}))
    workspace.remove(shard_object(shard))  # Zarr would read what a killed run left there, and merge with it
    with _zarr_errors(f"Cannot write {shard_object(shard)} in {workspace.url}"):
        array[first : first + length] = block
    stored = workspace.read_bytes(shard_object(shard)) if any(slot.sha256 for slot in filled) else b""
    record = ShardRecord(shard=shard, size=len(stored), sha256=hashlib.sha256(stored).hexdigest(), slots=tuple(filled))
    workspace.write_json(f"{RECORDS}/{shard:06d}.json", record.model_dump(mode="json"))


def read_records(workspace: Workspace) -> list[ShardRecord]:
    """Records of all finished shards, by number. An unreadable record counts as none."""
    records = []
    for name in workspace.list(f"{RECORDS}/*.json"):
        with contextlib.suppress(ValidationError, ValueError):
            records.append(ShardRecord.model_validate(workspace.read_json(name)))
    return sorted(records, key=lambda record: record.shard)


def verify_shards(workspace: Workspace, thorough: bool = True) -> list[str]:
    """Names of the shards whose object does not agree with its record.

    Parameters
    ----------
    thorough
        Compare the checksum of every object's bytes; otherwise only that it is there with its size.
    """
    return [
        shard_object(record.shard) for record in read_records(workspace) if not _intact(workspace, record, thorough)
    ]


def discard_shards(workspace: Workspace, names: Sequence[str]) -> None:
    """Forget damaged shards, named as by ``verify_shards``: the next run makes their materials again."""
    for record in read_records(workspace):
        if shard_object(record.shard) in names:
            workspace.remove(f"{RECORDS}/{record.shard:06d}.json")
            workspace.remove(shard_object(record.shard))


def read_grids(workspace: Workspace, material_ids: Sequence[str] | None = None) -> tuple[pa.Table, Grids]:
    """Grids with their index, ordered by material_id, each compared with its checksum.

    Parameters
    ----------
    material_ids
        Materials wanted, all if None.

    Returns
    -------
    index
        Rows of GRID_INDEX.
    grids
        (n, bands, mesh, mesh, mesh) float32, eV relative to E_F, in the same order.

    Raises
    ------
    MissingStageError
        If no grids were made yet.
    InputError
        If a wanted material has no grid.
    WorkspaceError
        If a shard is damaged; it is named.
    """
    index = workspace.read_table(INDEX).sort_by("material_id")
    if material_ids is not None:
        index = index.filter(pc.is_in(index["material_id"], pa.array(sorted(set(material_ids)), pa.string())))
        absent = sorted(set(material_ids) - set(index["material_id"].to_pylist()))
        if absent:
            raise InputError(f"{len(absent)} materials have no grid in {workspace.url}, first {absent[0]!r}")
    array = open_array(workspace)
    if array is None:
        raise MissingStageError(f"{ARRAY} is not in the workspace {workspace.url}; run the grid stage")
    grids = np.empty((index.num_rows, *array.shape[1:]), dtype=np.float32)
    expected = zip(index["position"].to_pylist(), index["sha256"].to_pylist(), strict=True)
    for row, (position, sha256) in enumerate(expected):
        name = shard_object(position // array.shards[0])
        damaged = f"{name} in {workspace.url} is damaged; run the grid stage with verify"
        with _zarr_errors(damaged):
            grids[row] = array[position]
        if checksum(grids[row]) != sha256:
            raise WorkspaceError(damaged)
    return index, grids


def _intact(workspace: Workspace, record: ShardRecord, thorough: bool) -> bool:
    name = shard_object(record.shard)
    if record.size == 0:
        return True
    if not workspace.exists(name) or workspace.fs.size(workspace.path(name)) != record.size:
        return False
    return not thorough or workspace.fingerprint(name) == record.sha256


def _store(workspace: Workspace, read_only: bool) -> Any:
    from zarr.storage import FsspecStore, LocalStore

    if workspace.is_local:
        return LocalStore(workspace.local(ARRAY), read_only=read_only)
    return FsspecStore.from_url(f"{workspace.url.rstrip('/')}/{ARRAY}", read_only=read_only)


@contextlib.contextmanager
def _zarr_errors(sentence: str) -> Iterator[None]:
    """Failures of Zarr and its codecs as one WorkspaceError that begins with the sentence."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise WorkspaceError(f"{sentence}: {getattr(error, 'strerror', None) or error}") from error
