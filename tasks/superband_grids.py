"""SuperBand's HDF5 file of band grids: one group a material, every known fault of the file checked on reading.

What is assumed, from the description of the file and from the program that was published for writing it:

* Of more than 18 bands (both spins pooled) the 18 nearest to E_F were taken, E_F was subtracted, and they were sorted
  by mean. Of 18 or fewer all were taken as they came, **E_F was not subtracted**, and they stand among channels of
  zeros. E_F itself is not in the file. Where channels are empty it is found anew, see ``tasks.superband_fermi``: the
  energies of the densities and the Fermi surface are relative to E_F in any case. If neither tells, or they
  contradict each other, the material is refused. Exactly 18 bands leave no channel empty and look like the first
  case: E_F counts as subtracted there unless the densities or the surface say otherwise.
* k runs over the reciprocal primitive cell from Γ, in spglib's order: the axes of ``sc_bands`` are (band, k3, k2,
  k1). They are turned to (band, k1, k2, k3); where the crystal's symmetry says that they already are, they are left.
* The grids were resized by an image filter that knows nothing of periodicity, and that puts k at the middle of a
  cell: the points are up to half a step from k_i = i / 32, by an amount that the file does not tell.
* ``position`` is Cartesian, in angstrom, ``cell`` has the vectors as rows.
* Calculations were looked up by reduced formula, so a material may stand for another polymorph than the one measured.
  ``shared_grids`` names the materials that were given the same energies.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.exceptions import InputError
from tasks.formulas import SYMBOLS, FormulaError, composition_difference, normalise_formula, parse_formula
from tasks.kpoints import Floats, point_group
from tasks.shards import Grids
from tasks.stages import Rejection
from tasks.superband_fermi import SAME_LEVEL_EV, FermiEvidence, find_level_by_densities, find_level_by_surface

BANDS = 18
MESH = 32
LAST_OF_SYSTEM = (2, 15, 74, 142, 167, 194, 230)  # space group numbers, International Tables A
SYSTEMS = ("triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic")
ATTRIBUTES = ("formula", "Tc", "SG_num", "SG_sys", "volume")
DATASETS = ("atoms", "cell", "position", "sc_bands")
EMPTY_EV = 1e-6  # a channel whose energies differ by less holds no band
PAIR_EV = 1e-3  # bands of the two spins of a material without magnetism agree within this
VOLUME_SHARE = 0.01  # by which the cell's volume may differ from the one written
SAME_COMPOSITION = 1e-3  # composition_difference of a formula and the atoms that it names
JUMP_RATIO = 2.0  # of the step across the zone's boundary to its neighbours, from which on it is noted
JUMP_EV = 0.01  # smaller jumps are not noted
AXES_RATIO = 0.5  # how much better the crystal's symmetry must fit the one order of axes than the other
SYMPREC = 0.01  # angstrom; pymatgen's default, with which SG_num was found


class _RefusedError(InputError):
    """Why one material cannot be used."""


@dataclass(frozen=True, eq=False)
class SuperBandGrid:
    """One material of SuperBand, repaired.

    Attributes
    ----------
    material_id
        Name of its group.
    formula
        As the file has it; of the crystal that was calculated, which may be the undoped parent.
    tc_kelvin
        Critical temperature, 0 for a non-superconductor.
    space_group, crystal_system
        International number, and the system that it belongs to.
    lattice
        (3, 3) angstrom, vectors as rows.
    coords
        (n_atoms, 3) fractional.
    species
        Element symbol of each atom.
    energies
        (18, 32, 32, 32) float32, eV relative to E_F, axes (band, k1, k2, k3), sorted by mean; channels without a band
        are zero, half of them first.
    first_band, real_bands
        Channel of the first band, and how many bands there are.
    boundary_jump_ev
        Root mean square of the energies' step across the zone's boundary, for the worst axis.
    dos_energies, dos_s, dos_p, dos_d
        (n,) eV relative to E_F, and states per eV and cell as written; None where the file has none. SuperBand wrote
        the mean of the spins of a spin-polarised run, half of what ``UniformBands`` calls for.
    notes
        What was repaired or must be known, one sentence each.
    """

    material_id: str
    formula: str
    tc_kelvin: float
    space_group: int
    crystal_system: str
    lattice: Floats
    coords: Floats
    species: tuple[str, ...]
    energies: Grids
    first_band: int
    real_bands: int
    boundary_jump_ev: float
    dos_energies: Floats | None
    dos_s: Floats | None
    dos_p: Floats | None
    dos_d: Floats | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class SharedGrids:
    """Materials with the same energies, bit by bit: one calculation that stands for several formulas.

    Attributes
    ----------
    material_ids, formulas
        Names and formulas, in the order of the names.
    tc_lowest, tc_highest
        Kelvin; None where no Tc can be read.
    """

    material_ids: tuple[str, ...]
    formulas: tuple[str, ...]
    tc_lowest: float | None
    tc_highest: float | None


def read_superband(
    path: str | Path, *, batch: int = 50, bands: int = BANDS, mesh: int = MESH
) -> Iterator[list[SuperBandGrid | Rejection]]:
    """The materials of SuperBand's file, in the order of their names, each read, checked and repaired, or refused.

    Parameters
    ----------
    path
        The HDF5 file, known as ``0724.hdf5``.
    batch
        How many materials come at a time; a material takes some 2.4 MB.
    bands, mesh
        Channels and divisions that every grid must have.

    Returns
    -------
    Lists of at most ``batch``. Every name at the top of the file is in one of them, once.

    Raises
    ------
    InputError
        At once, if the file is missing, is not HDF5, is cut short or has no groups, or ``batch`` is below 1.
    """
    if batch < 1:
        raise InputError(f"{batch=} must be at least 1")
    with _open(path) as file:
        names = sorted(file)
    return _read_batches(Path(path), names, batch, (bands, mesh, mesh, mesh))


def superband_names(path: str | Path) -> list[str]:
    """Names of the materials in SuperBand's file, sorted; InputError as ``read_superband``."""
    with _open(path) as file:
        return sorted(file)


def read_superband_material(path: str | Path, name: str, *, bands: int = BANDS, mesh: int = MESH) -> SuperBandGrid:
    """One material of SuperBand's file; InputError where it is refused or not there."""
    with _open(path) as file:
        if name not in file:
            raise InputError(f"{path} holds no material {name!r}")
        found = _read_or_refuse(file, name, (bands, mesh, mesh, mesh))
    if isinstance(found, Rejection):
        raise InputError(found.reason)
    return found


def shared_grids(path: str | Path) -> list[SharedGrids]:
    """Groups of two or more materials whose energies are identical as float32, largest group first.

    Raises
    ------
    InputError
        As ``read_superband`` does. Materials whose energies cannot be read are passed over.
    """
    groups = defaultdict(list)
    with _open(path) as file:
        for name in sorted(file):
            try:
                energies = np.asarray(file[name]["sc_bands"][()], dtype=np.float32)
            except (KeyError, OSError, TypeError, ValueError, AttributeError):
                continue
            digest = hashlib.sha256(repr(energies.shape).encode() + energies.tobytes()).hexdigest()
            attributes = file[name].attrs
            groups[digest].append((name, _text(attributes.get("formula", "")), _kelvin(attributes.get("Tc"))))
    found = []
    for members in groups.values():
        if len(members) > 1:
            names, formulas, values = zip(*members, strict=True)
            known = [value for value in values if value is not None]
            found.append(SharedGrids(names, formulas, min(known, default=None), max(known, default=None)))
    return sorted(found, key=lambda group: (-len(group.material_ids), group.material_ids))


def _open(path: str | Path) -> Any:
    """The file, opened for reading."""
    import h5py  # type: ignore[import-untyped]

    place = Path(path)
    if not place.is_file():
        raise InputError(f"{place}: there is no such file; SuperBand's grids are one HDF5 file (0724.hdf5)")
    if not h5py.is_hdf5(place):
        raise InputError(f"{place} is not an HDF5 file; SuperBand's grids are one HDF5 file (0724.hdf5)")
    try:
        file = h5py.File(place, "r")
    except OSError as error:
        raise InputError(f"{place} is cut short or damaged ({error}); fetch it again") from error
    if not len(file):
        file.close()
        raise InputError(f"{place} holds no materials; SuperBand's file has one group for each")
    return file


def _read_batches(
    path: Path, names: list[str], batch: int, shape: tuple[int, ...]
) -> Iterator[list[SuperBandGrid | Rejection]]:
    with _open(path) as file:
        for start in range(0, len(names), batch):
            yield [_read_or_refuse(file, name, shape) for name in names[start : start + batch]]


def _read_or_refuse(file: Any, name: str, shape: tuple[int, ...]) -> SuperBandGrid | Rejection:
    try:
        return _read_material(name, _load(file, name), shape)
    except InputError as error:
        return Rejection(name, str(error))
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        return Rejection(name, f"its group cannot be read ({error})")


def _load(file: Any, name: str) -> dict[str, Any]:
    """Attributes and datasets of one group, as they are."""
    group = file[name]
    if not hasattr(group, "keys"):
        raise _RefusedError("it is not a group of attributes and datasets")
    absent = [key for key in ATTRIBUTES if key not in group.attrs] + [key for key in DATASETS if key not in group]
    if absent:
        raise _RefusedError(f"its group has no {', '.join(absent)}")
    return {**group.attrs, **{key: group[key][()] for key in group}}


def _read_material(name: str, raw: dict[str, Any], shape: tuple[int, ...]) -> SuperBandGrid:
    notes: list[str] = []
    lattice, coords, species = _crystal(raw)
    formula = _formula(name, raw, species, notes)
    tc_kelvin = _kelvin(raw["Tc"])
    if tc_kelvin is None:
        raise _RefusedError(f"Tc = {_text(raw['Tc'])!r} is not a temperature of 0 K or more")
    number, system = _space_group(raw, notes)
    densities = _densities(raw, notes)
    energies = _array(raw, "sc_bands")
    if energies.shape != shape:
        raise _RefusedError(f"sc_bands has the shape {energies.shape}, not {shape}")
    real = energies[np.ptp(energies, axis=(1, 2, 3)) > EMPTY_EV]
    real = real if _stored_k1_first(real, lattice, coords, species, notes) else real.transpose(0, 3, 2, 1)
    real = _sort(_subtract_level(real, shape[0], densities, raw, notes), notes)
    if len(real) < shape[0]:
        notes.append(f"{len(real)} bands, the other {shape[0] - len(real)} channels are empty")
    first = (shape[0] - len(real)) // 2
    channels = np.zeros(shape, dtype=np.float32)
    channels[first : first + len(real)] = real
    columns = densities[:, :4].T if densities is not None else (None,) * 4
    jump = _boundary_jump(real, notes)
    dos = dict(zip(("dos_energies", "dos_s", "dos_p", "dos_d"), columns, strict=True))
    return SuperBandGrid(
        material_id=name,
        formula=formula,
        tc_kelvin=tc_kelvin,
        space_group=number,
        crystal_system=system,
        lattice=lattice,
        coords=coords,
        species=species,
        energies=channels,
        first_band=first,
        real_bands=len(real),
        boundary_jump_ev=jump,
        notes=tuple(notes),
        **dos,
    )


def _text(value: Any) -> str:
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)).strip()


def _kelvin(value: Any) -> float | None:
    """A Tc, written as a number or as text, or None."""
    try:
        kelvin = float(_text(value))
    except ValueError:
        return None
    return kelvin if np.isfinite(kelvin) and kelvin >= 0 else None


def _array(raw: dict[str, Any], key: str) -> Floats:
    try:
        values = np.asarray(raw[key], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise _RefusedError(f"{key} is not a table of numbers") from error
    wrong = int((~np.isfinite(values)).sum())
    if wrong:
        raise _RefusedError(f"{wrong} numbers of {key} are not finite")
    return values


def _crystal(raw: dict[str, Any]) -> tuple[Floats, Floats, tuple[str, ...]]:
    """Lattice, fractional coordinates and elements."""
    lattice, positions = _array(raw, "cell"), _array(raw, "position")
    species = tuple(map(_text, np.atleast_1d(raw["atoms"])))
    if lattice.shape != (3, 3) or positions.shape != (len(species), 3) or not species:
        raise _RefusedError(
            f"{len(species)} atoms, positions of the shape {positions.shape} and a cell of the shape {lattice.shape} "
            "do not make a crystal; needed are (n, 3) and (3, 3)"
        )
    unknown = sorted(set(species) - SYMBOLS)
    if unknown:
        raise _RefusedError(f"its atoms {', '.join(unknown)} are no elements")
    volume, written = abs(float(np.linalg.det(lattice))), _array(raw, "volume")
    if volume < 1e-3 or written.size != 1 or abs(volume - written.item()) > VOLUME_SHARE * volume:
        raise _RefusedError(f"the cell spans {volume:.3f} cubic angstrom, but the volume is given as {written}")
    return lattice, positions @ np.linalg.inv(lattice), species


def _formula(name: str, raw: dict[str, Any], species: tuple[str, ...], notes: list[str]) -> str:
    """The formula, if it can be read and shares an element with the atoms."""
    formula = _text(raw["formula"])
    try:
        amounts = parse_formula(formula)
    except FormulaError as error:
        raise _RefusedError(f"its formula: {error}") from error
    atoms = {symbol: float(count) for symbol, count in Counter(species).items()}
    difference = composition_difference(amounts, atoms)
    if not set(amounts) & set(atoms):
        raise _RefusedError(f"{formula} and its atoms {normalise_formula(atoms)} have no element in common")
    if difference > SAME_COMPOSITION:
        notes.append(f"{formula} stands on the bands of {normalise_formula(atoms)}, difference {difference:.3f}")
    if _reads_as(name, amounts):
        notes.append(f"kept under the reduced formula {name}: polymorphs were merged, the grid may be of another one")
    return formula


def _reads_as(name: str, amounts: dict[str, float]) -> bool:
    """Whether a group's name is a formula of these amounts."""
    try:
        return composition_difference(parse_formula(name), amounts) < SAME_COMPOSITION
    except FormulaError:
        return False


def _space_group(raw: dict[str, Any], notes: list[str]) -> tuple[int, str]:
    """Number and crystal system; the number counts where they differ."""
    value = _array(raw, "SG_num")
    if value.size != 1 or value.item() % 1 or not 1 <= value.item() <= 230:
        raise _RefusedError(f"SG_num = {value} is not a space group number, 1 to 230")
    number = int(value.item())
    system = SYSTEMS[int(np.searchsorted(LAST_OF_SYSTEM, number))]
    written = _text(raw["SG_sys"])
    if written.lower() != system:
        notes.append(f"written as {written}, but space group {number} is {system}")
    return number, system


def _densities(raw: dict[str, Any], notes: list[str]) -> Floats | None:
    """(n, 4 or 5): E - E_F ascending, then s, p, d and f; None where there are none."""
    if "sc_DOSs" not in raw:
        notes.append("no densities of states")
        return None
    table = _array(raw, "sc_DOSs")
    if table.ndim == 2 and table.shape[0] in (4, 5) and table.shape[1] > 5:
        table = table.T
        notes.append("sc_DOSs was written on its side and has been turned")
    if table.ndim != 2 or table.shape[1] not in (4, 5) or len(table) < 2:
        raise _RefusedError(f"sc_DOSs has the shape {table.shape}; needed is (n, 4) or, with f, (n, 5)")
    if not (np.diff(table[:, 0]) > 0).all():
        raise _RefusedError("the energies of sc_DOSs do not ascend")
    return table


def _stored_k1_first(real: Floats, lattice: Floats, coords: Floats, species: tuple[str, ...], notes: list[str]) -> bool:
    """Whether symmetry contradicts the published order (k3, k2, k1) of the axes and speaks for (k1, k2, k3)."""
    if not len(real):
        return False
    rotations = point_group(lattice, coords, species, SYMPREC)
    mean = real.mean(axis=0)
    as_stored, turned = _asymmetry(mean, rotations), _asymmetry(mean.transpose(2, 1, 0), rotations)
    if as_stored < AXES_RATIO * turned:
        notes.append("axes were (k1, k2, k3) already, by the crystal's symmetry, and have been left")
        return True
    return False


def _asymmetry(grid: Floats, rotations: Any) -> float:
    """Root mean square change of (m, m, m) energies under rotations k -> k W, eV."""
    mesh = len(grid)
    points = np.stack(np.unravel_index(np.arange(grid.size), grid.shape), axis=1)
    changes = [grid[tuple(((points @ rotation) % mesh).T)] - grid.ravel() for rotation in rotations]
    return float(np.sqrt(np.mean(np.square(changes))))


def _subtract_level(
    real: Floats, channels: int, densities: Floats | None, raw: dict[str, Any], notes: list[str]
) -> Floats:
    """Bands relative to E_F; see the module's text for what is assumed.

    Raises
    ------
    _RefusedError
        If there are no bands, it cannot be told whether E_F was subtracted, or E_F is outside all bands.
    """
    if not len(real):
        raise _RefusedError("none of the channels of sc_bands holds a band: each has one energy only")
    complete = len(real) < channels
    evidence = _evidence(real, densities, raw, complete)
    level = evidence.level if complete else _level_of_full_grid(evidence, notes)
    if level is None and evidence.contradictory:
        raise _RefusedError(
            f"E_F cannot be told: {evidence.by_densities:.2f} eV by the densities, {evidence.by_surface:.2f} eV by the "
            "Fermi surface"
        )
    if level is None:
        raise _RefusedError(
            f"it has {len(real)} bands only, for which E_F was not subtracted, and neither the densities nor the Fermi "
            "surface tell E_F"
        )
    if abs(level) > SAME_LEVEL_EV:
        witness = "densities" if evidence.by_surface is None else "Fermi surface"
        notes.append(f"E_F had not been subtracted: {level:.2f} eV by the {witness}")
        real = real - level
    if not real.min() <= 0 <= real.max():
        raise _RefusedError(f"E_F is outside all bands, which lie from {real.min():.3f} to {real.max():.3f} eV")
    return real


def _level_of_full_grid(evidence: FermiEvidence, notes: list[str]) -> float | None:
    """E_F where no channel is empty: 0 unless the densities say otherwise and the Fermi surface does not say 0.

    None if densities and surface name two levels that are not 0. The surface alone is not enough, since such a grid
    most likely is as it should be, and a surface can lie on another level by chance.
    """
    told = [level for level in (evidence.by_densities, evidence.by_surface) if level is not None]
    if any(abs(level) <= SAME_LEVEL_EV for level in told):
        return 0.0
    if evidence.by_densities is None:
        notes.append("E_F counts as subtracted: the densities do not tell")
        return 0.0
    return evidence.level


def _evidence(real: Floats, densities: Floats | None, raw: dict[str, Any], complete: bool) -> FermiEvidence:
    """What the densities and the Fermi surface tell of E_F."""
    by_densities = by_surface = None
    if densities is not None:
        by_densities = find_level_by_densities(real, densities[:, 0], densities[:, 1:].sum(axis=1), complete)
    if "fermi_line" in raw and "recip_latt" in raw:
        points, reciprocal = _array(raw, "fermi_line"), _array(raw, "recip_latt")
        if points.ndim != 2 or points.shape[1] != 3 or reciprocal.shape != (3, 3):
            raise _RefusedError(
                f"fermi_line {points.shape} and recip_latt {reciprocal.shape} are not (n, 3) and (3, 3)"
            )
        if "fermi_lens" in raw and int(_array(raw, "fermi_lens").sum()) != len(points):
            raise _RefusedError(f"fermi_lens counts other than the {len(points)} points of fermi_line")
        by_surface = find_level_by_surface(real, points, reciprocal)
    return FermiEvidence(by_densities, by_surface)


def _sort(real: Floats, notes: list[str]) -> Floats:
    """Bands by mean, lowest first."""
    means = real.mean(axis=(1, 2, 3))
    order = np.argsort(means, kind="stable")
    if (order != np.arange(len(real))).any():
        notes.append("bands were not sorted by mean and have been sorted")
        real = real[order]
    apart = np.abs(np.diff(real, axis=0)).max(axis=(1, 2, 3))
    if any(len(apart[start::2]) and (apart[start::2] < PAIR_EV).all() for start in (0, 1)) and len(real) > 3:
        notes.append("bands come in equal pairs, as the two spins do: densities are then those of one spin")
    return real


def _boundary_jump(real: Floats, notes: list[str]) -> float:
    """Largest root mean square step across the zone's boundary over the three axes, eV; noted where it stands out."""
    jumps = []
    for axis in (1, 2, 3):
        first, second, before, last = (np.take(real, i, axis) for i in (0, 1, -2, -1))
        jump = float(np.sqrt(np.mean((first - last) ** 2)))
        beside = float(np.sqrt(np.mean(((second - first) ** 2 + (last - before) ** 2) / 2)))
        jumps.append(jump)
        if jump > JUMP_EV and jump > JUMP_RATIO * beside:
            notes.append(
                f"not periodic along k{axis}: energies jump by {jump:.3f} eV (rms) across the zone's boundary, beside "
                f"steps of {beside:.3f} eV"
            )
    return max(jumps)
