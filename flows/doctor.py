"""What is installed, what can run, where the workspace is and what it holds."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.display import STAGES
from flows.server import configured_api_url
from tasks.engines.gpaw import gpaw_available
from tasks.engines.vasp import VaspBandMaker, potcar_folder
from tasks.exceptions import WorkspaceError
from tasks.settings import Settings
from tasks.stages import read_report
from tasks.workspace import Workspace

PACKAGES = ("prefect", "jobflow", "atomate2", "pymatgen", "BoltzTraP2", "ifermi", "gpaw", "torch", "optuna", "zarr")


def print_health(console: Console, settings: Settings) -> None:
    """Print three tables: this machine, the band engines, the workspace."""
    console.print(_machine())
    console.print(_engines(settings))
    console.print(_workspace(settings))


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", show_edge=False)
    for heading in headings:
        table.add_column(heading)
    return table


def _machine() -> Table:
    import torch

    table = _table("This machine", "what", "found")
    table.add_row("Python", platform.python_version())
    for package in PACKAGES:
        try:
            table.add_row(package, version(package))
        except PackageNotFoundError:
            table.add_row(package, "[yellow]not installed[/]")
    table.add_row("cores", str(os.cpu_count()))
    table.add_row(
        "GPU", torch.cuda.get_device_name() if torch.cuda.is_available() else "none: training runs on the CPU"
    )
    table.add_row("Prefect server", configured_api_url() or "embedded, started with each run (`meissner ui` opens it)")
    return table


def _engines(settings: Settings) -> Table:
    table = _table("Band engines", "engine", "can run", "why not, or what it is")
    gpaw = gpaw_available()
    table.add_row("gpaw", "yes" if gpaw else "no", escape(gpaw.reason or "PAW-PBE in plane waves, the open engine"))
    engine = VaspBandMaker(settings=settings.vasp)
    vasp = engine.available()
    what = f"{engine.command}; POTCARs in {potcar_folder(settings.vasp)} ({settings.vasp.potcar_functional})"
    table.add_row("vasp", "yes" if vasp else "no", escape(vasp.reason or what))
    cluster = settings.cluster
    if cluster.kind == "slurm":
        found = shutil.which("sbatch")
        slurm = f"up to {cluster.jobs} jobs of {cluster.cores} cores, {cluster.memory}, {cluster.wall_time}"
        table.add_row("on Slurm", "yes" if found else "no", escape(slurm) if found else "sbatch is not there")
    return table


def _workspace(settings: Settings) -> Table:
    place = Workspace(settings.workspace)
    try:
        place.check_writable()
        state = "writable"
    except WorkspaceError as error:
        state = f"not writable: {error}"
    if place.is_local and place.local(".").exists():
        state += f", {shutil.disk_usage(place.local('.')).free / 1e9:.1f} GB free"
    table = _table(escape(f"Workspace {place.url} ({state})"), "stage", "finished", "rows in", "refused", "seconds")
    for stage in STAGES:
        if report := read_report(place, stage):
            finished = f"{report.finished:%Y-%m-%d %H:%M}"
            table.add_row(stage, finished, str(report.rows_in), str(report.rows_refused), f"{report.seconds:.1f}")
        else:
            table.add_row(stage, "not yet", "", "", "")
    return table
