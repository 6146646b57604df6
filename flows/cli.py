"""The command line: it reads settings, opens a Prefect server, and calls flows."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

# Everything else is imported where it is used: `meissner --help` answers at once.
if TYPE_CHECKING:
    from rich.console import Console

    from tasks.settings import Settings
    from tasks.workspace import Workspace

app = typer.Typer(
    name="meissner",
    help="From reports of superconductors to a ranked list of new candidates.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
train = typer.Typer(help="Train a network and judge it on held-out folds. Example: meissner train bnas --epochs 50")
app.add_typer(train, name="train", no_args_is_help=True)

Profile = Annotated[str | None, typer.Option("--profile", "-p", help="starter, or a TOML file of settings")]
Place = Annotated[str | None, typer.Option("--workspace", "-w", help="Folder or URL that holds everything made")]
Config = Annotated[str | None, typer.Option(help="Named network and recipe: starter or paper")]
Epochs = Annotated[int | None, typer.Option(help="Epochs in place of the recipe's")]
Folds = Annotated[int | None, typer.Option(help="Folds of each cross-validation")]
Split = Annotated[list[str] | None, typer.Option(help="random, chemical-system, family or year; may be repeated")]
Seed = Annotated[int | None, typer.Option(help="Seed of weights, folds and batches")]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda")]
Engine = Annotated[str | None, typer.Option(help="Band engine for materials without bands: gpaw or none")]
Limit = Annotated[int | None, typer.Option(help="At most so many new band calculations")]
Supercon = Annotated[str | None, typer.Option(help="CSV with a formula and a Tc column")]
Crystals = Annotated[str | None, typer.Option(help="Crystals: facts CSV, CIF or POSCAR file, folder, zip, JSON")]

DATA_STEPS = ("cleaning", "crystal", "matching", "ordering", "bands", "gpaw", "grid")
NETWORK_STEPS = ("bnas", "s2snet", "screening", "report")


@app.command()
def discover(
    profile: Profile = None,
    workspace: Place = None,
    engine: Engine = None,
    limit: Limit = None,
) -> None:
    """Run everything, from reports to ranked candidates. Example: meissner discover --profile starter"""
    from flows.display import STAGES, print_candidates, print_scores

    settings = _settings(profile, workspace=workspace, bands={"engine": engine, "limit": limit})
    with _run(settings, STAGES) as (place, console):
        from flows.discover import discover as flow

        flow(**_inputs(settings), **_steps(settings, *DATA_STEPS, *NETWORK_STEPS), processes=settings.processes)
    print_candidates(console, place)
    print_scores(console, place)
    _print_next_steps(console, place)


@app.command()
def refresh(
    profile: Profile = None,
    workspace: Place = None,
    supercon: Supercon = None,
    crystals: Crystals = None,
    until: Annotated[str, typer.Option(help="Last stage: clean, crystals, match, order, bands or grid")] = "grid",
    engine: Engine = None,
    limit: Limit = None,
) -> None:
    """Refresh the data up to a stage. Example: meissner refresh --supercon my.csv --until order"""
    from flows.display import STAGES
    from tasks.exceptions import InputError

    stages = STAGES[:6]
    if until not in stages:
        raise InputError(f"--until {until!r} is not one of {', '.join(stages)}")
    bands = {"engine": engine, "limit": limit}
    settings = _settings(profile, workspace=workspace, supercon=supercon, crystals=crystals, bands=bands)
    with _run(settings, stages[: stages.index(until) + 1]):
        from flows.refresh import refresh as flow

        flow(**_inputs(settings), until=until, **_steps(settings, *DATA_STEPS), processes=settings.processes)


def _train(name: str, profile: str | None, workspace: str | None, **choices: Any) -> None:
    from flows.display import print_scores

    settings = _settings(profile, workspace=workspace, **{name: choices})
    with _run(settings, (f"train-{name}",)) as (place, console):
        if name == "bnas":
            from flows.train_bnas import train_bnas as flow
        else:
            from flows.train_s2snet import train_s2snet as flow
        flow(settings.workspace, getattr(settings, name), settings.processes)
    print_scores(console, place, (name,))


@train.command("bnas")
def train_bnas(
    profile: Profile = None,
    workspace: Place = None,
    config: Config = None,
    epochs: Epochs = None,
    folds: Folds = None,
    split: Split = None,
    seed: Seed = None,
    device: Device = None,
) -> None:
    """Bands to Tc. Example: meissner train bnas --config paper --device cuda"""
    choices = {"config": config, "epochs": epochs, "folds": folds, "seed": seed, "device": device}
    _train("bnas", profile, workspace, **choices, splits=split or None)


@train.command("s2snet")
def train_s2snet(
    profile: Profile = None,
    workspace: Place = None,
    config: Config = None,
    epochs: Epochs = None,
    folds: Folds = None,
    split: Split = None,
    seed: Seed = None,
    device: Device = None,
) -> None:
    """Crystal to superconductor or not. Example: meissner train s2snet --split chemical-system"""
    choices = {"config": config, "epochs": epochs, "folds": folds, "seed": seed, "device": device}
    _train("s2snet", profile, workspace, **choices, splits=split or None)


@app.command()
def tune(
    profile: Profile = None,
    workspace: Place = None,
    trials: Annotated[int | None, typer.Option(help="Trials in all, finished ones included")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs a trial")] = None,
) -> None:
    """Search BNAS hyperparameters with Optuna. Example: meissner tune --trials 20 --epochs 10"""
    settings = _settings(profile, workspace=workspace, tuning={"trials": trials, "epochs": epochs})
    with _run(settings, ("tune",)):
        from flows.tune import tune as flow

        flow(settings.workspace, settings.tuning, settings.bnas, settings.processes)


@app.command()
def screen(
    profile: Profile = None,
    workspace: Place = None,
    max_gap: Annotated[float | None, typer.Option(help="Largest band gap, eV")] = None,
    element: Annotated[list[str] | None, typer.Option(help="Only materials that hold it; may be repeated")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many materials")] = None,
) -> None:
    """Rank every material that has bands. Example: meissner screen --max-gap 0.2 --element Nb"""
    from flows.display import print_candidates

    choices = {"max_gap_ev": max_gap, "elements": element or None, "limit": limit}
    settings = _settings(profile, workspace=workspace, screening=choices)
    with _run(settings, ("screen",)) as (place, console):
        from flows.screening import screen as flow

        flow(settings.workspace, settings.screening)
    print_candidates(console, place)


@app.command()
def predict(
    files: Annotated[list[Path], typer.Argument(help="CIF, POSCAR, pymatgen JSON or vasprun.xml files")],
    profile: Profile = None,
    workspace: Place = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV")] = False,
) -> None:
    """Ask the trained networks about single materials. Example: meissner predict MgB2.cif vasprun.xml"""
    from rich.console import Console

    from flows.display import print_predictions
    from tasks.screening import predict as answer
    from tasks.workspace import Workspace

    settings = _settings(profile, workspace=workspace)
    predictions = answer(files, Workspace(settings.workspace))
    print_predictions(Console(), predictions, "json" if as_json else "csv" if as_csv else "table")
    if all(prediction.error for prediction in predictions):
        raise typer.Exit(2)


@app.command()
def report(
    profile: Profile = None,
    workspace: Place = None,
    top: Annotated[int | None, typer.Option(help="Candidates with a panel of their own")] = None,
) -> None:
    """Write the page about the last screening. Example: meissner report --top 20"""
    settings = _settings(profile, workspace=workspace, report={"top": top})
    with _run(settings, ("report",)) as (place, console):
        from flows.report import report as flow

        flow(settings.workspace, settings.report)
    console.print(f"The report: {_location(place, 'report/index.html')}")


@app.command()
def ui(
    profile: Profile = None,
    workspace: Place = None,
    port: Annotated[int | None, typer.Option(help="Port on 127.0.0.1")] = None,
) -> None:
    """Open Prefect's server on the workspace's runs. Example: meissner ui --port 4200"""
    import threading

    from rich.console import Console

    from flows.server import prefect_server
    from tasks.workspace import Workspace

    settings = _settings(profile, workspace=workspace)
    with prefect_server(Workspace(settings.workspace), port) as server:
        Console().print(f"Prefect's UI: {server.ui_url}   (Ctrl-C ends it)" if server.owned else server.ui_url)
        if server.owned:
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()


@app.command()
def doctor(profile: Profile = None, workspace: Place = None) -> None:
    """Tell what is installed, which engines can run, and what the workspace holds. Example: meissner doctor"""
    from rich.console import Console

    from flows.doctor import print_health

    print_health(Console(), _settings(profile, workspace=workspace))


def main() -> None:
    """Entry point: errors of users and of the workspace become one sentence and exit code 2."""
    try:
        app(standalone_mode=True)
    except Exception as error:
        from models.exceptions import MeissnerError

        if not isinstance(error, MeissnerError):
            raise
        sys.stderr.write(f"meissner: {error}\n")
        sys.exit(2)


def _settings(profile: str | None, **flags: Any) -> "Settings":
    from tasks.settings import Settings

    return Settings.load(profile, **flags)


def _inputs(settings: "Settings") -> dict[str, Any]:
    return {"workspace": settings.workspace, "supercon": settings.supercon, "crystals": settings.crystals}


def _steps(settings: "Settings", *names: str) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in names}


@contextlib.contextmanager
def _run(settings: "Settings", stages: tuple[str, ...]) -> Iterator[tuple["Workspace", "Console"]]:
    """A checked workspace, a Prefect server, a live display, and a Ctrl-C that stops within seconds."""
    from rich.console import Console

    from flows.display import live_stages
    from flows.interrupt import stop_on_interrupt
    from flows.server import mark_crashed_runs, prefect_server
    from tasks.workspace import Workspace

    place = Workspace(settings.workspace)
    place.check_writable()
    console = Console()
    with stop_on_interrupt(), prefect_server(place) as server:
        mark_crashed_runs(server)
        console.print(f"[dim]Workspace {place.url} · Prefect's UI {server.ui_url}[/]")
        with live_stages(console, stages) as close_display, stop_on_interrupt(server, close_display):
            yield place, console


def _location(place: "Workspace", name: str) -> str:
    return str(place.local(name)) if place.is_local else f"{place.url}/{name}"


def _print_next_steps(console: "Console", place: "Workspace") -> None:
    option = "" if place.url == "workspace" else f" --workspace {place.url}"
    console.print(f"\nThe report: [bold]{_location(place, 'report/index.html')}[/]")
    console.print("Next:")
    console.print(f"  meissner predict YOUR.cif{option}   both networks on a crystal of yours")
    console.print(f"  meissner ui{option}   what ran, in Prefect's UI")
    console.print("  README.md, “Real data”   your own reports and crystals")
