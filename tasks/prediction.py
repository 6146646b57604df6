"""What both networks say about single files: a crystal, or a crystal with its bands.

A crystal alone (CIF, POSCAR, JSON) is enough for S2SNet. BNAS reads bands, so it needs a ``vasprun.xml`` of a uniform
k-point run, which holds the crystal too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field
from pymatgen.core import Structure

from models.applicability import TrainingDistance
from models.exceptions import CheckpointError, MeissnerError
from tasks.bnas_ensemble import COVERAGE, BnasEnsemble, load_bnas
from tasks.crystals import read_structure
from tasks.exceptions import InputError, MissingStageError
from tasks.grids import make_grid
from tasks.known import KnownSuperconductors, element_amounts, find_hazards, structure_amounts
from tasks.s2snet_ensemble import S2SEnsemble, load_s2snet
from tasks.settings import GridSettings, ScreeningSettings
from tasks.uniform_bands import UniformBands
from tasks.workspace import Workspace

NEEDS_BANDS = "BNAS reads bands: give the vasprun.xml of a uniform k-point run for a critical temperature"
INDEX = "grids/index.parquet"
SUPERCONDUCTORS = "supercon/superconductors.parquet"


SIGNIFICANT_DIGITS = 5  # of every predicted number that is shown or stored; networks repeat themselves to about 7
DECIMALS = 4  # of the same, so that a difference of two equal numbers is 0


def round_significant(value: float | None) -> float | None:
    """A number to SIGNIFICANT_DIGITS and at most DECIMALS; None where there is no finite number."""
    if value is None or not math.isfinite(value):
        return None
    digits = SIGNIFICANT_DIGITS - 1 - math.floor(math.log10(abs(value))) if value else DECIMALS
    return round(value, min(digits, DECIMALS)) + 0.0  # -0.0 becomes 0.0


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
    tc_kelvin: float | None = Field(None, description="BNAS: critical temperature, kelvin; none without bands")
    tc_low_kelvin: float | None = None
    tc_high_kelvin: float | None = None
    tc_image_spread_kelvin: float | None = Field(None, description="Standard deviation over the 24 images, kelvin")
    band_gap_ev: float | None = None
    distance: float | None = Field(None, description="From the training set; above 1 is far")
    abstain: bool | None = Field(None, description="True where the material is too far from the training set")
    known: str | None = Field(None, description="exact, similar, doped or none: whether the composition is measured")
    known_formula: str | None = None
    known_tc_kelvin: float | None = None
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
    def known(self) -> KnownSuperconductors:
        """The measured compositions."""
        return KnownSuperconductors(self.workspace.read_table(SUPERCONDUCTORS, ["formula", "tc_kelvin"]))

    @cached_property
    def distance(self) -> TrainingDistance:
        """Distance from the materials that BNAS was trained on: those with a grid and a measured Tc."""
        index = self.workspace.read_table(INDEX, ["formula", "tc_kelvin"])
        labelled = index.filter(pc.is_valid(index["tc_kelvin"]))["formula"].to_pylist()
        return TrainingDistance([element_amounts(formula) for formula in sorted(set(labelled))])


def predict(
    files: Sequence[str | Path], workspace: str | Path | Workspace, settings: ScreeningSettings | None = None
) -> list[Prediction]:
    """Ask the trained networks in use, promoted or else latest, about crystals.

    Parameters
    ----------
    files
        CIF, POSCAR or pymatgen JSON (S2SNet answers), or ``vasprun.xml`` also gzipped (both networks answer).
    workspace
        Where the trained networks are.

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
        raise InputError("No file to predict; give at least one CIF, POSCAR, JSON or vasprun.xml")
    settings = settings or ScreeningSettings()
    place = workspace if isinstance(workspace, Workspace) else Workspace(workspace)
    predictor = Predictor(place, settings.coverage)
    return [_predict_file(Path(file), predictor, settings.max_distance) for file in files]


def _predict_file(path: Path, predictor: Predictor, max_distance: float) -> Prediction:
    """The answer for one file; only a missing network is raised."""
    try:
        bands = UniformBands.from_vasprun(path) if _is_vasprun(path) else None
        structure = Structure(bands.lattice, bands.species, bands.coords) if bands else read_structure(path)
        answer = describe(structure, predictor, max_distance) | _ask_s2snet(structure, predictor)
        answer |= _ask_bnas(bands, predictor) if bands else {"note": NEEDS_BANDS}
    except (CheckpointError, MissingStageError):
        raise
    except (MeissnerError, OSError) as error:
        return Prediction(file=str(path), error=str(error))
    rounded = {name: round_significant(value) if isinstance(value, float) else value for name, value in answer.items()}
    return Prediction(file=str(path), **rounded)


def _is_vasprun(path: Path) -> bool:
    return "vasprun" in path.name.lower() or ".xml" in {suffix.lower() for suffix in path.suffixes}


def describe(structure: Structure, predictor: Predictor, max_distance: float) -> dict[str, Any]:
    """What can be said of a crystal before a network is asked."""
    amounts = structure_amounts(structure)
    known = predictor.known.find(amounts)
    distance = float(predictor.distance([amounts])[0])
    return {
        "formula": structure.composition.reduced_formula,
        "space_group": _space_group(structure),
        "sites": len(structure),
        "distance": distance,
        "abstain": distance > max_distance,
        "known": known.match,
        "known_formula": known.formula,
        "known_tc_kelvin": known.tc_kelvin,
        "hazards": tuple(find_hazards(list(amounts))),
    }


def _space_group(structure: Structure) -> str | None:
    """Hermann-Mauguin symbol; None where the search finds none."""
    try:
        return str(structure.get_space_group_info()[0])
    except (ValueError, TypeError):
        return None


def _ask_s2snet(structure: Structure, predictor: Predictor) -> dict[str, Any]:
    prediction = predictor.s2snet.predict([structure])
    names = ("probability", "probability_low", "probability_high")
    return {name: float(getattr(prediction, name)[0]) for name in names} | {"s2snet_version": predictor.s2snet.version}


def _ask_bnas(bands: UniformBands, predictor: Predictor) -> dict[str, Any]:
    grid = make_grid(bands, GridSettings()).energies
    prediction = predictor.bnas.predict(grid[None], formulas=["".join(bands.species)])
    names = ("tc_kelvin", "tc_low_kelvin", "tc_high_kelvin", "tc_image_spread_kelvin")
    return {name: float(getattr(prediction, name)[0]) for name in names} | {
        "bnas_version": predictor.bnas.version,
        "band_gap_ev": _band_gap(bands),
    }


def _band_gap(bands: UniformBands) -> float:
    """Smallest distance between bands below and above the Fermi level on the coarse grid, eV; 0 for a metal."""
    low, high = bands.pooled.min(axis=1), bands.pooled.max(axis=1)
    if ((low < 0) & (high > 0)).any() or not ((low >= 0).any() and (high <= 0).any()):
        return 0.0
    return float(low[low >= 0].min() - high[high <= 0].max())
