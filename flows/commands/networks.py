"""Networks: training, pre-training, tuning, explanation, validation."""

import contextlib
from typing import Annotated, Any

import typer

from flows.commands.common import (
    Compiled,
    Config,
    Device,
    Epochs,
    Folds,
    Place,
    Precision,
    Profile,
    Seed,
    Split,
    load_settings,
    location,
    opened,
)

app = typer.Typer()
train = typer.Typer(help="Train a network and judge it on held-out folds. Example: meissner train bnas --epochs 50")
pretrain = typer.Typer(help="Learn from grids without labels. Example: meissner pretrain bnas --collection mp")
tune = typer.Typer(help="Search hyperparameters with Optuna. Example: meissner tune bnas --trials 20 --epochs 10")
explain = typer.Typer(help="Show what a network looks at. Example: meissner explain bnas vasprun.xml --output why")
validate = typer.Typer(help="Predict what the papers report on. Example: meissner validate pairs")
benchmark = typer.Typer(
    help="Judge methods on the same folds. Example: meissner benchmark s2s --data s2s.jsonl.gz --methods cgcnn"
)
app.add_typer(train, name="train", no_args_is_help=True)
app.add_typer(pretrain, name="pretrain", no_args_is_help=True)
app.add_typer(tune, name="tune", no_args_is_help=True)
app.add_typer(explain, name="explain", no_args_is_help=True)
app.add_typer(validate, name="validate", no_args_is_help=True)
app.add_typer(benchmark, name="benchmark", no_args_is_help=True)


def _train(name: str, profile: str | None, workspace: str | None, data: str | None = None, **choices: Any) -> None:
    from flows.display import PLAIN, print_scores
    from tasks.exceptions import MissingStageError
    from tasks.model_store import chosen_version
    from tasks.model_versions import tell_in_use

    settings = load_settings(profile, workspace=workspace, **{name: choices})
    stages = ("grid", f"train-{name}") if data else (f"train-{name}",)
    before = None
    with opened(settings, stages) as (place, console):
        with contextlib.suppress(MissingStageError):
            before = chosen_version(place, name)
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
    if not data:
        console.print(tell_in_use(place, name, before), **PLAIN)
    console.print(f"The network, its scores and figures: {location(place, f'models/{name}')}")


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
    precision: Precision = None,
    compiled: Compiled = None,
    pretrained: Annotated[
        str | None, typer.Option(help="Start from pre-trained weights: latest, a version, or none")
    ] = None,
) -> None:
    """Bands to Tc. Example: meissner train bnas --config paper --device cuda"""
    choices: dict[str, Any] = {"config": config, "epochs": epochs, "folds": folds, "seed": seed, "device": device}
    choices |= {"devices": devices, "precision": precision, "compiled": compiled, "pretrained": pretrained}
    _train("bnas", profile, workspace, data, **choices, splits=split or None)


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
    devices: Annotated[int | None, typer.Option(help="GPUs, or processes of a CPU, that share each training")] = None,
    pretrained: Annotated[
        str | None, typer.Option(help="Start from pre-trained weights: latest, a version, or none")
    ] = None,
    freeze: Annotated[bool | None, typer.Option(help="Keep the pre-trained trunk fixed, train the head")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak rate of the fine-tuning")] = None,
    trees: Annotated[bool | None, typer.Option(help="Blend with gradient boosting")] = None,
    positive_share: Annotated[
        float | None, typer.Option(help="Superconductors among those not known to be one, as a share")
    ] = None,
    reports: Annotated[bool | None, typer.Option(help="Trees learn from reports without a crystal, too")] = None,
) -> None:
    """Crystal to superconductor or not. Example: meissner train s2snet --split chemical-system"""
    choices: dict[str, Any] = {"config": config, "epochs": epochs, "folds": folds, "seed": seed, "device": device}
    choices |= {"devices": devices, "pretrained": pretrained, "freeze": freeze, "learning_rate": learning_rate}
    choices |= {"trees": trees, "positive_share": positive_share, "reports": reports}
    _train("s2snet", profile, workspace, **choices, splits=split or None)


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
    settings = load_settings(profile, workspace=workspace, pretraining=choices)
    with opened(settings, ("pretrain-bnas",)) as (place, console):
        from flows.pretrain_bnas import pretrain_bnas as flow

        found = flow(settings.workspace, settings.pretraining, collection).counts
    console.print(
        f"Error on hidden patches of {found['held_out']} held-out materials: {found['error']}; the visible mean "
        f"{found['visible mean']}, the training mean {found['training mean']}"
    )
    console.print(f"The weights: {location(place, 'models/bnas-pretraining')}/{found['version']}")


@pretrain.command("s2snet")
def pretrain_s2snet(
    profile: Profile = None,
    workspace: Place = None,
    config: Config = None,
    epochs: Epochs = None,
    masking: Annotated[str | None, typer.Option(help="What is hidden: atoms (15 %), or element (all of one)")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, hidden elements and batches")] = None,
    device: Device = None,
    devices: Annotated[int | None, typer.Option(help="GPUs, or processes of a CPU, that share the training")] = None,
) -> None:
    """Hidden elements of crystals, guessed. Example: meissner pretrain s2snet --config s2snet --masking element"""
    choices = {"config": config, "epochs": epochs, "masking": masking, "seed": seed}
    choices |= {"device": device, "devices": devices}
    settings = load_settings(profile, workspace=workspace, s2snet_pretraining=choices)
    with opened(settings, ("pretrain-s2snet",)) as (place, console):
        from flows.pretrain_s2snet import pretrain_s2snet as flow

        found = flow(settings.workspace, settings.s2snet_pretraining).counts
    console.print(
        f"Of {found['hidden_atoms']} hidden elements of {found['held_out']} held-out crystals, {found['accuracy']:.1%} "
        f"guessed; the most frequent element would be right in {found['most_frequent']:.1%}"
    )
    console.print(f"The weights: {location(place, 'models/s2snet-pretraining')}/{found['version']}")


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
    settings = load_settings(profile, workspace=workspace, tuning=choices, bnas={"config": config})
    with opened(settings, ("tune",)) as (place, console):
        from flows.tune import tune_bnas as flow

        flow(settings.workspace, settings.tuning, settings.bnas, settings.processes)
    print_trials(console, place, settings.tuning.study)


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

    place = Workspace(load_settings(profile, workspace=workspace).workspace)
    found, files = explain_material(place, material, output, None if band is None else band - 1, _point(point))
    print_explanation(Console(), found, files)


@explain.command("s2snet")
def explain_s2snet(
    crystals: Annotated[list[str], typer.Argument(help="CIF, POSCAR or JSON files, or ids of ordered crystals")],
    profile: Profile = None,
    workspace: Place = None,
    output: Annotated[
        str | None, typer.Option(help="Folder for the files; without: explain/s2snet in the workspace")
    ] = None,
) -> None:
    """Which atoms the answer hangs on, drawn. Example: meissner explain s2snet H3S.cif MgB2-191 --output why"""
    from rich.console import Console

    from flows.display import print_activations
    from tasks.activation import explain_crystals
    from tasks.workspace import Workspace

    place = Workspace(load_settings(profile, workspace=workspace).workspace)
    found, files, rejected = explain_crystals(place, crystals, output)
    print_activations(Console(), found, files, rejected)


@explain.command("elements")
def explain_elements(
    profile: Profile = None,
    workspace: Place = None,
    output: Annotated[
        str | None, typer.Option(help="Folder for the files; without: explain/elements in the workspace")
    ] = None,
) -> None:
    """How S2SNet sees the elements, and its held-out folds. Example: meissner explain elements --output why"""
    from tasks.element_maps import explain_elements as draw
    from tasks.workspace import Workspace

    found, files = draw(Workspace(load_settings(profile, workspace=workspace).workspace), output)
    print("\n".join([*found.words, *files]))


@benchmark.command("s2s")
def benchmark_s2s(
    data: Annotated[str, typer.Option(help="Crystals with their class: JSON lines, as the S2S dataset has them")],
    profile: Profile = None,
    workspace: Place = None,
    folds: Folds = None,
    split: Annotated[list[str] | None, typer.Option(help="random or chemical-system; may be repeated")] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            help="cgcnn, megnet, s2snet, trees, blend, paper, or one such as paper-10-pretrained; may be repeated"
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Widths and epochs: published, short, or auto (short without a GPU)")
    ] = None,
    config: Annotated[str | None, typer.Option(help="Named network and recipe of our S2SNet")] = None,
    width: Annotated[int | None, typer.Option(help="Width of S2SNet as printed; below 512 it is scaled down")] = None,
    layers: Annotated[list[int] | None, typer.Option(help="Depths of S2SNet as printed; may be repeated")] = None,
    epochs: Epochs = None,
    printed_epochs: Annotated[int | None, typer.Option(help="Epochs of S2SNet as printed")] = None,
    pretraining_epochs: Annotated[int | None, typer.Option(help="Epochs of S2SNet's pre-training")] = None,
    graph_epochs: Annotated[int | None, typer.Option(help="Epochs of CGCNN and MEGNet")] = None,
    unlabelled: Annotated[
        str | None, typer.Option(help="More crystals for pre-training: JSON lines, CIF, folder, zip")
    ] = None,
    reports: Annotated[
        str | None, typer.Option(help="Table of reports whose superconductors the trees may learn from, too")
    ] = None,
    disorder: Annotated[str | None, typer.Option(help="Partial occupancies: refuse or order")] = None,
    seed: Seed = None,
    device: Device = None,
) -> None:
    """S2SNet, CGCNN, MEGNet, forest on the same folds. Example: meissner benchmark s2s --data s2s.jsonl.gz"""
    choices: dict[str, Any] = {"folds": folds, "splits": split or None, "methods": methods or None, "config": config}
    choices |= {"width": width, "layers": layers or None, "epochs": epochs, "pretraining_epochs": pretraining_epochs}
    choices |= {"size": size, "printed_epochs": printed_epochs, "graph_epochs": graph_epochs}
    choices |= {"unlabelled": unlabelled, "reports": reports, "disorder": disorder, "seed": seed}
    settings = load_settings(profile, workspace=workspace, benchmark={**choices, "device": device})
    from flows.display import print_benchmark

    with opened(settings, ("benchmark-s2s",)) as (place, console):
        from flows.benchmark import benchmark_s2s as flow

        flow(settings.workspace, data, settings.benchmark, settings.processes)
    print_benchmark(console, place)
    console.print(f"Tables, scores and figures: {location(place, 'benchmarks/s2s')}", soft_wrap=True)


@validate.command("pairs")
def validate_pairs(profile: Profile = None, workspace: Place = None) -> None:
    """Table I of the BNAS paper: four pairs, one of each a superconductor. Example: meissner validate pairs"""
    from flows.display import print_pairs

    settings = load_settings(profile, workspace=workspace)
    with opened(settings, ("validate-pairs",)) as (place, console):
        from flows.validate import pairs as flow
        from tasks.validation import OUTPUT, check_found

        found = flow(settings.workspace)
    print_pairs(console, place)
    console.print(f"The table: {location(place, OUTPUT)}", soft_wrap=True)
    check_found(found, place)


@validate.command("time-machine")
def validate_time_machine(
    profile: Profile = None,
    workspace: Place = None,
    year: Annotated[list[int] | None, typer.Option(help="Year to go back to; may be repeated; none: five")] = None,
    network: Annotated[
        list[str] | None, typer.Option(help="bnas or s2snet, trained for each year; may be repeated; none: no network")
    ] = None,
    year_table: Annotated[
        str | None, typer.Option(help="Table of reports that gives years to compositions without one")
    ] = None,
    epochs: Epochs = None,
    device: Device = None,
) -> None:
    """Train on reports before a year, find those after. Example: meissner validate time-machine --year 1990"""
    from flows.display import print_time_machine

    choices: dict[str, Any] = {"years": year or None, "year_table": year_table, "epochs": epochs, "device": device}
    choices["networks"] = None if not network else [name for name in network if name != "none"]
    settings = load_settings(profile, workspace=workspace, time_machine=choices)
    with opened(settings, ("time-machine",)) as (place, console):
        from flows.validate import time_machine as flow
        from tasks.time_machine import OUTPUT

        flow(settings.workspace, settings.time_machine, settings.processes)
    print_time_machine(console, place)
    console.print(f"The table: {location(place, OUTPUT)}", soft_wrap=True)


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
