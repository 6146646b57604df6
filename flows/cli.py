"""The command line: it reads settings, opens a Prefect server, and calls flows."""

import contextlib
import os
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
pretrain = typer.Typer(help="Learn from grids without labels. Example: meissner pretrain bnas --collection mp")
app.add_typer(pretrain, name="pretrain", no_args_is_help=True)
retry = typer.Typer(help="Start again what failed. Example: meissner retry failed --reason converge")
app.add_typer(retry, name="retry", no_args_is_help=True)

dataset = typer.Typer(help="Build a training set from the workspace. Example: meissner dataset s2s --export s2s.jsonl")
app.add_typer(dataset, name="dataset", no_args_is_help=True)

tune = typer.Typer(help="Search hyperparameters with Optuna. Example: meissner tune bnas --trials 20 --epochs 10")
app.add_typer(tune, name="tune", no_args_is_help=True)

explain = typer.Typer(help="Show what a network looks at. Example: meissner explain bnas vasprun.xml --output why")
app.add_typer(explain, name="explain", no_args_is_help=True)

validate = typer.Typer(help="Predict what the papers report on. Example: meissner validate pairs")
app.add_typer(validate, name="validate", no_args_is_help=True)

Profile = Annotated[str | None, typer.Option("--profile", "-p", help="starter, or a TOML file of settings")]
Place = Annotated[str | None, typer.Option("--workspace", "-w", help="Folder or URL that holds everything made")]
Config = Annotated[str | None, typer.Option(help="Named network and recipe: starter or paper")]
Epochs = Annotated[int | None, typer.Option(help="Epochs in place of the recipe's")]
Folds = Annotated[int | None, typer.Option(help="Folds of each cross-validation")]
Split = Annotated[list[str] | None, typer.Option(help="random, chemical-system, family or year; may be repeated")]
Seed = Annotated[int | None, typer.Option(help="Seed of weights, folds and batches")]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda")]
Engine = Annotated[str | None, typer.Option(help="Band engine for materials without bands: gpaw, vasp or none")]
Limit = Annotated[int | None, typer.Option(help="At most so many new band calculations")]
Supercon = Annotated[str | None, typer.Option(help="Table of reports: a file, a URL, or mdr (SuperCon, downloaded)")]
FormulaColumn = Annotated[str | None, typer.Option(help="Header of the formula in a table of your own")]
TcColumn = Annotated[str | None, typer.Option(help="Header of Tc in a table of your own")]
Crystals = Annotated[
    list[str] | None,
    typer.Option(help="Facts CSV, CIF, POSCAR, folder, zip, tar, JSON; mp; optimade:PROVIDER or URL; may be repeated"),
]
Refetch = Annotated[bool, typer.Option("--refetch", help="Ask databases again for what they have answered already")]

DATA_STEPS = ("cleaning", "mdr", "fetch", "crystal", "matching", "ordering", "bands", "gpaw", "vasp", "cluster", "grid")
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
    _check_sources(settings)
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
    refetch: Refetch = False,
    until: Annotated[str, typer.Option(help="Last stage: clean, crystals, match, order, bands or grid")] = "grid",
    engine: Engine = None,
    limit: Limit = None,
    formula_column: FormulaColumn = None,
    tc_column: TcColumn = None,
) -> None:
    """Refresh the data up to a stage. Example: meissner refresh --supercon my.csv --until order"""
    from flows.display import STAGES, print_rules
    from tasks.exceptions import InputError

    stages = STAGES[:6]
    if until not in stages:
        raise InputError(f"--until {until!r} is not one of {', '.join(stages)}")
    bands = {"engine": engine, "limit": limit}
    cleaning = {"formula_column": formula_column, "tc_column": tc_column}
    inputs = {"supercon": supercon, "crystals": crystals or None, "fetch": {"refetch": refetch or None}}
    settings = _settings(profile, workspace=workspace, **inputs, cleaning=cleaning, bands=bands)
    if "crystals" in stages[: stages.index(until) + 1]:
        _check_sources(settings)
    with _run(settings, stages[: stages.index(until) + 1]) as (place, console):
        from flows.refresh import refresh as flow

        flow(**_inputs(settings), until=until, **_steps(settings, *DATA_STEPS), processes=settings.processes)
    print_rules(console, place)


@retry.command("failed")
def retry_failed(
    profile: Profile = None,
    workspace: Place = None,
    reason: Annotated[str | None, typer.Option(help="Words of the reason; without: what failed in passing")] = None,
    engine: Engine = None,
    limit: Limit = None,
) -> None:
    """Calculate again what failed. Example: meissner retry failed --reason converge"""
    settings = _settings(profile, workspace=workspace, bands={"engine": engine, "limit": limit})
    with _run(settings, ("bands", "grid")):
        from flows.retry import retry_failed as flow

        steps = _steps(settings, "bands", "gpaw", "vasp", "cluster", "grid")
        flow(settings.workspace, reason, **steps, processes=settings.processes)


def _train(name: str, profile: str | None, workspace: str | None, data: str | None = None, **choices: Any) -> None:
    from flows.display import print_scores

    settings = _settings(profile, workspace=workspace, **{name: choices})
    stages = ("grid", f"train-{name}") if data else (f"train-{name}",)
    with _run(settings, stages) as (place, console):
        if name == "bnas":
            from flows.train_bnas import train_bnas

            train_bnas(settings.workspace, settings.bnas, settings.processes, data, settings.grid)
        else:
            from flows.train_s2snet import train_s2snet

            train_s2snet(settings.workspace, settings.s2snet, settings.processes)
    if data:
        from tasks.grid_sources import collection, collection_name

        place = collection(place, collection_name(data))
    print_scores(console, place, (name,))
    console.print(f"The network, its scores and figures: {_location(place, f'models/{name}')}")


@train.command("bnas")
def train_bnas(
    profile: Profile = None,
    workspace: Place = None,
    data: Annotated[
        str | None, typer.Option(help="Bands with a tc_kelvin each (file, folder, zip), not the workspace's")
    ] = None,
    config: Config = None,
    epochs: Epochs = None,
    folds: Folds = None,
    split: Split = None,
    seed: Seed = None,
    device: Device = None,
    devices: Annotated[int | None, typer.Option(help="GPUs, or processes of a CPU, that share each training")] = None,
    pretrained: Annotated[
        str | None, typer.Option(help="Start from pre-trained weights: latest, a version, or none")
    ] = None,
) -> None:
    """Bands to Tc. Example: meissner train bnas --config paper --device cuda"""
    choices: dict[str, Any] = {"config": config, "epochs": epochs, "folds": folds, "seed": seed, "device": device}
    _train("bnas", profile, workspace, data, **choices, splits=split or None, devices=devices, pretrained=pretrained)


@pretrain.command("bnas")
def pretrain_bnas(
    profile: Profile = None,
    workspace: Place = None,
    collection: Annotated[
        str | None, typer.Option(help="Collection whose grids are learnt from, not the workspace's")
    ] = None,
    config: Config = None,
    epochs: Epochs = None,
    share: Annotated[float | None, typer.Option(help="Share of the patches that are hidden")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, hidden patches and batches")] = None,
    device: Device = None,
) -> None:
    """Hidden patches of bands, restored. Example: meissner pretrain bnas --collection mp --config paper"""
    choices = {"config": config, "epochs": epochs, "share": share, "seed": seed, "device": device}
    settings = _settings(profile, workspace=workspace, pretraining=choices)
    with _run(settings, ("pretrain-bnas",)) as (place, console):
        from flows.pretrain_bnas import pretrain_bnas as flow

        found = flow(settings.workspace, settings.pretraining, collection).counts
    console.print(
        f"Error on hidden patches of {found['held_out']} held-out materials: {found['error']}; the visible mean "
        f"{found['visible mean']}, the training mean {found['training mean']}"
    )
    console.print(f"The weights: {_location(place, 'models/bnas-pretraining')}/{found['version']}")


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
    choices: dict[str, Any] = {"config": config, "epochs": epochs, "folds": folds, "seed": seed, "device": device}
    _train("s2snet", profile, workspace, **choices, splits=split or None)


@dataset.command("s2s")
def dataset_s2s(
    profile: Profile = None,
    workspace: Place = None,
    ratio: Annotated[float | None, typer.Option(help="Other crystals for each superconducting one")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the draw of the others")] = None,
    export: Annotated[str | None, typer.Option(help="File for JSON lines as published, gzipped by name")] = None,
) -> None:
    """Crystals for S2SNet, superconducting and others. Example: meissner dataset s2s --ratio 3 --export s2s.jsonl.gz"""
    settings = _settings(profile, workspace=workspace, s2s={"negatives_per_positive": ratio, "seed": seed})
    with _run(settings, ("s2s",)) as (place, console):
        from flows.dataset import s2s as flow

        report = flow(settings.workspace, settings.s2s, settings.matching, export)
    console.print(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in report.counts.items()))
    console.print(f"The set: {export or _location(place, 'datasets/s2s.parquet')}")


@app.command()
def audit(
    profile: Profile = None,
    workspace: Place = None,
    data: Annotated[str | None, typer.Option(help="Table of materials: a name in the workspace, a file or URL")] = None,
    split: Split = None,
    folds: Annotated[int | None, typer.Option(help="Folds of each split that is made")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the splits that are made")] = None,
    split_file: Annotated[str | None, typer.Option(help="A split to audit: a model's folds.parquet, or CSV")] = None,
    pretraining: Annotated[str | None, typer.Option(help="Crystals that were seen in pre-training")] = None,
    predictions: Annotated[str | None, typer.Option(help="Predictions that were scored on the split")] = None,
    max_share: Annotated[float | None, typer.Option(help="Largest share of test materials with a relative")] = None,
    max_share_random: Annotated[float | None, typer.Option(help="The same for the random split")] = None,
) -> None:
    """Count what a split has on both sides. Example: meissner audit --data mine.csv --split chemical-system"""
    from flows.display import print_leakage
    from models.exceptions import LeakageError

    files = {"data": data, "split_file": split_file, "pretraining": pretraining, "predictions": predictions}
    limits = {"max_share": max_share, "max_share_random": max_share_random}
    settings = _settings(
        profile, workspace=workspace, audit={**files, **limits, "splits": split or None, "folds": folds, "seed": seed}
    )
    leak = None
    with _run(settings, ("audit",)) as (place, console):
        from flows.audit import audit as flow

        try:
            flow(settings.workspace, settings.audit)
        except LeakageError as error:
            leak = error
    print_leakage(console, place)
    if leak:
        raise leak


@tune.command("bnas")
def tune_bnas(
    profile: Profile = None,
    workspace: Place = None,
    trials: Annotated[int | None, typer.Option(help="Trials in all, finished ones included")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs a trial")] = None,
    space: Annotated[str | None, typer.Option(help="Ranges: paper (Table II, with its points first) or small")] = None,
    study: Annotated[str | None, typer.Option(help="Name of the study, which a killed search goes on with")] = None,
    storage: Annotated[str | None, typer.Option(help="Optuna's database URL; none: a file in the workspace")] = None,
    config: Config = None,
) -> None:
    """Search BNAS hyperparameters with Optuna. Example: meissner tune bnas --trials 20 --epochs 10"""
    from flows.display import print_trials

    choices = {"trials": trials, "epochs": epochs, "space": space, "study": study, "storage": storage}
    settings = _settings(profile, workspace=workspace, tuning=choices, bnas={"config": config})
    with _run(settings, ("tune",)) as (place, console):
        from flows.tune import tune_bnas as flow

        flow(settings.workspace, settings.tuning, settings.bnas, settings.processes)
    print_trials(console, place, settings.tuning.study)


@app.command()
def grid(
    sources: Annotated[
        list[str] | None,
        typer.Argument(help="Bands: vasprun.xml, _hr.dat, JSON, Parquet; files, folders or zips; mp or mp:COPY"),
    ] = None,
    source: Annotated[list[str] | None, typer.Option(help="The same; may be repeated")] = None,
    profile: Profile = None,
    workspace: Place = None,
    collection: Annotated[
        str, typer.Option(help="Name of the collection that the grids of the sources make")
    ] = "files",
    efermi: Annotated[float | None, typer.Option(help="Fermi level of tight-binding models without one, eV")] = None,
    store: Annotated[str | None, typer.Option(help="What shards hold: grids, coefficients or both")] = None,
    max_gap: Annotated[float | None, typer.Option(help="Largest band gap of mp, eV")] = None,
    elements: Annotated[str | None, typer.Option(help="Only crystals of mp that hold all of these: Nb,Ti")] = None,
    ids: Annotated[str | None, typer.Option(help="File of task ids of mp, one a line")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many materials of mp")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check every shard, and make damaged ones again")] = False,
) -> None:
    """Bring bands onto grids, of the workspace or of files. Example: meissner grid runs/ --collection mine"""
    sources = [*(sources or ()), *(source or ())]
    symbols = elements.split(",") if elements else None
    mp_bands = {"max_gap_ev": max_gap, "elements": symbols, "ids": ids, "limit": limit}
    _check_choices(mp_bands, sources)
    settings = _settings(profile, workspace=workspace, grid={"store": store}, mp_bands=mp_bands)
    with _run(settings, ("grid",)) as (place, console):
        from flows import grids as flows

        if not sources:
            flows.grids(settings.workspace, settings.grid, settings.processes, verify)
            return
        report = flows.grid_source(
            settings.workspace,
            tuple(sources),
            collection,
            settings.grid,
            efermi,
            settings.processes,
            settings.mp_bands,
            verify,
        )
    where = place.path(f"collections/{collection}")
    console.print(f"{report.counts['grids']} grids, {report.rows_refused} refused, in {where}")


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


@explain.command("bnas")
def explain_bnas(
    material: Annotated[str, typer.Argument(help="Id of a material that has a grid, or a vasprun.xml")],
    profile: Profile = None,
    workspace: Place = None,
    output: Annotated[
        str | None, typer.Option(help="Folder for the files; without: explain/bnas in the workspace")
    ] = None,
    band: Annotated[int | None, typer.Option(help="Band to show, from 1; without: the nearest to E_F")] = None,
    point: Annotated[str, typer.Option(help="k point that the planes go through, fractional: 0,0,0.25")] = "0,0,0",
) -> None:
    """Attention rollout of one material, and what it is worth. Example: meissner explain bnas Nb-229 --output why"""
    from rich.console import Console

    from flows.display import print_explanation
    from tasks.attention import explain_material
    from tasks.workspace import Workspace

    place = Workspace(_settings(profile, workspace=workspace).workspace)
    found, files = explain_material(place, material, output, None if band is None else band - 1, _point(point))
    print_explanation(Console(), found, files)


@validate.command("pairs")
def validate_pairs(profile: Profile = None, workspace: Place = None) -> None:
    """Table I of the BNAS paper: four pairs, one of each a superconductor. Example: meissner validate pairs"""
    from flows.display import print_pairs

    settings = _settings(profile, workspace=workspace)
    with _run(settings, ("validate-pairs",)) as (place, console):
        from flows.validate import pairs as flow
        from tasks.validation import OUTPUT, check_found

        found = flow(settings.workspace)
    print_pairs(console, place)
    console.print(f"The table: {_location(place, OUTPUT)}", soft_wrap=True)
    check_found(found, place)


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


@app.command("jobflow-remote")
def jobflow_remote(
    profile: Profile = None,
    workspace: Place = None,
    output: Annotated[str | None, typer.Option(help="File to write, such as ~/.jfremote/meissner.yaml")] = None,
) -> None:
    """Print a project file for jobflow-remote. Example: meissner jobflow-remote --output ~/.jfremote/meissner.yaml"""
    import yaml  # type: ignore[import-untyped]

    from tasks.jobflow_remote import remote_project

    text = yaml.safe_dump(remote_project(_settings(profile, workspace=workspace)), sort_keys=False)
    if output is None:
        print(text, end="")
        return
    path = Path(output).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(f"Written {path}; next: jf project check")


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

    settings = Settings.load(profile, **flags)
    if settings.mp_api_key:  # by the environment, because Prefect stores the parameters of flows
        os.environ["MEISSNER_MP_API_KEY"] = settings.mp_api_key.get_secret_value()
    return settings


def _check_sources(settings: "Settings") -> None:
    """Refuse a database that cannot be asked before anything is started."""
    from tasks.crystal_sources import check_databases
    from tasks.workspace import Workspace

    check_databases(Workspace(settings.workspace), settings.crystals, settings.fetch, settings.mp_api_key)


def _check_choices(mp_bands: dict[str, Any], sources: list[str] | None) -> None:
    """Refuse a choice of rows where there is no table of the Materials Project to choose from."""
    from tasks.exceptions import InputError

    chosen = any(value is not None for value in mp_bands.values())
    if chosen and not any(source.split(":")[0] == "mp" for source in sources or ()):
        raise InputError(
            "--max-gap, --elements, --ids and --limit choose rows of the Materials Project's table; name it among the "
            "sources: mp, or mp:COPY"
        )


def _point(text: str) -> tuple[float, ...]:
    """Three fractional coordinates, written as 0,0,0.25."""
    from tasks.exceptions import InputError

    try:
        coordinates = tuple(float(part) for part in text.split(","))
    except ValueError:
        coordinates = ()
    if len(coordinates) != 3 or not all(abs(coordinate) <= 1 for coordinate in coordinates):
        raise InputError(f"--point {text!r} is not three fractional coordinates between -1 and 1, such as 0,0,0.25")
    return coordinates


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
    import shutil

    option = "" if place.url == "workspace" else f" --workspace {place.url}"
    meissner = "meissner" if shutil.which("meissner") else sys.argv[0]
    console.print(f"\nThe report: [bold]{_location(place, 'report/index.html')}[/]")
    console.print("Next:")
    console.print(f"  {meissner} predict YOUR.cif{option}   both networks on a crystal of yours")
    console.print(f"  {meissner} ui{option}   what ran, in Prefect's UI")
    console.print("  README.md, “Real data”   your own reports and crystals")
