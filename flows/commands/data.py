"""Data: refresh, grids, datasets, audit, and what failed."""

from typing import Annotated, Any

import typer

from flows.commands.common import (
    DATA_STEPS,
    Crystals,
    Engine,
    FormulaColumn,
    Limit,
    Place,
    Profile,
    Refetch,
    Split,
    Supercon,
    TcColumn,
    check_sources,
    inputs_of,
    load_settings,
    location,
    opened,
    steps_of,
)

app = typer.Typer()
retry = typer.Typer(help="Start again what failed. Example: meissner retry failed --reason converge")
dataset = typer.Typer(help="Build a training set from the workspace. Example: meissner dataset s2s --export s2s.jsonl")
app.add_typer(retry, name="retry", no_args_is_help=True)
app.add_typer(dataset, name="dataset", no_args_is_help=True)


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
    settings = load_settings(profile, workspace=workspace, **inputs, cleaning=cleaning, bands=bands)
    if "crystals" in stages[: stages.index(until) + 1]:
        check_sources(settings)
    with opened(settings, stages[: stages.index(until) + 1]) as (place, console):
        from flows.refresh import refresh as flow

        flow(**inputs_of(settings), until=until, **steps_of(settings, *DATA_STEPS), processes=settings.processes)
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
    settings = load_settings(profile, workspace=workspace, bands={"engine": engine, "limit": limit})
    with opened(settings, ("bands", "grid")):
        from flows.retry import retry_failed as flow

        steps = steps_of(settings, "bands", "gpaw", "vasp", "cluster", "grid")
        flow(settings.workspace, reason, **steps, processes=settings.processes)


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
    settings = load_settings(profile, workspace=workspace, grid={"store": store}, mp_bands=mp_bands)
    with opened(settings, ("grid",)) as (place, console):
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


@dataset.command("s2s")
def dataset_s2s(
    profile: Profile = None,
    workspace: Place = None,
    ratio: Annotated[float | None, typer.Option(help="Other crystals for each superconducting one")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the draw of the others")] = None,
    export: Annotated[str | None, typer.Option(help="File for JSON lines as published, gzipped by name")] = None,
) -> None:
    """Crystals for S2SNet, superconducting and others. Example: meissner dataset s2s --ratio 3 --export s2s.jsonl.gz"""
    settings = load_settings(profile, workspace=workspace, s2s={"negatives_per_positive": ratio, "seed": seed})
    from rich.markup import escape

    with opened(settings, ("s2s",)) as (place, console):
        from flows.dataset import s2s as flow

        report = flow(settings.workspace, settings.s2s, settings.matching, export)
    console.print(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in report.counts.items()))
    console.print(f"The set: {escape(export) if export else location(place, 'datasets/s2s.parquet')}")


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
    settings = load_settings(
        profile, workspace=workspace, audit={**files, **limits, "splits": split or None, "folds": folds, "seed": seed}
    )
    leak = None
    with opened(settings, ("audit",)) as (place, console):
        from flows.audit import audit as flow

        try:
            flow(settings.workspace, settings.audit)
        except LeakageError as error:
            leak = error
    print_leakage(console, place)
    if leak:
        raise leak


def _check_choices(mp_bands: dict[str, Any], sources: list[str] | None) -> None:
    """Refuse a choice of rows where there is no table of the Materials Project to choose from."""
    from tasks.exceptions import InputError

    chosen = any(value is not None for value in mp_bands.values())
    if chosen and not any(source.split(":")[0] == "mp" for source in sources or ()):
        raise InputError(
            "--max-gap, --elements, --ids and --limit choose rows of the Materials Project's table; name it among the "
            "sources: mp, or mp:COPY"
        )
