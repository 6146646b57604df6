"""Crystals as they lie in files: facts in a CSV, CIF and POSCAR files, folders and archives of them, JSON.

Reading is in two steps: ``read_crystals`` finds the crystals of a source as texts, cheaply; ``build_structure`` turns
one text into a structure, in whatever process. A crystal that cannot be read is one refused item, never the end.
"""

import fnmatch
import gzip
import io
import json
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from pymatgen.core.composition import Composition
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure
from pymatgen.symmetry.groups import SpaceGroup

from tasks.archives import MAX_FILE_BYTES, TAR_COMPRESSIONS, is_archive, read_archive
from tasks.ase_json import ase_rows, structure_from_ase
from tasks.crystal_parsers import structure_from_cif, structure_from_poscar
from tasks.exceptions import InputError
from tasks.formulas import SYMBOLS, FormulaError, parse_formula
from tasks.optimade import structure_from_optimade
from tasks.sources import decode_text, folder_files, read_bytes, read_cells

FACTS_COLUMNS = ("crystal_id", "formula", "space_group", "a", "b", "c", "alpha", "beta", "gamma", "sites")
KINDS = {
    "cif": ("*.cif",),
    "poscar": ("POSCAR*", "CONTCAR*", "*.vasp", "*.poscar"),
    "json": ("*.json",),
}
CRYSTAL_NAMES = ", ".join(pattern for patterns in KINDS.values() for pattern in patterns)
SAME_SITE = 1e-5  # fractional; images of a site this near are one site
FORMULA_TOLERANCE = 0.01  # relative disagreement between a written formula and the built structure
MAX_LENGTH = 1000.0  # angstrom; no crystal has a longer cell
MIN_VOLUME = 0.5  # cubic angstrom an atom; the densest solids have above 1


@dataclass(frozen=True)
class CrystalText:
    """One crystal before it is parsed. ``problem`` says why it cannot be, where that is already known."""

    crystal_id: str
    kind: str
    text: str
    source: str
    reference: str | None = None
    energy_above_hull_ev: float | None = None
    licence: str | None = None
    problem: str | None = None


def read_crystals(source: str) -> Iterator[CrystalText]:
    """The crystals of a source, in a fixed order.

    Parameters
    ----------
    source
        A CSV of facts, a CIF or POSCAR file, a folder, zip or tar file of such files, or pymatgen JSON (a structure, a
        list of structures or of records with ``material_id`` and ``structure``, or a mapping from id to structure).

    Raises
    ------
    InputError
        If the source as a whole cannot be read; a bad member comes out as an item with a ``problem``.
    """
    path = Path(source)
    if path.is_dir():
        yield from _read_folder(path)
    elif is_archive(path.name):
        yield from _read_archive(source)
    elif path.name.lower().endswith((".csv", ".csv.gz")):
        yield from _read_facts(source)
    elif kind := crystal_kind(path.name):
        yield from _read_text(path.name.removesuffix(".gz"), kind, decode_text(read_bytes(source), source), source)
    else:
        check_there(source)
        allowed = [CRYSTAL_NAMES, "*.csv", "*.zip", *(f"*{ending}" for ending in TAR_COMPRESSIONS)]
        raise InputError(f"{source} is no source of crystals; allowed are a folder, {', '.join(allowed)}")


def check_there(source: str) -> None:
    """Raise InputError for a path where nothing is, or that may not be looked at; a URL is not asked."""
    try:
        missing = "://" not in source and not Path(source).exists()
    except OSError as error:
        raise InputError(f"Cannot read {source}: {error.strerror}") from error
    if missing:
        raise InputError(f"Cannot read {source}: there is no such file or folder")


def check_single(path: Path) -> None:
    """Raise InputError for what is not there, and for folders and archives, where one file is expected."""
    check_there(str(path))
    if path.is_dir():
        raise InputError(f"{path} is a folder; give its files: {path}/*")
    if is_archive(path.name):
        raise InputError(f"{path} is an archive; unpack it and give its files: FOLDER/*")


def crystal_kind(name: str) -> str | None:
    """How a file is read, by its name; None where it is no crystal."""
    name = name.removesuffix(".gz")
    matching = (
        kind for kind, patterns in KINDS.items() if any(fnmatch.fnmatch(name.lower(), p.lower()) for p in patterns)
    )
    return next(matching, None)


def _read_text(name: str, kind: str, text: str, source: str) -> Iterator[CrystalText]:
    """The crystals in the text of one file."""
    stem = PurePosixPath(name).stem
    if kind != "json":
        yield CrystalText(stem, kind, text, source)
        return
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not valid JSON: {error}") from error
    if (rows := ase_rows(document)) is not None:
        for number, row in rows.items():
            name = stem if len(rows) == 1 else f"{stem}-{number}"
            yield CrystalText(name, "ase", json.dumps(row), source)
        return
    if isinstance(document, dict) and "lattice" not in document and "structure" not in document:
        entries = [(str(key), value) for key, value in document.items()]
    else:
        listed = document if isinstance(document, list) else [document]
        entries = [(stem if len(listed) == 1 else f"{stem}-{number}", v) for number, v in enumerate(listed, start=1)]
    for default_id, entry in entries:
        yield _read_entry(default_id, entry, source)


def _read_entry(default_id: str, entry: Any, source: str) -> CrystalText:
    """A structure in JSON, bare or in a record with its id and energy."""
    if not isinstance(entry, dict):
        return CrystalText(default_id, "json", "", source, problem="is not a structure in pymatgen's JSON")
    name = next((str(entry[key]) for key in ("material_id", "crystal_id", "id") if entry.get(key)), default_id)
    energy = next((entry[key] for key in ("energy_above_hull_ev", "energy_above_hull") if key in entry), None)
    energy = float(energy) if isinstance(energy, int | float) else None
    text = json.dumps(entry.get("structure", entry))
    return CrystalText(name, "json", text, source, entry.get("reference"), energy)


def _read_member(name: str, data: bytes, source: str) -> Iterator[CrystalText]:
    """The crystals in one member of a folder or archive; what cannot be read becomes a problem."""
    item = CrystalText(name, "cif", "", source)
    kind = crystal_kind(PurePosixPath(name).name)
    if len(data) > MAX_FILE_BYTES:
        yield replace(item, problem=f"is larger than {MAX_FILE_BYTES} bytes")
    elif kind is None:
        yield replace(item, problem="is no crystal file: its name is neither that of a CIF, a POSCAR nor a JSON file")
    else:
        try:
            text = decode_text(_unpacked(data) if name.endswith(".gz") else data, name)
            yield from _read_text(name.removesuffix(".gz"), kind, text, source)
        except InputError as error:
            yield replace(item, problem=str(error))


def _unpacked(data: bytes) -> bytes:
    """The content of a gzipped member."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            found = file.read(MAX_FILE_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot be unpacked: {error}") from error
    if len(found) > MAX_FILE_BYTES:
        raise InputError(f"is larger than {MAX_FILE_BYTES} bytes")
    return found


def _read_folder(folder: Path) -> Iterator[CrystalText]:
    files = folder_files(folder)
    if not files:
        raise InputError(f"The folder {folder} holds no files")
    for path in files:
        name = path.relative_to(folder).as_posix().encode(errors="replace").decode()
        with path.open("rb") as file:
            yield from _read_member(name, file.read(MAX_FILE_BYTES + 1), folder.name)


def _read_archive(source: str) -> Iterator[CrystalText]:
    """Crystals of an archive, sorted by the members' names, as those of a folder are."""
    name = Path(source).name
    read = []
    for member in read_archive(source):
        if member.problem:
            crystals = [CrystalText(member.name, "cif", "", name, problem=member.problem)]
        else:
            crystals = list(_read_member(member.name, member.data, name))
        read.append((member.name, crystals))
    for _, crystals in sorted(read, key=itemgetter(0)):
        yield from crystals


def _read_facts(source: str) -> Iterator[CrystalText]:
    """Rows of a CSV of facts, each kept as JSON of its cells."""
    header, rows = read_cells(decode_text(read_bytes(source), source), source)
    names = [name.lower() for name in header]
    missing = [column for column in FACTS_COLUMNS if column not in names]
    if missing:
        raise InputError(
            f"{source} lacks {', '.join(missing)}: it has {', '.join(header)}; needed are {', '.join(FACTS_COLUMNS)}, "
            "allowed besides are reference and energy_above_hull_ev"
        )
    for number, row in enumerate(rows, start=1):
        facts = dict(zip(names, row, strict=False))
        name = facts.get("crystal_id") or f"row {number}"
        item = CrystalText(name, "facts", json.dumps(facts), Path(source).name, facts.get("reference") or None)
        if len(row) != len(header):
            yield replace(item, problem=f"its row has {len(row)} cells, the header {len(header)}")
            continue
        try:
            energy = facts.get("energy_above_hull_ev")
            yield replace(item, energy_above_hull_ev=float(energy) if energy else None)
        except ValueError:
            yield replace(item, problem=f"energy_above_hull_ev {energy!r} is not a number")


def build_structure(crystal: CrystalText) -> Structure:
    """The structure in a crystal's text, as it is written there; InputError with the reason where there is none."""
    if crystal.problem:
        raise InputError(crystal.problem)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            structure = _BUILDERS[crystal.kind](crystal.text)
        except InputError:
            raise
        except Exception as error:  # parsers fail in every way on damaged files
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"cannot be read as {crystal.kind}, it may be cut short or damaged: {reason[:300]}"
            ) from error
    symbols = {getattr(species, "symbol", str(species)) for species in structure.composition}
    unknown = sorted(symbols - SYMBOLS - {"D", "T"})
    if unknown:
        raise InputError(f"holds what is no element: {', '.join(unknown)}")
    if not len(structure):
        raise InputError(f"holds no atoms ({'; '.join(str(w.message) for w in heard[:1])})")
    _check_cell(structure)
    return structure


def _check_cell(structure: Structure) -> None:
    """Raise InputError for numbers that are no cell or position: compiled code fails on some without a word."""
    if not (np.isfinite(structure.lattice.matrix).all() and np.isfinite(structure.frac_coords).all()):
        raise InputError("holds a cell or position that is not a finite number")
    if max(structure.lattice.abc) > MAX_LENGTH or structure.volume < MIN_VOLUME * structure.composition.num_atoms:
        lengths = ", ".join(f"{length:g}" for length in structure.lattice.abc)
        raise InputError(
            f"has {structure.composition.num_atoms:g} atoms in a cell of {structure.volume:g} cubic angstrom and edges "
            f"of {lengths} angstrom; allowed are at least {MIN_VOLUME} cubic angstrom an atom, at most {MAX_LENGTH:g} "
            "angstrom"
        )


def _from_json(text: str) -> Structure:
    return Structure.from_dict(json.loads(text))


def _from_ase(text: str) -> Structure:
    return structure_from_ase(json.loads(text))


def _from_facts(text: str) -> Structure:
    facts = json.loads(text)
    numbers = {name: _fraction(facts[name], name) for name in FACTS_COLUMNS[3:9]}
    if not all(0 < value < (180 if name in FACTS_COLUMNS[6:9] else 1000) for name, value in numbers.items()):
        raise InputError(f"no cell has the lengths and angles {list(numbers.values())}")
    species: list[Composition] = []
    coordinates = []
    for site in facts["sites"].split(";"):
        words = site.split()
        if len(words) != 4:
            raise InputError(f"site {site.strip()!r} is not 'SPECIES x y z'")
        species.append(Composition(_species(words[0])))
        coordinates.append([_fraction(word, "coordinate") for word in words[1:]])
    lattice = Lattice.from_parameters(*numbers.values())
    structure = _fill_cell(facts["space_group"], lattice, species, coordinates)
    _check_formula(structure, facts["formula"])
    return structure


def _fill_cell(group: str, lattice: Lattice, species: list[Composition], coordinates: list[list[float]]) -> Structure:
    """All sites of a cell from those of one asymmetric unit."""
    name = SpaceGroup.from_int_number(int(group)).symbol if group.isdigit() and 0 < int(group) <= 230 else group
    try:
        operations, compatible = _space_group(name)
    except ValueError as error:
        raise InputError(f"{group!r} is no space group: {error}") from error
    if not compatible(lattice):
        raise InputError(f"space group {group} does not allow the cell {lattice.abc} {lattice.angles}")
    all_species, all_sites = [], []
    for kind, position in zip(species, coordinates, strict=True):
        images = operations[:, :3, :3] @ position + operations[:, :3, 3]
        apart = images[:, None] - images[None]
        same = np.all(np.abs(apart - np.rint(apart)) < SAME_SITE, axis=-1)
        distinct = images[same.argmax(axis=1) == np.arange(len(images))] % 1.0
        all_sites.extend(distinct[np.lexsort(np.round(distinct, 5).T[::-1])])
        all_species.extend([kind] * len(distinct))
    return Structure(lattice, all_species, all_sites)


@lru_cache(maxsize=300)
def _space_group(name: str) -> tuple[np.ndarray, Callable[[Lattice], bool]]:
    """Operations (n, 4, 4) on fractional coordinates, and whether a cell fits; pymatgen takes a second for a group."""
    group = SpaceGroup(name)
    return np.array([operation.affine_matrix for operation in group.symmetry_ops]), group.is_compatible


def _fraction(text: str, name: str) -> float:
    """A decimal number or a fraction such as 1/3."""
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        raise InputError(f"{name} {text!r} is not a number or fraction") from None


def _species(text: str) -> dict[str, float]:
    """Occupancies by symbol from ``El`` or ``El:occupancy+El:occupancy``."""
    occupancies: dict[str, float] = {}
    for part in text.split("+"):
        symbol, _, occupancy = part.partition(":")
        if symbol not in SYMBOLS:
            raise InputError(f"{symbol!r} is not an element")
        occupancies[symbol] = occupancies.get(symbol, 0.0) + (_fraction(occupancy, "occupancy") if occupancy else 1.0)
    if not all(value > 0 for value in occupancies.values()) or sum(occupancies.values()) > 1 + 1e-6:
        raise InputError(f"the occupancies {text!r} are not above 0 or sum to more than 1")
    return occupancies


def _check_formula(structure: Structure, formula: str) -> None:
    """Raise InputError unless the structure has the written composition."""
    try:
        written = parse_formula(formula, float("inf"))
    except FormulaError as error:
        raise InputError(str(error)) from error
    built = structure.composition.get_el_amt_dict()
    total, written_total = sum(built.values()), sum(written.values())
    differences = [
        abs(built.get(symbol, 0) / total - written.get(symbol, 0) / written_total) for symbol in {*built, *written}
    ]
    if sum(differences) > FORMULA_TOLERANCE:
        found = structure.composition.reduced_formula
        raise InputError(f"the formula says {formula}, but its space group and sites give {found}")


_BUILDERS = {
    "cif": structure_from_cif,
    "poscar": structure_from_poscar,
    "json": _from_json,
    "ase": _from_ase,
    "facts": _from_facts,
    "optimade": structure_from_optimade,
}
