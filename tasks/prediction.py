"""What both networks say about single files: a crystal, a crystal with its bands, or bands of a model.

A crystal alone (CIF, POSCAR, pymatgen's or ASE's JSON) is enough for S2SNet. BNAS reads bands: those of a
``vasprun.xml`` of a uniform run or of pymatgen's BandStructure come with the crystal, so both networks answer; a
tight-binding model (``_hr.dat``) has no atoms, so only BNAS does.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from pymatgen.core import Structure

from models.applicability import TrainingDistance
from models.crystals import CrystalGraph
from models.exceptions import CheckpointError, MeissnerError
from tasks.band_sources import bands_from_pymatgen
from tasks.bnas_ensemble import COVERAGE, BnasEnsemble, load_bnas
from tasks.crystal_files import CRYSTAL_NAMES, check_single, crystal_kind
from tasks.crystals import read_structure
from tasks.exceptions import InputError, MissingStageError
from tasks.grids import grid_of, make_grid
from tasks.held_out import HeldOut, read_held_out, read_predictions
from tasks.known import KnownSuperconductors, element_amounts, find_hazards, structure_amounts
from tasks.s2s_files import Disorder, without_disorder
from tasks.s2snet_ensemble import S2SEnsemble, load_s2snet
from tasks.settings import GridSettings, ScreeningSettings
from tasks.sources import read_bytes
from tasks.tight_binding import TightBinding, read_wannier90_hr
from tasks.uniform_bands import UniformBands
from tasks.workspace import Workspace

NO_ATOMS = "a tight-binding model has no atoms for S2SNet to read, and no composition to compare"
NEEDS_BANDS = "BNAS reads bands: give the vasprun.xml of a uniform k-point run for a critical temperature"
ORDERED_CELL = "S2SNet was asked about an ordered cell of the partial occupancies, {} ({} sites)"
PARTIAL = "{} has sites of partial occupancy; --disorder order (in Python, disorder) asks about an ordered cell"
TAKES = f"{CRYSTAL_NAMES}, vasprun.xml, *_hr.dat, and these with .gz"
INDEX = "grids/index.parquet"
SUPERCONDUCTORS = "supercon/superconductors.parquet"
SUPERCONDUCTOR_KELVIN = 1.0  # BNAS says superconductor from here on: its label ln(Tc + 1) hardly resolves less
SUPERCONDUCTOR_PROBABILITY = 0.5  # S2SNet says superconductor from here on
SIGNIFICANT_DIGITS = 5  # of every predicted number that is shown or stored; networks repeat themselves to about 7
DECIMALS = 4  # of the same, so that a difference of two equal numbers is 0


def round_significant(value: float | None) -> float | None:
    """A number to SIGNIFICANT_DIGITS and at most DECIMALS; None where there is no finite number."""
    if value is None or not math.isfinite(value):
        return None
    digits = SIGNIFICANT_DIGITS - 1 - math.floor(math.log10(abs(value))) if value else DECIMALS
    return round(value, min(digits, DECIMALS)) + 0.0  # -0.0 becomes 0.0


def networks_agree(tc_kelvin: float, probability: float) -> bool:
    """Whether BNAS (kelvin) and S2SNet (probability) both say superconductor, or both say not."""
    return (tc_kelvin >= SUPERCONDUCTOR_KELVIN) == (probability >= SUPERCONDUCTOR_PROBABILITY)


class Prediction(BaseModel):
    """Both networks' answers for one file. A file that cannot be used has ``error`` and nothing else."""

    model_config = ConfigDict(frozen=True)

    file: str
    error: str | None = Field(None, description="Why there is no prediction")
    formula: str | None = None
    space_group: str | None = None
    sites: int | None = Field(None, description="Sites of the cell in the file")
    probability: float | None = Field(None, description="S2SNet: probability of being a superconductor")
    probability_low: float | None = None
    probability_high: float | None = None
    s2snet_tc_kelvin: float | None = Field(None, description="S2SNet: critical temperature, kelvin; a second opinion")
    probability_origin: str | None = Field(None, description="in-sample if S2SNet was trained on the composition")
    tc_kelvin: float | None = Field(None, description="BNAS: critical temperature, kelvin; none without bands")
    tc_low_kelvin: float | None = None
    tc_high_kelvin: float | None = None
    tc_image_spread_kelvin: float | None = Field(None, description="Standard deviation over the 24 images, kelvin")
    tc_origin: str | None = Field(None, description="in-sample if BNAS was trained on the composition")
    agree: bool | None = Field(None, description="Both networks say superconductor (1 K, 0.5), or both say not")
    band_gap_ev: float | None = None
    distance: float | None = Field(
        None, description="From the training set of the networks that answer, the larger; above 1 is far"
    )
    abstain: bool | None = Field(None, description="True where the material is too far from the training set")
    known: str | None = Field(None, description="exact, similar, doped or none: whether the composition is measured")
    known_formula: str | None = None
    known_tc_kelvin: float | None = None
    nearest_formula: str | None = Field(None, description="Chemically nearest measured composition")
    hazards: tuple[str, ...] = ()
    note: str | None = Field(None, description="What is missing for a full answer")
    s2snet_version: str | None = None
    bnas_version: str | None = None


@dataclass
class Predictor:
    """The trained networks in use in a workspace and what is needed to judge their answers, loaded when asked for."""

    workspace: Workspace
    coverage: float = COVERAGE
    versions: Mapping[str, str] = field(default_factory=dict)  # of ``bnas`` and ``s2snet``, in place of those in use

    @cached_property
    def bnas(self) -> BnasEnsemble:
        """The BNAS in use; MissingStageError where none is trained."""
        return load_bnas(self.workspace, self.versions.get("bnas"), self.coverage)

    @cached_property
    def s2snet(self) -> S2SEnsemble:
        """The S2SNet in use; MissingStageError where none is trained."""
        return load_s2snet(self.workspace, self.versions.get("s2snet"))

    @cached_property
    def bnas_held_out(self) -> HeldOut:
        """What the BNAS in use was trained on."""
        return read_held_out(self.workspace, "bnas", self.bnas.version)

    @cached_property
    def s2snet_held_out(self) -> HeldOut:
        """What the S2SNet in use was trained on."""
        return read_held_out(self.workspace, "s2snet", self.s2snet.version)

    @cached_property
    def known(self) -> KnownSuperconductors:
        """The measured compositions."""
        return KnownSuperconductors(self.workspace.read_table(SUPERCONDUCTORS, ["formula", "tc_kelvin"]))

    @cached_property
    def distance(self) -> TrainingDistance:
        """Distance from the materials that BNAS was trained on: those with a grid and a measured Tc."""
        index = self.workspace.read_table(INDEX, ["formula", "tc_kelvin"])
        labelled = index.filter(pc.is_valid(index["tc_kelvin"]))["formula"].to_pylist()
        return TrainingDistance([element_amounts(formula) for formula in sorted(set(labelled))])

    @cached_property
    def s2snet_distance(self) -> TrainingDistance:
        """Distance from the compositions that S2SNet was trained on: those it was held out from."""
        held_out = read_predictions(self.workspace, "s2snet", self.s2snet.version)["formula"].to_pylist()
        return TrainingDistance([element_amounts(formula) for formula in sorted(set(held_out))])


def predict(
    files: Sequence[str | Path],
    workspace: str | Path | Workspace,
    settings: ScreeningSettings | None = None,
    efermi: float | None = None,
    disorder: Disorder = "refuse",
) -> list[Prediction]:
    """Ask the trained networks in use, promoted or else latest, about crystals and bands.

    Parameters
    ----------
    files
        CIF, POSCAR, pymatgen's or ASE's JSON of a structure (S2SNet answers); ``vasprun.xml`` or JSON of pymatgen's
        BandStructure with its structure, of a uniform run (both networks answer); ``_hr.dat`` of Wannier90 (BNAS
        answers). All but POSCAR may be gzipped.
    workspace
        Where the trained networks are.
    efermi
        Fermi level of tight-binding models, eV; without it, ``fermi_energy`` of the ``.win`` file beside them.
    disorder
        Crystals with partial occupancies: ``refuse``, or ``order``, and ask about the ordered cell.

    Returns
    -------
    One Prediction a file, in their order. A file that cannot be used has the reason in ``error``; the others are not
    touched by it.

    Raises
    ------
    InputError
        If no file is given.
    MissingStageError
        If the workspace has no trained network.

    Examples
    --------
    >>> from tasks.screening import predict
    >>> for answer in predict(["MgB2.cif", "vasprun.xml"], "workspace"):  # doctest: +SKIP
    ...     print(answer.formula, answer.probability, answer.tc_kelvin)
    """
    if not files:
        raise InputError(
            "No file to predict; give at least one CIF, POSCAR, JSON, vasprun.xml or tight-binding model (_hr.dat)"
        )
    settings = settings or ScreeningSettings()
    place = workspace if isinstance(workspace, Workspace) else Workspace(workspace)
    predictor = Predictor(place, settings.coverage)
    return [_predict_file(Path(file), predictor, settings.max_distance, efermi, disorder) for file in files]


def _predict_file(
    path: Path, predictor: Predictor, max_distance: float, efermi: float | None, disorder: Disorder
) -> Prediction:
    """The answer for one file; only a missing network is raised."""
    try:
        _check_takes(path)
        bands = _read_bands(path, efermi)
        if isinstance(bands, TightBinding):
            answer = _ask_model(bands, predictor)
        else:
            structure = Structure(bands.lattice, bands.species, bands.coords) if bands else read_structure(path)
            if disorder == "refuse" and not structure.is_ordered:
                raise InputError(PARTIAL.format(structure.formula))
            cell = without_disorder(structure, disorder)
            graph = predictor.s2snet.graph(cell)  # refuses what is too large for the search of a space group
            distances = [predictor.s2snet_distance, *([predictor.distance] if bands else [])]
            answer = describe(structure, predictor.known, distances, max_distance)
            answer |= _ask_s2snet(graph, answer["formula"], predictor)
            answer |= _ask_bnas(bands, predictor) if bands else {"note": NEEDS_BANDS}
            if cell is not structure:
                answer["note"] = f"{ORDERED_CELL.format(cell.formula, len(cell))}; {NEEDS_BANDS}"
    except (CheckpointError, MissingStageError):
        raise
    except (MeissnerError, OSError) as error:
        named = str(path) in str(error)
        return Prediction(file=str(path), error=str(error) if named else f"{path}: {error}")
    tc, probability = answer.get("tc_kelvin"), answer.get("probability")
    if tc is not None and probability is not None:
        answer["agree"] = networks_agree(tc, probability)
    rounded = {name: round_significant(value) if isinstance(value, float) else value for name, value in answer.items()}
    return Prediction(file=str(path), **rounded)


def _check_takes(path: Path) -> None:
    """Raise InputError for what is not there, and for what is no single file of a kind that is read."""
    check_single(path)
    if not (crystal_kind(path.name) or _is_vasprun(path) or _is_model(path)):
        raise InputError(f"{path} is no file that is read, by its name; allowed are {TAKES}")


def _is_vasprun(path: Path) -> bool:
    return "vasprun" in path.name.lower() or ".xml" in {suffix.lower() for suffix in path.suffixes}


def _is_model(path: Path) -> bool:
    return path.name.lower().endswith(("_hr.dat", "_hr.dat.gz"))


def _read_bands(path: Path, efermi: float | None) -> UniformBands | TightBinding | None:
    """Bands in a file, or None where it holds a crystal alone."""
    if _is_vasprun(path):
        return UniformBands.from_vasprun(path)
    if _is_model(path):
        return _with_fermi_level(read_wannier90_hr(path, efermi=efermi), path)
    if path.name.lower().endswith((".json", ".json.gz")):
        document = _read_json(path)
        if isinstance(document, dict) and document.get("@class") in {"BandStructure", "BandStructureSymmLine"}:
            return bands_from_pymatgen(document, path.name)
    return None


def _with_fermi_level(model: TightBinding, path: Path) -> TightBinding:
    """The model, if its Fermi level is known; InputError that says how to give it otherwise."""
    if model.efermi is None:
        raise InputError(
            f"{path} names no Fermi level: give it with --efermi (in Python, efermi), or put {path.name} beside its "
            ".win file with fermi_energy"
        )
    return model


def _read_json(path: Path) -> Any:
    """The document, or None for what the reader of crystals shall complain about."""
    try:
        return json.loads(read_bytes(str(path)))
    except (ValueError, RecursionError):
        return None


def describe(
    structure: Structure, measured: KnownSuperconductors, distances: Sequence[TrainingDistance], max_distance: float
) -> dict[str, Any]:
    """What can be said of a crystal before a network is asked; of several distances the largest counts."""
    amounts = structure_amounts(structure)
    known = measured.find(amounts)
    distance = max(float(far([amounts])[0]) for far in distances)
    return {
        "formula": structure.composition.reduced_formula,
        "space_group": _space_group(structure),
        "sites": len(structure),
        "distance": distance,
        "abstain": distance > max_distance,
        "known": known.match,
        "known_formula": known.formula,
        "known_tc_kelvin": known.tc_kelvin,
        "nearest_formula": measured.formulas[measured.nearest([amounts])[0][0]],
        "hazards": tuple(find_hazards(list(amounts))),
    }


def _space_group(structure: Structure) -> str | None:
    """Hermann-Mauguin symbol; None where the search finds none."""
    try:
        return str(structure.get_space_group_info()[0])
    except (ValueError, TypeError):
        return None


def _ask_s2snet(graph: CrystalGraph, formula: str, predictor: Predictor) -> dict[str, Any]:
    """Probability and Tc of a crystal, and whether its composition was trained on."""
    prediction = predictor.s2snet.predict_graphs([graph])
    names = ("probability", "probability_low", "probability_high")
    answer = {name: float(getattr(prediction, name)[0]) for name in names}
    answer["s2snet_tc_kelvin"] = float(prediction.tc_kelvin[0])
    return answer | {
        "probability_origin": predictor.s2snet_held_out.origin(None, formula),
        "s2snet_version": predictor.s2snet.version,
    }


def _ask_bnas(bands: UniformBands, predictor: Predictor) -> dict[str, Any]:
    grid = make_grid(bands, GridSettings()).energies
    formula = "".join(bands.species)
    return _ask_about_grid(grid, predictor, [formula]) | {
        "tc_origin": predictor.bnas_held_out.origin(None, formula),
        "band_gap_ev": _band_gap(bands.pooled),
    }


def _ask_model(model: TightBinding, predictor: Predictor) -> dict[str, Any]:
    """What BNAS says of a tight-binding model, whose bands are known on any mesh."""
    settings = GridSettings()
    energies = model.nearest_bands(settings.bands, settings.mesh)
    gap = {"band_gap_ev": _band_gap(energies.reshape(len(energies), -1)), "note": NO_ATOMS}
    return _ask_about_grid(grid_of(energies, settings).energies, predictor) | gap


def _ask_about_grid(
    grid: NDArray[np.float32], predictor: Predictor, formulas: list[str] | None = None
) -> dict[str, Any]:
    prediction = predictor.bnas.predict(grid[None], formulas=formulas)
    names = ("tc_kelvin", "tc_low_kelvin", "tc_high_kelvin", "tc_image_spread_kelvin")
    return {name: float(getattr(prediction, name)[0]) for name in names} | {"bnas_version": predictor.bnas.version}


def _band_gap(energies: NDArray[Any]) -> float:
    """Smallest distance between bands (n, k points) below and above E_F = 0, eV; 0 for a metal."""
    low, high = energies.min(axis=1), energies.max(axis=1)
    if ((low < 0) & (high > 0)).any() or not ((low >= 0).any() and (high <= 0).any()):
        return 0.0
    return float(low[low >= 0].min() - high[high <= 0].max())
