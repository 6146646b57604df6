"""Uniform band structures of the Materials Project's open data: its Delta table, and the files of the older layout.

Both lie on public object storage and are read in bulk there, since the REST API blocks those who read much. The schema
of the table is emmet-core's ``ElectronicBS`` (``emmet.core.band_theory``), of which only the columns that are used are
read; a file of the older layout is a pymatgen ``BandStructure`` as JSON. Neither holds the grid and the weights of the
k points: they follow from the points and the symmetry.
"""

import contextlib
import gzip
import itertools
import json
import zlib
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Any, TypeVar

import numpy as np

from tasks.exceptions import InputError
from tasks.kpoints import Floats, IntegerKpoints, Integers, deduce_grid, point_group
from tasks.mp_identifiers import table_identifier
from tasks.object_storage import PUBLIC_BUCKET, brief, delta_options, open_dataset, open_folder, unreadable
from tasks.stages import Rejection
from tasks.uniform_bands import SYMPRECS, UniformBands, select_bands

PUBLIC_TABLE = f"s3://{PUBLIC_BUCKET}/core/electronic-structure/bandstructures"
PUBLIC_FILES = f"s3://{PUBLIC_BUCKET}/bandstructures"

UNIFORM = "unknown"  # path_convention of a run that follows no path
SPINS = ("spin_up_bands", "spin_down_bands")
NEEDED = ("identifier", "structure", "qpoints", "efermi", "spin_up_bands")
COLUMNS = (*NEEDED, "spin_down_bands", "reciprocal_lattice")
FILTERED = ("path_convention", "band_gap")
CHANGED = "last_updated"  # when a row changed, in tables that say
FACTS = {"energy_above_hull": "energy_above_hull_ev", "theoretical": "theoretical"}  # of a material, likewise

KEPT_BANDS = 60  # of each spin, those nearest to E_F; a sample has 18
SAMPLE_BANDS = 18  # bands that must agree at equivalent k points
SAME_LATTICE = 0.01  # relative; largest misfit of reciprocal lattice and structure
ROWS_A_TIME = 64  # rows whose numbers are cast at once

Source = TypeVar("Source")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Batch:
    """Some materials of a source: those that are whole, and why the others are not."""

    bands: list[UniformBands]
    rejected: list[Rejection]


def read_mp_bands(
    url: str = PUBLIC_TABLE,
    *,
    identifiers: Collection[str] | None = None,
    max_gap_ev: float | None = 0.2,
    batch: int = 200,
    storage_options: Mapping[str, str] | None = None,
) -> Iterator[Batch]:
    """Uniform band structures of the table, streamed.

    Rows of other runs and with larger gaps are left out by predicates that reach the Parquet files, so most of their
    bytes are never read.

    Parameters
    ----------
    url
        Folder that holds the Delta table ``bandstructures``, local or on S3; without a Delta log, its Parquet files.
    identifiers
        Task ids (``mp-149``) or identifiers of the table (``aaaaaaft``); all rows if None. A material bears the name
        that it is asked for by.
    max_gap_ev
        Largest band gap, eV; None for any. Rows without a gap are read.
    batch
        Materials a batch, those refused included.
    storage_options
        As ``tasks.object_storage.open_dataset`` takes them; the public bucket needs none.

    Returns
    -------
    Batches in the order of the table. Rows that cannot be used are refused in one sentence, and so is an identifier
    without a row.

    Raises
    ------
    InputError
        For a folder without such a table, a column that it lacks, and an identifier that is none.
    RemoteError
        If the server does not answer.
    """
    _check_batch(batch)
    names = None if identifiers is None else {table_identifier(name): name for name in identifiers}
    dataset = open_table(url, storage_options)
    return _gather(_read_table(url, dataset, max_gap_ev, names), batch)


def open_table(url: str, storage_options: Mapping[str, str] | None = None) -> Any:
    """The table as a dataset of Arrow that has all columns needed; errors as of ``read_mp_bands``."""
    dataset = open_dataset(url, storage_options)
    absent = [name for name in (*COLUMNS, *FILTERED) if name not in dataset.schema.names]
    if absent:
        raise InputError(f"The table {url} lacks {', '.join(absent)}; its columns are {dataset.schema.names}")
    return dataset


def wanted_rows(identifiers: Iterable[str] | None, max_gap_ev: float | None) -> Any:
    """Predicate of uniform runs, with a gap that is small or unknown, of the materials asked for."""
    from pyarrow.dataset import field

    found = field("path_convention") == UNIFORM
    if max_gap_ev is not None:
        found &= (field("band_gap") <= max_gap_ev) | field("band_gap").is_null()
    if identifiers is not None:
        found &= field("identifier").isin(list(identifiers))
    return found


def row_groups(dataset: Any, predicate: Any) -> Iterator[Any]:
    """Row groups whose statistics allow for a row that is wanted.

    Read one by one, since the scanner of a whole dataset reads ahead of a slow consumer until the memory is full.
    """
    for file in dataset.get_fragments(filter=predicate):
        yield from file.split_by_row_group(filter=predicate, schema=dataset.schema)


def changed_files(url: str, since: date) -> set[str]:
    """Names of the files that a Delta table wrote on a day or later; InputError where there is no log of it."""
    import pyarrow as pa
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    try:
        table = DeltaTable(url, storage_options=delta_options(url, None))
        log = pa.table(table.get_add_actions(flatten=True))
    except (DeltaError, ValueError) as error:
        raise InputError(f"{url} does not tell when its rows changed: {brief(error)}") from error
    except OSError as error:
        raise unreadable(url, error) from error
    first = 1000 * datetime.combine(since, datetime.min.time(), UTC).timestamp()  # the log counts milliseconds
    times = zip(log["path"].to_pylist(), log["modification_time"].to_pylist(), strict=True)
    return {str(path).rpartition("/")[2] for path, time in times if time >= first}


@contextlib.contextmanager
def table_errors(url: str) -> Iterator[None]:
    """Errors of Arrow and of the storage as InputError or RemoteError."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(f"The table {url} is damaged or has other columns than expected: {brief(error)}") from error
    except OSError as error:
        raise unreadable(url, error) from error


def missing_rows(url: str, dataset: Any, names: Mapping[str, str], max_gap_ev: float | None) -> list[Rejection]:
    """Why each of some materials has no row that is wanted: unknown to the table, a run along lines, or a large gap.

    Parameters
    ----------
    names
        By the table's identifiers.

    Raises
    ------
    RemoteError
        If the server does not answer.
    """
    from pyarrow.dataset import field

    wanted = field("identifier").isin(list(names))

    def read(file: Any) -> list[dict[str, Any]] | None:
        try:
            with table_errors(url):
                columns = ["identifier", *FILTERED]
                return list(file.to_table(schema=dataset.schema, columns=columns, filter=wanted).to_pylist())
        except InputError:
            return None

    files = list(map_ahead(read, dataset.get_fragments(filter=wanted), 8)) if names else []
    readable = "" if None not in files else " in what can be read of it"
    runs: dict[str, list[dict[str, Any]]] = {identifier: [] for identifier in names}
    for row in itertools.chain.from_iterable(found for found in files if found):
        runs[str(row["identifier"])].append(row)
    return [
        Rejection(name, f"{url} has {_why_missing(runs[identifier], max_gap_ev, f'{name} ({identifier})')}{readable}")
        for identifier, name in names.items()
    ]


def _why_missing(runs: Sequence[Mapping[str, Any]], max_gap_ev: float | None, name: str) -> str:
    if not runs:
        return f"no run of {name}"
    uniform = [run["band_gap"] for run in runs if run["path_convention"] == UNIFORM]
    if not uniform:
        lines = ", ".join(sorted({str(run["path_convention"]) for run in runs}))
        return f"no uniform run of {name}, only one along lines ({lines})"
    if max_gap_ev is not None and all(gap is not None and gap > max_gap_ev for gap in uniform):
        return f"a gap of {min(uniform):.3f} eV for {name}, above the limit of {max_gap_ev} eV"
    return f"a uniform run of {name}, which the other choices (elements, since) leave out"


def twice(identifier: str, name: str) -> Rejection:
    """The refusal of a row whose identifier came before."""
    return Rejection(name, f"Bands of {name}: the table holds {identifier} more than once; its first row counts")


def read_rows(rows: Any, names: Sequence[str]) -> Iterator[UniformBands | Rejection]:
    """Bands, or why there are none, of each row of a record batch with the columns ``COLUMNS``, named as given."""
    import pyarrow as pa

    matrices = pa.large_list(pa.large_list(pa.float64()))
    numeric = ("qpoints", "reciprocal_lattice", *SPINS)
    columns = {name: rows[name].cast(matrices) if name in numeric else rows[name] for name in COLUMNS}
    for index, name in enumerate(names):
        try:
            yield _read_row({column: values[index] for column, values in columns.items()}, name)
        except InputError as error:
            yield Rejection(name, str(error))


def read_mp_files(
    url: str,
    identifiers: Iterable[str],
    *,
    max_gap_ev: float | None = 0.2,
    batch: int = 200,
    threads: int = 4,
    storage_options: Mapping[str, str] | None = None,
) -> Iterator[Batch]:
    """Uniform band structures of the older layout, one ``<task_id>.json.gz`` each.

    Parameters
    ----------
    url
        Folder of the files, local or on S3; the public one is ``PUBLIC_FILES``.
    identifiers
        Task ids, as the files are named.
    max_gap_ev
        Largest band gap, eV; None for any. A file without a gap is read.
    batch
        Materials a batch, those refused included.
    threads
        Files that are fetched at a time.
    storage_options
        As for ``read_mp_bands``.

    Returns
    -------
    Batches in the order of the identifiers; each identifier is either read or refused.

    Raises
    ------
    InputError
        For settings that are not allowed and a storage that is not known.
    """
    _check_batch(batch)
    if threads < 1:
        raise InputError(f"{threads=} must be at least 1")
    files, root = open_folder(url, storage_options)

    def read(name: str) -> UniformBands | Rejection:
        return _read_file(files, f"{root}/{name}.json.gz", name, max_gap_ev)

    return _gather(map_ahead(read, identifiers, threads), batch)


def _check_batch(batch: int) -> None:
    if batch < 1:
        raise InputError(f"{batch=} must be at least 1")


def _gather(results: Iterator[UniformBands | Rejection], size: int) -> Iterator[Batch]:
    while some := list(itertools.islice(results, size)):
        yield Batch(
            [one for one in some if isinstance(one, UniformBands)], [one for one in some if isinstance(one, Rejection)]
        )


def map_ahead(read: Callable[[Source], Result], sources: Iterable[Source], threads: int) -> Iterator[Result]:
    """Results in order, with no more than two sources a thread under way or waiting."""
    rest = iter(sources)
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque(pool.submit(read, source) for source in itertools.islice(rest, 2 * threads))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(read, source) for source in itertools.islice(rest, 1))
            yield result


# The table


def _read_table(
    url: str, dataset: Any, max_gap_ev: float | None, names: Mapping[str, str] | None
) -> Iterator[UniformBands | Rejection]:
    predicate = wanted_rows(names, max_gap_ev)

    def read(group: Any) -> Any:
        return group.to_table(schema=dataset.schema, columns=list(COLUMNS), filter=predicate)

    seen: set[str] = set()
    with table_errors(url):
        for table in map_ahead(read, row_groups(dataset, predicate), 1):
            for rows in table.to_batches(max_chunksize=ROWS_A_TIME):
                identifiers = [str(identifier) for identifier in rows["identifier"].to_pylist()]
                named = [(names or {}).get(identifier, identifier) for identifier in identifiers]
                for identifier, name, result in zip(identifiers, named, read_rows(rows, named), strict=True):
                    yield twice(identifier, name) if identifier in seen else result
                    seen.add(identifier)
    missing = {identifier: name for identifier, name in (names or {}).items() if identifier not in seen}
    yield from missing_rows(url, dataset, missing, max_gap_ev)


def _read_row(row: Mapping[str, Any], name: str) -> UniformBands:
    absent = [column for column in NEEDED if not row[column].is_valid]
    if absent:
        raise InputError(f"Bands of {name}: the table's row has no {', '.join(absent)}")
    reciprocal = row["reciprocal_lattice"]
    return _uniform_bands(
        name,
        structure=row["structure"].as_py(maps_as_pydicts="lossy"),
        kpoints=_matrix(row["qpoints"], name, "qpoints"),
        channels=[_matrix(row[spin], name, spin) for spin in SPINS if row[spin].is_valid and len(row[spin])],
        efermi=row["efermi"].as_py(),
        reciprocal=_matrix(reciprocal, name, "reciprocal_lattice") if reciprocal.is_valid else None,
    )


def _matrix(scalar: Any, name: str, column: str) -> Floats:
    """A list of lists of numbers out of Arrow's buffers; InputError where the lists differ in length."""
    lists = scalar.values
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    if len(lengths) == 0 or (lengths != lengths[0]).any():
        sizes = f"lists of {lengths.min()} to {lengths.max()}" if len(lengths) else "no"
        raise InputError(f"Bands of {name}: {column} is not a rectangular table of numbers, it has {sizes} numbers")
    return np.asarray(lists.flatten().to_numpy(zero_copy_only=False), dtype=np.float64).reshape(len(lengths), -1)


# The files of the older layout


def _read_file(files: Any, path: str, name: str, max_gap_ev: float | None) -> UniformBands | Rejection:
    try:
        data = files.cat_file(path)
    except FileNotFoundError:
        return Rejection(name, f"There is no file {path}")
    except OSError as error:
        return Rejection(name, f"Cannot read {path}: {brief(error)}", retryable=not isinstance(error, PermissionError))
    try:
        return _read_document(_unwrap(json.loads(gzip.decompress(data))), name, max_gap_ev)
    except InputError as error:
        return Rejection(name, str(error))
    except (OSError, EOFError, zlib.error, ValueError) as error:
        return Rejection(name, f"{path} is cut short or not JSON in gzip: {brief(error)}")
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        return Rejection(name, f"{path} is not a band structure as pymatgen writes it ({error!r})")


def _unwrap(document: Any) -> Any:
    """The band structure itself: the bucket's files hold a list of one document that has it under ``data``."""
    while isinstance(document, list):
        document = document[0]
    return document.get("data", document)


def _read_document(document: Mapping[str, Any], name: str, max_gap_ev: float | None) -> UniformBands:
    gap = (document.get("band_gap") or {}).get("energy")
    if gap is not None and max_gap_ev is not None and gap > max_gap_ev:
        raise InputError(f"Bands of {name}: the gap of {gap:.3f} eV is above {max_gap_ev} eV")
    if document.get("structure") is None:
        raise InputError(f"Bands of {name}: the file has no structure")
    channels = [
        _numbers(document["bands"][spin], name, f"bands of spin {spin}")
        for spin in ("1", "-1")
        if spin in document["bands"]
    ]
    lattice = document.get("lattice_rec")
    return _uniform_bands(
        name,
        structure=document["structure"],
        kpoints=_numbers(document["kpoints"], name, "kpoints"),
        channels=channels,
        efermi=float(document["efermi"]),
        reciprocal=_numbers(lattice["matrix"], name, "lattice_rec") if lattice else None,
    )


def _numbers(values: Any, name: str, column: str) -> Floats:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"Bands of {name}: {column} is not a rectangular table of numbers") from error


# What both give


def _uniform_bands(
    name: str,
    *,
    structure: str | Mapping[str, Any],
    kpoints: Floats,
    channels: Sequence[Floats],
    efermi: float,
    reciprocal: Floats | None,
) -> UniformBands:
    """Bands at the door: those near E_F, with the grid and the weights that the source does not tell.

    Parameters
    ----------
    channels
        (n_bands, n_k) eV of each spin.
    reciprocal
        (3, 3) reciprocal lattice of the k points, in any unit; None where unknown.
    """
    shapes = {channel.shape for channel in channels}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise InputError(f"Bands of {name}: the spins have bands of the shapes {[c.shape for c in channels]}")
    raw = UniformBands.from_row(
        {
            "material_id": name,
            "structure": structure,
            "kpoints": kpoints,
            "weights": np.full(len(kpoints), 1 / max(len(kpoints), 1)),
            "grid": (1, 1, 1),
            "energies": np.stack(channels),
            "efermi": efermi,
        }
    )
    if reciprocal is not None:
        _check_reciprocal(raw, reciprocal)
    bands = replace(raw, grid=_find_grid(raw))
    points, rotations = bands.symmetric_kpoints(select_bands(bands.means, SAMPLE_BANDS))
    bands = replace(bands, weights=_star_weights(points, rotations))
    return replace(bands, energies=_nearest(bands))


def _check_reciprocal(bands: UniformBands, reciprocal: Floats) -> None:
    """InputError where the k points belong to another cell than the structure; rotations of the axes are allowed."""
    if reciprocal.shape != (3, 3):
        raise InputError(f"Bands of {bands.material_id}: the reciprocal lattice has the shape {reciprocal.shape}")
    product = (reciprocal @ reciprocal.T) @ (bands.lattice @ bands.lattice.T)
    scale = np.trace(product) / 3
    if not scale > 0 or np.abs(product / scale - np.eye(3)).max() > SAME_LATTICE:
        raise InputError(f"Bands of {bands.material_id}: the reciprocal lattice is not that of the structure")


def _find_grid(bands: UniformBands) -> Integers:
    """Divisions of the grid, with the tightest tolerance of the symmetry search that makes the points a whole one."""
    for symprec in SYMPRECS[:-1]:
        try:
            return deduce_grid(bands.kpoints, point_group(bands.lattice, bands.coords, bands.species, symprec))
        except InputError:
            continue
    try:
        return deduce_grid(bands.kpoints, point_group(bands.lattice, bands.coords, bands.species, SYMPRECS[-1]))
    except InputError as error:
        raise InputError(f"Bands of {bands.material_id}: {error}") from error


def _star_weights(points: IntegerKpoints, rotations: Integers) -> Floats:
    """(n_k,) shares of the grid, sum 1; listed points of one star share it equally."""
    stars = points.stars(rotations)[0]
    images = (points.points @ rotations) % points.modulus
    steps = points.modulus // points.grid
    on_grid = ((images - points.shifted * (steps // 2)) % steps == 0).all(axis=-1)
    first = np.unique(points.codes(images)[on_grid], return_index=True)[1]
    sizes = np.bincount(np.broadcast_to(stars, on_grid.shape)[on_grid][first], minlength=stars.max() + 1)
    weights = (sizes / np.bincount(stars))[stars]
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def _nearest(bands: UniformBands) -> Floats:
    """Energies of the bands that have a spin channel near E_F, in their order."""
    distances = np.abs(bands.means.reshape(bands.energies.shape[:2])).min(axis=0)
    return bands.energies[:, np.sort(np.argsort(distances, kind="stable")[:KEPT_BANDS])]
