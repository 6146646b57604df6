"""Bands that somebody has: VASP runs, pymatgen's band structures, tight-binding models, SuperBand, tables of our own.

A source is a file, a folder or a zip of such files. ``list_bands`` names what is in it without reading it, so that the
work can be shared out; ``load_bands`` reads one of them.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from tasks.exceptions import InputError
from tasks.families import family_of
from tasks.known import element_amounts
from tasks.kpoints import deduce_grid, point_group
from tasks.settings import GridSettings
from tasks.sources import read_bytes
from tasks.stages import hash_text
from tasks.superband_grids import SuperBandGrid, read_superband_material, superband_names
from tasks.tight_binding import TightBinding, read_wannier90_hr
from tasks.uniform_bands import DENSITIES, ROW_COLUMNS, UniformBands
from tasks.vasprun import SYMPREC

Kind = Literal["vasprun", "json", "wannier90", "table", "superband", "mp", "grid"]
SUFFIXES: dict[Kind, tuple[str, ...]] = {
    "vasprun": ("vasprun.xml", "vasprun.xml.gz"),
    "wannier90": ("_hr.dat", "_hr.dat.gz"),
    "table": (".parquet",),
    "superband": (".hdf5", ".h5"),
    "json": (".json", ".json.gz"),
}
LABELS = ("formula", "supercon_formula", "tc_kelvin", "year_first", "family", "parent_id")
ROWS_AT_ONCE = 100  # of a table, where each is looked at once
LISTED = "vasprun*.xml, *_hr.dat, *.json of pymatgen's BandStructure (all also .gz), *.parquet, SuperBand's *.hdf5"


class BandItem(BaseModel):
    """One band structure of a source, not read yet."""

    model_config = ConfigDict(frozen=True)

    material_id: str
    kind: Kind
    url: str
    row: int = 0
    row_group: int = 0  # that the row is counted in, where a table has millions of numbers a row
    content: str  # hash of the file, in a table of the bands; in a large file of its size, date and the name
    energy_above_hull_ev: float | None = None  # per atom, where the source says
    theoretical: bool | None = None  # never made in a laboratory, where the source says


def list_bands(source: str) -> list[BandItem]:
    """What band structures a source holds, sorted by place; names that occur twice get their folder before them.

    Raises
    ------
    InputError
        If there is nothing to be read as bands.
    """
    items = [item for url, name, kind in _files(source) for item in _items(url, name, kind)]
    if not items:
        raise InputError(f"{source} holds no bands; looked for {LISTED}")
    return items


def _files(source: str) -> list[tuple[str, str, Kind]]:
    """The files in a source: place, name, and what each is by its name."""
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        found = [(str(file), str(file.relative_to(path))) for file in files]
    elif source.lower().endswith(".zip"):
        try:
            members = sorted(fsspec.filesystem("zip", fo=source).find(""))
        except (OSError, ValueError) as error:
            raise InputError(f"{source} is not a readable zip file: {error}") from error
        found = [(f"zip://{member}::{source}", member) for member in members]
    else:
        found = [(source, Path(source).name)]
    return [(url, name, kind) for url, name in found if (kind := _kind(name))]


def _kind(name: str) -> Kind | None:
    """What a file is by its name."""
    plain = Path(name).name.lower()
    if plain.startswith("vasprun") and plain.endswith((".xml", ".xml.gz")):
        return "vasprun"
    return next((kind for kind, ends in SUFFIXES.items() if kind != "vasprun" and plain.endswith(ends)), None)


def _items(url: str, name: str, kind: Kind) -> list[BandItem]:
    """The band structures in a file; a table that is none of ours is one item, which will be refused."""
    if kind == "table" and not _table_problem(url):
        return [
            BandItem(material_id=material_id, kind=kind, url=url, row=row, content=content)
            for row, (material_id, content) in enumerate(_contents(url))
        ]
    if kind == "superband":
        state = Path(url).stat() if Path(url).is_file() else None
        mark = f"{state.st_size} {state.st_mtime_ns}" if state else ""
        return [
            BandItem(material_id=one, kind=kind, url=url, content=hash_text(url, mark, one))
            for one in superband_names(url)
        ]
    content = hashlib.sha256(read_bytes(url)).hexdigest()
    return [BandItem(material_id=_material_id(name, kind), kind=kind, url=url, content=content)]


def _material_id(name: str, kind: Kind) -> str:
    """A name for the material: the file's, or its folder's where the file has the usual name."""
    path = Path(name)
    stem = path.name
    for end in SUFFIXES[kind]:
        stem = stem.removesuffix(end)
    stem = stem.removesuffix(".xml.gz").removesuffix(".xml").strip("._-")
    folder = "/".join(part for part in path.parent.parts if part not in (".", "/"))
    return "/".join(part for part in (folder, stem) if part) or path.name


def _row(item: BandItem, columns: Sequence[str]) -> dict[str, Any]:
    """Those of the columns that the item's table has, of its row."""
    return dict(_table(item.url, tuple(columns)).slice(item.row, 1).to_pylist()[0])


@lru_cache(maxsize=2)
def _table(url: str, columns: tuple[str, ...]) -> pa.Table:
    """Columns of a table, kept for its other rows."""
    with fsspec.open(url, "rb") as file:
        names = set(pq.read_schema(file).names)
    return _read_table(url, [name for name in columns if name in names])


def _read_table(url: str, columns: Sequence[str]) -> pa.Table:
    with fsspec.open(url, "rb") as file:
        return pq.read_table(file, columns=list(columns))


def _table_problem(url: str) -> str:
    """Why a Parquet file is no table of bands, or nothing."""
    try:
        with fsspec.open(url, "rb") as file:
            names = pq.read_schema(file).names
    except (pa.ArrowInvalid, OSError) as error:
        return f"{url} is no readable Parquet file: {str(error).splitlines()[0]}"
    absent = [name for name in ROW_COLUMNS if name not in names]
    return f"{url} is no table of bands as in bands/: it lacks {', '.join(absent)}" if absent else ""


def _contents(url: str) -> list[tuple[str, str]]:
    """Name of each row of a table of bands, and the hash of its bands: as written there, or of the numbers."""
    with fsspec.open(url, "rb") as file:
        written = "bands_hash" in pq.read_schema(file).names
    if written:
        table = _read_table(url, ["material_id", "bands_hash"])
        return list(zip(*(column.to_pylist() for column in table.columns), strict=True))
    columns = list(ROW_COLUMNS)
    return [(row["material_id"], hash_text(*(repr(row[name]) for name in columns))) for row in _rows(url, columns)]


def _rows(url: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of a table, a few in memory at a time."""
    with fsspec.open(url, "rb") as file:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=ROWS_AT_ONCE, columns=list(columns)):
            yield from batch.to_pylist()


def read_labels(item: BandItem) -> dict[str, Any]:
    """What a table of bands tells of a material beside its bands: formula, Tc, year and the like, as far as it does.

    A Tc without a family gets the family of the composition.
    """
    if item.kind != "table":
        return {}
    row = _row(item, LABELS)
    labels = {name: value for name, value in row.items() if value is not None and str(value) != "nan"}
    if "tc_kelvin" in labels and "formula" in labels:
        labels = {"family": family_of(element_amounts(labels["formula"]))} | labels
    return labels


def load_bands(
    item: BandItem, settings: GridSettings, efermi: float | None = None
) -> UniformBands | TightBinding | SuperBandGrid:
    """Read one band structure.

    Parameters
    ----------
    settings
        The shape that finished grids must have.
    efermi
        Fermi level of tight-binding models whose files do not name one, eV.

    Raises
    ------
    InputError
        If the file is not what it is called, or the bands are not on a uniform grid.
    """
    if item.kind == "table":
        if problem := _table_problem(item.url):
            raise InputError(problem)
        return UniformBands.from_row(_row(item, (*ROW_COLUMNS, *DENSITIES)))
    if item.kind == "superband":
        return read_superband_material(item.url, item.material_id, bands=settings.bands, mesh=settings.mesh)
    if item.kind == "json":
        return bands_from_pymatgen(_read_json(item.url), item.material_id)
    with tempfile.TemporaryDirectory() as folder:
        path = _as_file(item.url, Path(folder))
        if item.kind == "vasprun":
            return UniformBands.from_vasprun(path, item.material_id)
        return read_wannier90_hr(path, efermi=efermi)


def _as_file(url: str, folder: Path) -> Path:
    """The file itself, or a copy of a member of an archive, with the .win beside a Wannier90 file."""
    if Path(url).is_file():
        return Path(url)
    inner, _, outer = url.removeprefix("zip://").partition("::")
    copies = [inner] + ([inner.split("_hr.dat")[0] + ".win"] if "_hr.dat" in inner else [])
    archive = fsspec.filesystem("zip", fo=outer)
    for member in copies:
        if archive.exists(member):
            (folder / Path(member).name).write_bytes(archive.cat_file(member))
    return folder / Path(inner).name


def _read_json(url: str) -> Any:
    try:
        return json.loads(read_bytes(url))
    except ValueError as error:
        raise InputError(f"{url} is not JSON: {error}") from error


def bands_from_pymatgen(document: Any, material_id: str) -> UniformBands:
    """Bands from the dictionary of a pymatgen (or IFermi) BandStructure of a uniform run.

    Raises
    ------
    InputError
        If it is none, runs along lines, or has no structure.
    """
    kind = document.get("@class") if isinstance(document, dict) else None
    if kind != "BandStructure":
        raise InputError(f"Bands of {material_id}: the JSON is of the class {kind!r}, not pymatgen's BandStructure")
    if "structure" not in document:
        raise InputError(
            f"Bands of {material_id}: the JSON holds no structure (pymatgen leaves it out where there are no "
            "projections); add it under the name 'structure'"
        )
    try:
        structure = document["structure"]
        sites = structure["sites"]
        lattice = np.asarray(structure["lattice"]["matrix"], dtype=np.float64)
        coords = np.asarray([site["abc"] for site in sites], dtype=np.float64)
        species = tuple(site["species"][0]["element"] for site in sites)
        channels = sorted(document["bands"], key=lambda spin: -int(spin))
        energies = np.asarray([document["bands"][spin] for spin in channels], dtype=np.float64)
        kpoints = np.asarray(document["kpoints"], dtype=np.float64)
        efermi = float(document["efermi"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"Bands of {material_id}: not a whole BandStructure of pymatgen ({error!r})") from error
    grid = deduce_grid(kpoints, point_group(lattice, coords, species, SYMPREC))
    weights = np.full(len(kpoints), 1 / max(len(kpoints), 1))
    return UniformBands(material_id, lattice, coords, species, kpoints, weights, grid, energies, efermi)
