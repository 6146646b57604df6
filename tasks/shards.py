"""Grids on disk: a sharded Zarr array that only grows, or the coefficients they are made of, and records of both.

``grids/energies.zarr`` is [slot, band, k1, k2, k3] float32, one chunk a slot, one object a shard. A shard is written
whole by one process and never opened again; its record ``grids/shards/<number>.json`` comes after it and says which
bands each slot was made from, with checksums. What has no record does not exist: a run that was killed leaves at most
an object without a record, which is written again. A shard may hold star coefficients (``tasks/coefficients.py``) in
place of the grids or beside them.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, ValidationError

from models.star_bands import StarBands
from tasks.coefficients import FOLDER, coefficients_object, read_coefficients, write_coefficients
from tasks.exceptions import InputError, MissingStageError, WorkspaceError
from tasks.object_storage import store_errors, store_options
from tasks.workspace import Workspace

ARRAY = "grids/energies.zarr"
INDEX = "grids/index.parquet"
RECORDS = "grids/shards"

Grids = npt.NDArray[np.float32]
Store = Literal["grids", "coefficients", "both"]


class SlotRecord(BaseModel):
    """One slot of a shard: a grid with its checksum, or a refusal with its reason."""

    model_config = ConfigDict(frozen=True)

    position: int
    material_id: str
    bands_hash: str
    crossing_bands: int = 0
    first_band: int = 0
    real_bands: int = 0
    error_ev: float | None = None
    sha256: str = ""
    refusal: str = ""


class StoredObject(BaseModel):
    """Size and checksum of an object as it was written."""

    model_config = ConfigDict(frozen=True)

    size: int
    sha256: str


class ShardRecord(BaseModel):
    """One finished shard: its objects by name in the workspace, none where all was refused, and its slots."""

    model_config = ConfigDict(frozen=True)

    shard: int
    objects: dict[str, StoredObject]
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


def prepare_array(
    workspace: Workspace, key: str, shape: Sequence[int], shard_slots: int, store: Store = "grids"
) -> int:
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
    store
        What its shards hold.
    """
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

    array = open_array(workspace)
    if array is not None and array.attrs.get("key") == key:
        return int(array.shards[0])
    for name in (INDEX, RECORDS, ARRAY, FOLDER):
        workspace.remove(name)
    with _zarr_errors(f"Cannot write {ARRAY} in {workspace.url}"):
        zarr.create_array(
            _store(workspace, read_only=False),
            shape=(0, *shape),
            chunks=(1, *shape),
            shards=(shard_slots, *shape),
            dtype="float32",
            compressors=(BloscCodec(cname="lz4", clevel=9, shuffle="shuffle"), Crc32cCodec()),
            fill_value=np.nan,
            dimension_names=("slot", "band", "k1", "k2", "k3"),
            attributes={"key": key, "unit": "eV relative to E_F", "store": store},
        )
    return shard_slots


def grow_array(workspace: Workspace, shards: int) -> None:
    """Room for at least so many shards. Called by one process, before others write."""
    array = open_array(workspace, read_only=False)
    slots = shards * array.shards[0]
    if array.shape[0] < slots:
        with _zarr_errors(f"Cannot write {ARRAY} in {workspace.url}"):
            array.resize((slots, *array.shape[1:]))


def write_shard(
    workspace: Workspace,
    shard: int,
    grids: Sequence[Grids | None],
    slots: Sequence[SlotRecord],
    stars: Sequence[StarBands | None] = (),
) -> None:
    """Write one shard whole, then its record.

    Parameters
    ----------
    grids
        One for each slot from the shard's first on; None for a refused material, whose slot stays empty.
    slots
        Records of the same slots; positions and checksums are filled in here.
    stars
        The bands that the grids were made of, None where there are none: such a grid is always stored itself.
    """
    array = open_array(workspace, read_only=False)
    length, store = int(array.shards[0]), array.attrs["store"]
    if len(grids) != len(slots) or len(grids) > length or (shard + 1) * length > array.shape[0]:
        raise WorkspaceError(f"Shard {shard} of {ARRAY} has no room for {len(grids)} grids ({array.shape=}, {length=})")
    block = np.full((length, *array.shape[1:]), np.nan, dtype=np.float32)
    first = shard * length
    filled, coefficients = [], {}
    for place, (grid, slot) in enumerate(zip(grids, slots, strict=True)):
        bands = stars[place] if stars and store != "grids" else None
        if bands:
            coefficients[first + place] = bands
        if grid is not None and not (bands and store == "coefficients"):
            block[place] = grid
        sha256 = "" if grid is None else checksum(grid)
        filled.append(slot.model_copy(update={"position": first + place, "sha256": sha256}))
    for name in (shard_object(shard), coefficients_object(shard)):
        workspace.remove(name)  # Zarr would read what a killed run left there, and merge with it
    with _zarr_errors(f"Cannot write {shard_object(shard)} in {workspace.url}"):
        array[first : first + length] = block  # nothing is written where all is empty
    if coefficients:
        write_coefficients(workspace, shard, coefficients)
    names = [name for name in (shard_object(shard), coefficients_object(shard)) if workspace.exists(name)]
    record = ShardRecord(shard=shard, objects={name: _stored(workspace, name) for name in names}, slots=tuple(filled))
    workspace.write_json(_record_name(shard), record.model_dump(mode="json"))


def _stored(workspace: Workspace, name: str) -> StoredObject:
    data = workspace.read_bytes(name)
    return StoredObject(size=len(data), sha256=hashlib.sha256(data).hexdigest())


def _record_name(shard: int) -> str:
    return f"{RECORDS}/{shard:06d}.json"


def read_records(workspace: Workspace) -> list[ShardRecord]:
    """Records of all finished shards, by number. An unreadable record counts as none."""
    records = []
    for name in workspace.list(f"{RECORDS}/*.json"):
        with contextlib.suppress(ValidationError, ValueError):
            records.append(ShardRecord.model_validate(workspace.read_json(name)))
    return sorted(records, key=lambda record: record.shard)


def verify_shards(workspace: Workspace, thorough: bool = True) -> list[str]:
    """Names of the objects of shards that do not agree with their records.

    Parameters
    ----------
    thorough
        Compare the checksum of every object's bytes; otherwise only that it is there with its size.
    """
    return [name for record in read_records(workspace) for name in damaged_objects(workspace, record, thorough)]


def damaged_objects(workspace: Workspace, record: ShardRecord, thorough: bool = True) -> list[str]:
    """Names of one shard's objects that do not agree with its record; see ``verify_shards``."""
    return [name for name, stored in record.objects.items() if not _intact(workspace, name, stored, thorough)]


def discard_shards(workspace: Workspace, names: Sequence[str]) -> None:
    """Forget damaged shards, named as by ``verify_shards``: the next run makes their materials again."""
    forget_shards(workspace, [one.shard for one in read_records(workspace) if set(names) & set(one.objects)])


def forget_shards(workspace: Workspace, shards: Sequence[int]) -> None:
    """Remove shards by number, with the index: in fresh shards, their materials may get other positions."""
    for shard in shards:
        for name in (_record_name(shard), shard_object(shard), coefficients_object(shard)):
            workspace.remove(name)
    if shards:
        workspace.remove(INDEX)


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
    index = read_index(workspace, material_ids)
    reader = ShardReader(workspace)
    grids = np.empty((index.num_rows, *reader.shape), dtype=np.float32)
    for row, position in enumerate(index["position"].to_pylist()):
        reader.grid(position, out=grids[row])
    return index, grids


def read_index(workspace: Workspace, material_ids: Sequence[str] | None = None) -> pa.Table:
    """Rows of GRID_INDEX of the materials wanted, all if None, by material_id.

    Raises
    ------
    MissingStageError
        If no grids were made yet.
    InputError
        If a wanted material has no grid.
    """
    index = workspace.read_table(INDEX).sort_by("material_id")
    if material_ids is None:
        return index
    index = index.filter(pc.is_in(index["material_id"], pa.array(sorted(set(material_ids)), pa.string())))
    if absent := sorted(set(material_ids) - set(index["material_id"].to_pylist())):
        raise InputError(f"{len(absent)} materials have no grid in {workspace.url}, first {absent[0]!r}")
    return index


class ShardReader:
    """Reads slots of the shards, whichever way they are stored, and checks what it reads.

    Parameters
    ----------
    kept
        How many shards' coefficients stay in memory; a few hundred kB each.

    Attributes
    ----------
    shape
        Of one grid, e.g. (18, 32, 32, 32).
    slots
        How many a shard has.

    Raises
    ------
    MissingStageError
        If no grids were made yet.
    """

    def __init__(self, workspace: Workspace, kept: int = 64) -> None:
        array = open_array(workspace)
        if array is None:
            raise MissingStageError(f"{ARRAY} is not in the workspace {workspace.url}; run the grid stage")
        self._workspace, self._array, self._store = workspace, array, array.attrs["store"]
        self.shape: tuple[int, ...] = array.shape[1:]
        self.slots = int(array.shards[0])
        self._coefficients = lru_cache(maxsize=kept)(self._read_coefficients)

    def bands(self, position: int) -> StarBands | None:
        """The coefficients in a slot; None where only a grid is stored."""
        return None if self._store == "grids" else self._coefficients(position // self.slots).get(position)

    def grid(self, position: int, out: Grids) -> None:
        """Fill ``out`` with the grid in a slot, as it was stored or made from its coefficients.

        Raises
        ------
        WorkspaceError
            If what is stored is not what was written; the object is named.
        """
        if self._store == "coefficients" and (bands := self.bands(position)):
            import torch

            from models.star_grids import fill_grids

            fill_grids(torch.from_numpy(out)[None], [bands])
            return
        damaged = self._damaged(shard_object(position // self.slots))
        with _zarr_errors(damaged):
            out[:] = self._array[position]  # each grid has a checksum of its own, which Zarr compares
        if np.isnan(out.flat[0]):  # what Zarr gives where there is no object
            raise WorkspaceError(damaged)

    def _read_coefficients(self, shard: int) -> dict[int, StarBands]:
        record = ShardRecord.model_validate(self._workspace.read_json(_record_name(shard)))
        name = coefficients_object(shard)
        if name not in record.objects:
            return {}
        if not _intact(self._workspace, name, record.objects[name], thorough=True):
            raise WorkspaceError(self._damaged(name))
        return read_coefficients(self._workspace, shard)

    def _damaged(self, name: str) -> str:
        return f"{name} in {self._workspace.url} is damaged; run the grid stage with verify"


def _intact(workspace: Workspace, name: str, stored: StoredObject, thorough: bool) -> bool:
    if not workspace.exists(name) or workspace.fs.size(workspace.path(name)) != stored.size:
        return False
    return not thorough or workspace.fingerprint(name) == stored.sha256


def _store(workspace: Workspace, read_only: bool) -> Any:
    from zarr.storage import FsspecStore, LocalStore

    if workspace.is_local:
        return LocalStore(workspace.local(ARRAY), read_only=read_only)
    url = f"{workspace.url.rstrip('/')}/{ARRAY}"
    return FsspecStore.from_url(url, storage_options=store_options(url), read_only=read_only)


@contextlib.contextmanager
def _zarr_errors(sentence: str) -> Iterator[None]:
    """Failures of Zarr and its codecs as one WorkspaceError that begins with the sentence."""
    try:
        yield
    except (RuntimeError, ValueError, KeyError) as error:
        raise WorkspaceError(f"{sentence}: {error}") from error
    except store_errors() as error:
        raise WorkspaceError(f"{sentence}: {getattr(error, 'strerror', None) or error}") from error
