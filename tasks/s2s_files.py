"""Crystals with or without a class, read from files line by line: what cannot be used is refused, the rest is read.

Nothing is ever unpickled: files are JSON lines, plain or gzipped, or crystals in any form of ``tasks.crystal_files``.
"""

import gzip
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pymatgen.core import Composition, Structure

from models.crystals import CrystalArrays, check_arrays, check_sites, crystal_arrays
from models.exceptions import ModelInputError
from tasks.exceptions import InputError
from tasks.stages import Rejection

Disorder = Literal["refuse", "order"]
ENERGY = "formation_energy_per_atom"  # eV an atom, as the Materials Project calls it
LINES = (".jsonl", ".jsonl.gz")


@dataclass(frozen=True, eq=False)
class CrystalDataset:
    """Crystals that come with a class instead of a temperature, or with neither.

    Attributes
    ----------
    names, formulas, chemical_systems
        One a crystal.
    labels
        (crystals,) int64, 1 for a superconductor; -1 where the file has no classes.
    energies
        (crystals,) float64 formation energies, eV an atom; NaN where none is given.
    """

    names: list[str]
    formulas: list[str]
    chemical_systems: list[str]
    labels: np.ndarray
    crystals: list[CrystalArrays]
    rejected: list[Rejection]
    energies: np.ndarray


def dataset_from_s2s(path: str | Path, disorder: Disorder = "refuse", *, labelled: bool = True) -> CrystalDataset:
    """Read the S2S dataset (Liu et al.), or crystals in its layout, from JSON lines, plain or gzipped.

    A line holds ``superconductor`` (0 or 1, if ``labelled``), ``lattice`` (3 x 3, angstrom), ``atomic_numbers`` and
    ``frac_coords``; in place of these three it may hold ``structure``, a crystal as pymatgen writes it, whose partial
    occupancies are refused or ordered. ``formation_energy_per_atom`` (eV) may stand beside them. A line that cannot be
    used is refused, and the rest is read.

    Raises
    ------
    InputError
        If the file is not there, cannot be read, or has no usable line.
    """
    path = Path(path)
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            return _read_lines(file, path, disorder, labelled)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as JSON lines: {error}") from error


def read_unlabelled(source: str, disorder: Disorder = "refuse") -> CrystalDataset:
    """Crystals to learn from without a class: JSON lines, or whatever ``tasks.crystal_files`` reads."""
    if source.endswith(LINES):
        return dataset_from_s2s(source, disorder, labelled=False)
    from tasks.crystal_files import build_structure, read_crystals

    names, crystals, rejected = [], [], []
    for text in read_crystals(source):
        try:
            crystals.append(as_arrays(build_structure(text), disorder))
            names.append(text.crystal_id)
        except (InputError, ModelInputError) as error:
            rejected.append(Rejection(text.crystal_id, str(error)))
    return _as_dataset(names, [-1] * len(names), [np.nan] * len(names), crystals, rejected, source)


def as_arrays(structure: Structure, disorder: Disorder) -> CrystalArrays:
    """Arrays of a structure, ordered first where that is asked; InputError or ModelInputError with the reason."""
    return check_sites(crystal_arrays(without_disorder(structure, disorder)))


def without_disorder(structure: Structure, disorder: Disorder) -> Structure:
    """The structure, or its ordered cell (``tasks.ordering``) where that is asked and it has partial occupancies."""
    if disorder == "refuse" or structure.is_ordered:
        return structure
    from tasks.ordering import order_structure
    from tasks.settings import OrderingSettings

    return order_structure(structure, OrderingSettings()).structure


def _read_lines(lines: Iterable[str], path: Path, disorder: Disorder, labelled: bool) -> CrystalDataset:
    names, labels, energies, crystals, rejected = [], [], [], [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            label, energy, crystal = _read_line(line, disorder, labelled)
        except (ModelInputError, LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            reason = f"missing {error}" if isinstance(error, KeyError) else str(error)
            rejected.append(Rejection(f"{path.name} line {number}", " ".join(reason.split())[:300]))
            continue
        names.append(f"{path.name.split('.')[0]}-{number}")
        labels.append(label)
        energies.append(energy)
        crystals.append(crystal)
    return _as_dataset(names, labels, energies, crystals, rejected, str(path))


def _as_dataset(
    names: list[str],
    labels: list[int],
    energies: list[float],
    crystals: list[CrystalArrays],
    rejected: list[Rejection],
    source: str,
) -> CrystalDataset:
    if not crystals:
        why = f"; the first: {rejected[0].item}: {rejected[0].reason}" if rejected else ""
        raise InputError(f"{source} holds no crystal that can be used, of {len(rejected)} read{why}")
    compositions = [_composition(crystal) for crystal in crystals]
    return CrystalDataset(
        names=names,
        formulas=[composition.reduced_formula for composition in compositions],
        chemical_systems=[composition.chemical_system for composition in compositions],
        labels=np.array(labels, dtype=np.int64),
        crystals=crystals,
        rejected=rejected,
        energies=np.array(energies, dtype=np.float64),
    )


def _read_line(line: str, disorder: Disorder, labelled: bool) -> tuple[int, float, CrystalArrays]:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ModelInputError("is not a JSON object")
    label = row["superconductor"] if labelled else -1
    if labelled and (isinstance(label, (list, dict)) or label not in {0, 1}):
        raise ModelInputError(f"superconductor is {label!r}; it must be 0 or 1")
    energy = row.get(ENERGY)
    energy = np.nan if energy is None else float(energy)
    if np.isinf(energy):
        raise ModelInputError(f"{ENERGY} is {energy}; it must be a finite number of eV")
    if "structure" in row:
        return int(label), energy, _from_pymatgen(row["structure"], disorder)
    return int(label), energy, _from_numbers(row)


def _from_numbers(row: Mapping[str, Any]) -> CrystalArrays:
    numbers = np.array(row["atomic_numbers"], dtype=np.float64)
    if numbers.ndim != 1 or not np.array_equal(numbers, np.round(numbers)):
        raise ModelInputError("atomic_numbers must be a list of whole numbers")
    arrays = CrystalArrays(
        lattice=np.array(row["lattice"], dtype=np.float64),
        atomic_numbers=numbers.astype(np.int64),
        frac_coords=np.array(row["frac_coords"], dtype=np.float64),
    )
    return check_sites(check_arrays(arrays))


def _from_pymatgen(document: Any, disorder: Disorder) -> CrystalArrays:
    from tasks.crystal_files import CrystalText, build_structure

    return as_arrays(build_structure(CrystalText("structure", "json", json.dumps(document), "")), disorder)


def _composition(crystal: CrystalArrays) -> Composition:
    numbers, counts = np.unique(crystal.atomic_numbers, return_counts=True)
    return Composition(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))
