"""Every setting of the system in one place.

Four sources, the later one winning: defaults here, environment variables ``MEISSNER_…`` (nested with two
underscores, e.g. ``MEISSNER_GPAW__CUTOFF_EV=500``), a TOML file, command-line flags. Each step has one frozen
settings object: it makes the flow's parameters and the form in Prefect's UI, and is saved beside the step's results.
Nothing heavy is imported here.
"""

import contextlib
import json
import os
import re
import sys
import tomllib
from datetime import date
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from models.exceptions import MeissnerError
from tasks.exceptions import InputError

SECRETS = {"mp_api_key": "MEISSNER_MP_API_KEY", "notify_url": "MEISSNER_NOTIFY_URL"}  # from the environment alone
ROOT = Path(__file__).resolve().parents[1]
STARTER = ROOT / "deployments" / "starter"


class StepSettings(BaseModel):
    """Base of the settings of one step: frozen, and unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class CleaningSettings(StepSettings):
    """Rules for reports of superconductivity (3DSC, Sci. Data 10, 816 (2023))."""

    max_amount: float = Field(150, description="Largest amount of one element in a formula")
    max_tc_kelvin: float = Field(145, description="Largest credible Tc at ambient pressure, kelvin")
    max_std_kelvin: float = Field(5, description="Largest standard deviation of the reports of one composition, kelvin")
    pressure: Literal["refuse", "apart"] = Field(
        "refuse", description="Reports under pressure: refused, or kept apart in a table of their own"
    )
    formula_column: str | None = Field(None, description="Header of the formula in your own table; none: known ones")
    tc_column: str | None = Field(None, description="Header of Tc in your own table; none: known ones")


class MdrSettings(StepSettings):
    """Where SuperCon's datasheet (DOI 10.48505/nims.4487) is published and kept; ``supercon = "mdr"`` asks for it."""

    url: str = Field(
        "https://mdr.nims.go.jp/filesets/2347b413-9c15-43b7-90e6-41fe9243b1a5/download",
        description="Address of SuperCon's datasheet",
    )
    sha256: str = Field(
        "f599ef0040c18521e386f758ee826fe269f67ef369c1a007656035d03ccdfdf6",
        pattern="^[0-9a-f]{64}$",
        description="Its SHA-256",
    )
    cache: str | None = Field(None, description="Folder that keeps it; none: meissner in the user's cache folder")


class MaterialsProjectSettings(StepSettings):
    """What is asked of the Materials Project (source ``mp``); without a filter, all of it."""

    endpoint: str = Field("https://api.materialsproject.org/", description="Address of the API")
    chemical_systems: tuple[str, ...] = Field((), description="Only these, such as B-Mg; * stands for any element")
    elements: tuple[str, ...] = Field((), description="Only crystals that hold all of these elements")
    max_above_hull_ev: float | None = Field(None, ge=0, description="Largest energy above the hull, eV per atom")
    max_band_gap_ev: float | None = Field(None, ge=0, description="Largest band gap, eV")
    limit: int | None = Field(None, ge=1, description="At most so many crystals; none: all")
    page: int = Field(1000, ge=1, le=1000, description="Crystals a request")


class OptimadeSettings(StepSettings):
    """What is asked of an OPTIMADE database (source ``optimade:…``); without a filter, all of it."""

    filter: str = Field("", description='In OPTIMADE\'s language, such as: elements HAS ALL "Mg", "B"')
    limit: int | None = Field(None, ge=1, description="At most so many crystals of each database; none: all")
    page: int = Field(100, ge=1, description="Crystals a request; databases have limits of their own")


class FetchSettings(StepSettings):
    """How servers on the network are asked, and what of databases of crystals."""

    refetch: bool = Field(False, description="Ask databases of crystals again for what they have answered")
    timeout_seconds: float = Field(60, gt=0, description="Wait for an answer, seconds")
    retries: int = Field(3, ge=0, description="Further tries of a request that failed for a passing reason")
    backoff_seconds: float = Field(
        1, ge=0, description="Unit of the waits between tries, which are 0, 2, 4, 8 … times as long, seconds"
    )
    materials_project: MaterialsProjectSettings = MaterialsProjectSettings()
    optimade: OptimadeSettings = OptimadeSettings()


class CrystalSettings(StepSettings):
    """How crystals are standardised."""

    symprec: float = Field(0.01, description="Tolerance of the symmetry search, angstrom")
    max_sites: int = Field(500, description="Largest primitive cell that is read, sites")
    licence: str | None = Field(None, description="Licence of crystals from files; none: unknown")


class MatchingSettings(StepSettings):
    """Classes of agreement between a measured composition and a crystal (3DSC)."""

    similar_r: float = Field(0.05, description="Largest total relative difference R of 'similar'")
    similar_amount: float = Field(0.15, description="Element difference that breaks 'similar' if also relative")
    similar_relative: float = Field(0.10, description="Relative element difference that breaks 'similar'")
    doped_r: float = Field(0.15, description="Largest R of 'doped'")
    doped_amount: float = Field(0.30, description="Element difference that breaks 'doped' if also relative")
    doped_relative: float = Field(0.20, description="Relative element difference that breaks 'doped'")


class OrderingSettings(StepSettings):
    """How a disordered crystal becomes an ordered cell."""

    max_sites: int = Field(40, description="Largest ordered cell, sites")
    tolerance: float = Field(0.05, description="Largest R between asked-for and reached composition")
    max_arrangements: int = Field(2000, description="Arrangements that are all ranked by Ewald energy; beyond, swaps")
    seconds: float = Field(60, description="Limit for one crystal, seconds of CPU time")


class GpawSettings(StepSettings):
    """The open band engine: PAW, plane waves, PBE."""

    cutoff_ev: float = Field(400, gt=0, description="Plane-wave cutoff, eV")
    smearing_ev: float = Field(0.1, gt=0, description="Fermi-Dirac width, eV")
    scf_density: float = Field(3.0, gt=0, description="k points of the self-consistent run per inverse angstrom")
    band_density: float = Field(4.5, gt=0, description="k points of the uniform bands per inverse angstrom")
    extra_bands: int = Field(10, ge=1, description="Converged bands above the occupied ones (18 at least in all)")
    launcher: str | None = Field(
        None,
        description="How one calculation is spread over cores, such as: mpirun -n 4 (GPAW built with MPI); none: one",
    )
    seconds: float = Field(1800, gt=0, description="Wall time of one calculation, seconds")
    retries: int = Field(1, ge=0, description="Further tries of a calculation that failed for a passing reason")


class VaspSettings(StepSettings):
    """The production engine: the user's own VASP, run by atomate2 and custodian with the MIT parameters."""

    command: str | None = Field(
        None, description="How VASP is started, such as: srun vasp_std; none: atomate2's own setting"
    )
    potcars: str | None = Field(
        None, description="Folder of POTCARs in pymatgen's layout; none: pymatgen's own setting (PMG_VASP_PSP_DIR)"
    )
    potcar_functional: Literal["PBE", "PBE_52", "PBE_54", "PBE_64"] = Field(
        "PBE", description="Release of the POTCARs; the MIT parameters name those of PBE"
    )
    relax: bool = Field(True, description="Relax cell and atoms before the bands")
    line: bool = Field(True, description="Also calculate bands along lines of high symmetry")
    band_density: float = Field(4.5, gt=0, description="k points of the uniform bands per inverse angstrom")
    extra_bands: int = Field(10, ge=1, description="Bands above the occupied ones (18 at least in all)")
    seconds: float = Field(86400, gt=0, description="Wall time of one job, seconds; VASP is told to stop before")
    corrections: int = Field(5, ge=0, description="Corrections of errors by custodian in one job")
    retries: int = Field(2, ge=0, description="Further tries of a job that failed for a passing reason")


class BandSettings(StepSettings):
    """Where band structures come from and how many calculations run."""

    engine: Literal["gpaw", "vasp", "none"] = Field("gpaw", description="Engine for materials that have no bands yet")
    bundled: str | None = Field(
        str(STARTER / "bands.parquet"), description="Parquet file of finished bands, used where the structure agrees"
    )
    limit: int | None = Field(None, ge=0, description="At most so many new calculations; none: all")
    max_sites: int = Field(8, description="Largest cell that is calculated, sites")
    at_once: int = Field(0, ge=0, description="Calculations at once on this machine; 0: one a core")
    at_once_everywhere: int = Field(
        0,
        ge=0,
        description="Calculations at once in all flows of the Prefect server (limit on the tag dft); 0: no limit",
    )
    retry_delay_seconds: float = Field(
        10, ge=0, description="Wait before the first further try; each later one is twice as long, seconds"
    )
    store: str = Field(
        "files", description="Documents of jobs: files (in the workspace), memory, or a file like jobflow's JOB_STORE"
    )
    folder: str | None = Field(
        None, description="Folder of running calculations, which every worker reaches; none: scratch of the workspace"
    )


class ClusterSettings(StepSettings):
    """Where band calculations and screening run: this machine, or Slurm by way of Dask."""

    kind: Literal["local", "slurm"] = Field("local", description="This machine, or Slurm")
    jobs: int = Field(10, ge=1, description="Slurm jobs at most, one calculation at a time in each")
    least_jobs: int = Field(0, ge=0, description="Slurm jobs that are kept even if nothing waits")
    cores: int = Field(1, ge=1, description="Cores of a Slurm job")
    memory: str = Field("4GiB", description="Memory of a Slurm job")
    wall_time: str = Field(
        "24:00:00", pattern=r"^(\d+-)?\d+:\d\d:\d\d$", description="Limit of a Slurm job, [days-]hours:minutes:seconds"
    )
    partition: str | None = Field(None, description="Slurm partition; none: the default one")
    account: str | None = Field(None, description="Account that is charged")
    interface: str | None = Field(None, description="Network interface by which Slurm jobs reach this machine")
    scratch: str | None = Field(None, description="Folder on the nodes for what workers spill; none: Dask's choice")
    logs: str | None = Field(None, description="Folder for the output of Slurm jobs; none: nothing but Slurm's own")
    prologue: tuple[str, ...] = Field(
        (), description="Lines of the job script before the worker, such as: module load vasp"
    )
    options: tuple[str, ...] = Field((), description="Further options of sbatch, such as: --constraint=cpu")


class GridSettings(StepSettings):
    """From coarse bands to a sample of BNAS."""

    bands: int = Field(18, ge=1, description="Bands a sample")
    mesh: int = Field(32, ge=2, description="k points along each reciprocal axis")
    star_ratio: float = Field(5, gt=1, description="Star functions per coarse k point")
    method: Literal["stars", "model"] = Field(
        "stars",
        description="stars: star functions alone; model: through a fitted Hamiltonian, which keeps the crossings of "
        "bands and takes 5 to 40 CPU seconds a material (needs store: grids)",
    )
    chunk: int = Field(20, ge=1, description="Materials a task and a shard")
    store: Literal["grids", "coefficients", "both"] = Field(
        "grids", description="What shards hold: energies on the mesh, the star coefficients that make them, or both"
    )

    @model_validator(mode="after")
    def _stars_for_coefficients(self) -> Self:
        if self.method == "model" and self.store != "grids":
            raise ValueError("grid.method model has no star coefficients to store: set grid.store to grids")
        return self


class MpBandSettings(StepSettings):
    """Which rows are taken of the Materials Project's table of bands (source ``mp`` of `meissner grid`)."""

    max_gap_ev: float = Field(0.2, ge=0, description="Largest band gap, eV; rows without a gap are taken")
    elements: tuple[str, ...] = Field((), description="Only crystals that hold all of these elements")
    ids: str | None = Field(None, description="File of task ids, one a line, such as mp-149; none: all rows")
    limit: int | None = Field(None, ge=1, description="At most so many materials, the first of the table; none: all")
    since: date | None = Field(
        None, description="Only rows changed on this day or later (YYYY-MM-DD), where the table says; none: all"
    )


class NetworkSettings(StepSettings):
    """A training with its honest evaluation, of either network. ``config`` names network and recipe (see models/)."""

    config: str = Field("starter", description="Named network and recipe")
    epochs: int | None = Field(None, ge=1, description="Overrides the recipe's epochs")
    folds: int = Field(5, ge=2, description="Folds of each cross-validation")
    splits: tuple[str, ...] = Field(("random", "chemical-system"), description="Cross-validations to report")
    ensemble: int = Field(3, ge=1, description="Networks trained on all data for prediction")
    seed: int = Field(0, description="Seed of initial weights, folds and batches")
    device: str = Field("auto", description="auto, cpu or cuda", json_schema_extra={"enum": ["auto", "cpu", "cuda"]})


class TrainingSettings(NetworkSettings):
    """A training of BNAS."""

    config: str = Field(
        "starter",
        description="Named network and recipe: starter, best or paper; tiny for tests",
        json_schema_extra={"enum": ["starter", "best", "paper", "tiny"]},
    )
    devices: int = Field(1, ge=1, description="GPUs (or processes of a CPU) that share each training")
    precision: Literal["auto", "float32", "bf16"] = Field(
        "auto", description="Arithmetic of the training, weights stay float32; auto: bf16 on a GPU, float32 on a CPU"
    )
    compiled: bool = Field(False, description="Compile the network by torch.compile, for long runs on a GPU")
    pretrained: str | None = Field(None, description="Pre-trained weights to start from: latest, a version, or none")


class S2SNetTrainingSettings(NetworkSettings):
    """A training of S2SNet, and how it goes on from pre-trained weights."""

    config: str = Field(
        "starter",
        description="Named network and recipe: starter, s2snet or paper; tiny for tests",
        json_schema_extra={"enum": ["starter", "s2snet", "paper", "tiny"]},
    )
    devices: int = Field(1, ge=1, description="GPUs (or processes of a CPU) that share each training")
    pretrained: str | None = Field(
        None,
        description="Pre-trained weights to start from: latest, a version, or none: as the configuration says",
    )
    freeze: bool | None = Field(
        None, description="Keep the pre-trained trunk fixed and train the head; none: as the configuration says"
    )
    learning_rate: float | None = Field(
        None, gt=0, description="Peak rate of the fine-tuning; none: that of the recipe"
    )
    trees: bool | None = Field(
        None, description="Blend with gradient boosting on composition and structure; none: as the configuration says"
    )
    positive_share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Positive-unlabelled learning: share of superconductors among those not known to be one; none: 0",
    )
    reports: bool = Field(
        False, description="The trees learn from reports without a crystal, too; none of a relative of a held-out one"
    )


class S2SNetPretrainingSettings(StepSettings):
    """Pre-training of S2SNet on all ordered crystals, measured or not: hidden elements are guessed."""

    config: str = Field("starter", description="Named network and recipe: starter, s2snet, paper or tiny")
    epochs: int | None = Field(None, ge=1, description="Overrides the recipe's epochs")
    masking: Literal["atoms", "element"] = Field(
        "atoms", description="Hidden: 15 % of the atoms (with their equal ones), or all atoms of one element"
    )
    held_out: float = Field(0.1, gt=0, lt=1, description="Share of the chemical systems held out for the figures told")
    seed: int = Field(0, description="Seed of initial weights, hidden elements and batches")
    device: str = Field("auto", description="auto, cpu or cuda")
    devices: int = Field(1, ge=1, description="GPUs (or processes of a CPU) that share the training")


class PretrainingSettings(StepSettings):
    """Pre-training of BNAS on grids without labels: hidden patches are restored."""

    config: str = Field("starter", description="Named network and recipe: starter, best, paper or tiny")
    epochs: int | None = Field(None, ge=1, description="Overrides the recipe's epochs")
    share: float = Field(0.6, gt=0, lt=1, description="Share of the patches that are hidden, in pairs of k and -k")
    held_out: float = Field(0.1, gt=0, lt=1, description="Share of the chemical systems held out for the error told")
    seed: int = Field(0, description="Seed of initial weights, hidden patches and batches")
    device: str = Field("auto", description="auto, cpu or cuda")


class AuditSettings(StepSettings):
    """What is audited for leakage, and how much of it is allowed."""

    data: str = Field("crystals/ordered.parquet", description="Materials: a name in the workspace, a file or a URL")
    split_file: str | None = Field(
        None, description="A model's folds.parquet, or CSV of material_id, split, fold, side; none: splits are made"
    )
    pretraining: str | None = Field(None, description="Parquet or CSV of the crystals seen in pre-training")
    predictions: str | None = Field(None, description="Parquet or CSV of the predictions that were scored on the split")
    splits: tuple[str, ...] = Field(
        ("random", "chemical-system", "family", "year"), description="Splits to make; those that the data allow"
    )
    folds: int = Field(5, ge=2, description="Folds of each split that is made")
    seed: int = Field(0, description="Seed of the splits that are made")
    max_share: float = Field(0, ge=0, le=1, description="Largest share of test materials with a relative in training")
    max_share_random: float = Field(1, ge=0, le=1, description="The same for the random split; 1: only counted")
    min_order_chance: float = Field(
        1e-6, ge=0, le=1, description="Least chance that a split follows the file's order by accident; 0: only shown"
    )


class S2sSettings(StepSettings):
    """The training set of S2SNet, made from reports and crystals."""

    negatives_per_positive: float = Field(1.0, gt=0, description="Other crystals for each superconducting one")
    seed: int = Field(0, description="Seed of the draw of the others")
    max_sites: int = Field(444, ge=1, le=444, description="Largest cell, sites")


class BenchmarkSettings(StepSettings):
    """S2SNet and all baselines on the same folds of one dataset, with the paper's tables."""

    folds: int = Field(5, ge=2, description="Folds of each cross-validation")
    splits: tuple[str, ...] = Field(("random", "chemical-system"), description="Cross-validations to report")
    methods: tuple[str, ...] = Field((), description="Methods or families; none named: all")
    config: str = Field("s2snet", description="Named network and recipe of our S2SNet")
    size: Literal["auto", "published", "short"] = Field(
        "auto",
        description="Widths and epochs that are not named here: as published, or short; auto: short without a GPU",
    )
    width: int | None = Field(None, ge=1, description="Width of S2SNet as printed, 512; below, it is scaled down")
    layers: tuple[int, ...] = Field((5, 10, 15), min_length=1, description="Depths of S2SNet as printed")
    epochs: int | None = Field(None, ge=1, description="Epochs of S2SNet in place of the recipes'")
    printed_epochs: int | None = Field(None, ge=1, description="Epochs of S2SNet as printed; none: as epochs")
    pretraining_epochs: int | None = Field(None, ge=1, description="Epochs of S2SNet's pre-training; none: as epochs")
    graph_epochs: int | None = Field(None, ge=1, description="Epochs of CGCNN and MEGNet in place of 30")
    unlabelled: str | None = Field(
        None, description="More crystals for pre-training: JSON lines, CIF, folder, zip; with formation energies or not"
    )
    reports: str | None = Field(
        None, description="Table of reports, as for refresh: the trees may learn from its superconductors, too"
    )
    disorder: Literal["refuse", "order"] = Field("refuse", description="What is done with partial occupancies")
    seed: int = Field(0, description="Seed of initial weights, folds and batches")
    device: str = Field("auto", description="auto, cpu or cuda")


class TuningSettings(StepSettings):
    """Search for BNAS hyperparameters by Optuna."""

    trials: int = Field(14, ge=1, description="Trials in all, finished ones included")
    epochs: int = Field(100, ge=1, description="Epochs a trial")
    storage: str | None = Field(
        None, description="Optuna storage URL, a password in it as ${NAME} of the environment; none: SQLite here"
    )
    study: str = Field("bnas", description="Name of the study")
    space: Literal["paper", "small"] = Field("paper", description="Ranges: the paper's Table II, or small networks")
    published: bool = Field(True, description="Run the fourteen points of Table II first, in the paper's ranges")

    @field_validator("storage")
    @classmethod
    def _no_password(cls, url: str | None) -> str | None:
        """Prefect stores settings as parameters of flows; so the error, too, must not show the password."""
        if (password := urlsplit(url or "").password) and not re.fullmatch(r"\$\{\w+\}", password):
            raise MeissnerError(
                "Setting 'tuning.storage' holds a password, which would be stored with each flow run: write ${NAME} "
                "in its place and set NAME in the environment"
            )
        return url


class ScreeningSettings(StepSettings):
    """Which materials are screened and how they are ranked."""

    max_gap_ev: float = Field(0.2, ge=0, description="Largest band gap, eV")
    limit: int | None = Field(None, ge=1, description="At most so many materials")
    elements: tuple[str, ...] = Field((), description="Only materials that hold one of these elements")
    ids: str | None = Field(None, description="File of ids, one a line; none: all materials")
    since: date | None = Field(
        None, description="Only rows changed on this day or later (YYYY-MM-DD), where the table says; none: all"
    )
    max_distance: float = Field(1.0, gt=0, description="Beyond this distance from the training set the model abstains")
    coverage: float = Field(0.9, gt=0, lt=1, description="Nominal coverage of the intervals")
    chunk: int = Field(200, ge=1, description="Materials a task")
    best: int = Field(
        1000, ge=0, description="So many of the best are asked about in all 24 images, the others in one (fewer: all)"
    )
    kept: int = Field(
        50, ge=0, description="Of the best of a source, so many have their bands and grids kept, for the report"
    )
    keep_grids: bool = Field(False, description="Make and keep the grids of all materials of a source first")
    max_refused_share: float = Field(
        0.2, ge=0, le=1, description="Largest share of refused materials; the flow fails beyond"
    )
    bnas_version: str | None = Field(None, description="Version of BNAS; none: the one in use")
    s2snet_version: str | None = Field(None, description="Version of S2SNet; none: the one in use")


class TimeMachineSettings(StepSettings):
    """Retrospective test: train on what was reported before a year, and look how much of the rest was found later."""

    years: tuple[int, ...] = Field((), description="Years to go back to; none: five that the reports allow")
    year_table: str | None = Field(
        None, description="Table of reports that gives a year to compositions without one, such as SuperBand's"
    )
    networks: tuple[Literal["bnas", "s2snet"], ...] = Field(
        ("bnas", "s2snet"), description="Networks that are trained again for each year"
    )
    bnas: str = Field("starter", description="Named network and recipe of BNAS")
    s2snet: str = Field("starter", description="Named network and recipe of S2SNet")
    epochs: int | None = Field(None, ge=1, description="Overrides the recipes' epochs")
    top: tuple[int, ...] = Field((10, 50, 100), description="Lengths of the lists that are judged")
    background: float = Field(
        0.5,
        ge=0,
        description="Others for each superconductor in a training; what reports before the year lack is drawn by lot "
        "from what was not reported then, whatever became of it",
    )
    min_trained: int = Field(10, ge=2, description="Least superconductors reported before a year")
    min_found: int = Field(5, ge=1, description="Least superconductors to be found after it")
    seed: int = Field(0, description="Seed of lots, initial weights and batches")
    device: str = Field("auto", description="auto, cpu or cuda")


class ReportSettings(StepSettings):
    """The finished page."""

    top: int = Field(10, ge=1, description="Candidates with a panel of their own")


class OperationsSettings(StepSettings):
    """What runs by itself: how much at once, and who is told of what."""

    cpu: int = Field(2, ge=1, description="Flow runs at once in the queue cpu: screening")
    dft: int = Field(1, ge=1, description="Flow runs at once in the queue dft: refreshes and bands on demand")
    gpu: int = Field(1, ge=1, description="Flow runs at once in the queue gpu: training and tuning")
    notify: tuple[str, ...] = Field(
        (), description="Prefect blocks to notify, as slack-webhook/NAME, sendgrid-email/NAME, custom-webhook/NAME, ..."
    )
    quiet_days: float = Field(10, gt=0, description="Notify when refresh-weekly has had no success for so many days")
    quiet_days_screening: float = Field(
        40, gt=0, description="Notify when screen-monthly has had no success for so many days"
    )
    score_drop: float = Field(
        0.05, ge=0, description="Notify when a new network scores lower than the one in use before by more than this"
    )
    lost_minutes: float = Field(
        5,
        ge=0.75,
        description="Minutes without a sign of life, due every 30 s, after which a run counts as crashed",
    )
    start_minutes: float = Field(
        60, ge=0.75, description="Minutes after which a run that a worker took and did not start counts as crashed"
    )
    restarts: int = Field(2, ge=0, description="Times that a crashed run of a deployment is started again by itself")


def _one_or_more(value: Any) -> Any:
    """One source as it is, several as a list (in the environment as JSON)."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            if isinstance(listed := json.loads(value), list):
                return listed
        return (value,)
    return value


class Settings(BaseSettings):
    """All settings. ``Settings.load(profile, **flags)`` reads the sources in their order."""

    model_config = SettingsConfigDict(env_prefix="MEISSNER_", env_nested_delimiter="__", extra="forbid", frozen=True)

    workspace: str = Field("workspace", description="Folder or fsspec URL that holds everything that is made")
    supercon: str = Field(
        str(STARTER / "supercon.csv"), description="Table of reports: a file, a URL, or mdr (SuperCon, downloaded)"
    )
    crystals: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_one_or_more)] = Field(
        (str(STARTER / "crystals.csv"),),
        min_length=1,
        description="One or several of: facts CSV, CIF, POSCAR, folder, zip, tar, JSON; mp; optimade:PROVIDER or URL",
    )
    workers: int = Field(0, ge=0, description="Processes for heavy work; 0: one a core")
    mp_api_key: SecretStr | None = Field(None, description="Materials Project key; give it as MEISSNER_MP_API_KEY")
    cleaning: CleaningSettings = CleaningSettings()
    mdr: MdrSettings = MdrSettings()
    fetch: FetchSettings = FetchSettings()
    crystal: CrystalSettings = CrystalSettings()
    matching: MatchingSettings = MatchingSettings()
    ordering: OrderingSettings = OrderingSettings()
    bands: BandSettings = BandSettings()
    gpaw: GpawSettings = GpawSettings()
    vasp: VaspSettings = VaspSettings()
    cluster: ClusterSettings = ClusterSettings()
    grid: GridSettings = GridSettings()
    mp_bands: MpBandSettings = MpBandSettings()
    bnas: TrainingSettings = TrainingSettings()
    pretraining: PretrainingSettings = PretrainingSettings()
    s2snet: S2SNetTrainingSettings = S2SNetTrainingSettings()
    s2snet_pretraining: S2SNetPretrainingSettings = S2SNetPretrainingSettings()
    audit: AuditSettings = AuditSettings()
    s2s: S2sSettings = S2sSettings()
    benchmark: BenchmarkSettings = BenchmarkSettings()
    tuning: TuningSettings = TuningSettings()
    screening: ScreeningSettings = ScreeningSettings()
    time_machine: TimeMachineSettings = TimeMachineSettings()
    report: ReportSettings = ReportSettings()
    operations: OperationsSettings = OperationsSettings()
    notify_url: SecretStr | None = Field(
        None, description="Webhook to notify, Slack's or one that takes JSON; give it as MEISSNER_NOTIFY_URL"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags over the TOML file over the environment."""
        file = cls._toml_file
        toml = (TomlConfigSettingsSource(settings_cls, toml_file=file),) if file else ()
        return (init_settings, *toml, env_settings)

    _toml_file: ClassVar[Path | None] = None

    @classmethod
    def load(cls, profile: str | Path | None = None, **flags: Any) -> "Settings":
        """Settings from the environment, the profile (a name under deployments/ or a TOML file) and flags.

        Flags are nested dictionaries; ``None`` values are left out. Raises InputError with the name of the setting.
        """
        names = {"starter": STARTER / "profile.toml"}
        file = names.get(str(profile), Path(profile)) if profile else None
        if file and not file.is_file():
            raise InputError(f"Profile {str(profile)!r} is neither one of {sorted(names)} nor a TOML file")
        if file:
            _refuse_secrets(file)
        chosen = type(cls.__name__, (cls,), {"_toml_file": file, "__doc__": cls.__doc__})
        try:
            return cls(**dict(chosen(**_without_none(flags))))
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            secret = name.partition(".")[0] in SECRETS
            got = "" if secret else f" (got {first['input']!r})"
            raise InputError(f"Setting {name!r}: {first['msg']}{got}") from (None if secret else error)

    def without_secrets(self) -> dict[str, Any]:
        """All settings but the secret ones as plain JSON, for the parameters of a flow."""
        return self.model_dump(mode="json", exclude=set(SECRETS))

    @property
    def processes(self) -> int:
        """Worker processes: the setting, or one a core."""
        return self.workers or os.cpu_count() or 1


def _refuse_secrets(file: Path) -> None:
    """Raise InputError for a profile that holds a secret, without showing it, or that is not valid TOML."""
    try:
        found = tomllib.loads(file.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not valid TOML: {error}") from error
    for name in found.keys() & SECRETS.keys():
        raise InputError(
            f"Setting {name!r} is a secret and may not stand in the file {file}: give it as {SECRETS[name]}"
        )


def _without_none(flags: dict[str, Any]) -> dict[str, Any]:
    """Nested flags without those that were not given."""
    nested = {name: _without_none(value) if isinstance(value, dict) else value for name, value in flags.items()}
    return {name: value for name, value in nested.items() if value is not None and value != {}}


def settings_table() -> str:
    """All settings as the Markdown of docs/settings.md (`python -m tasks.settings > docs/settings.md`)."""
    lines = [
        "# Settings",
        "",
        "Four sources, the later one winning: the defaults below; environment variables; a TOML file",
        "(`--profile FILE`); command-line flags. A setting `gpaw.cutoff_ev` is `MEISSNER_GPAW__CUTOFF_EV` in",
        "the environment and, in TOML, `cutoff_ev` under `[gpaw]`. A name that is not in this table is refused, and so",
        f"are the secrets {' and '.join(f'`{name}`' for name in SECRETS)} in a TOML file.",
        "",
        "| setting | type | default | what |",
        "|---|---|---|---|",
        *_setting_rows(Settings, ""),
    ]
    return "\n".join(lines) + "\n"


def _setting_rows(model: type[BaseModel], prefix: str) -> list[str]:
    rows = []
    for name, field in model.model_fields.items():
        if isinstance(field.default, StepSettings):
            rows += _setting_rows(type(field.default), f"{prefix}{name}.")
            continue
        kind = field.annotation.__name__ if isinstance(field.annotation, type) else str(field.annotation)
        default = str(field.default).replace(str(ROOT) + os.sep, "")
        kind = kind.replace("typing.", "").replace("|", "\\|")
        rows.append(f"| `{prefix}{name}` | {kind} | {default} | {field.description} |")
    return rows


if __name__ == "__main__":
    sys.stdout.write(settings_table())
