"""Discovery: the whole pipeline, screening, prediction, the report."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.commands.common import (
    DATA_STEPS,
    NETWORK_STEPS,
    Engine,
    Limit,
    Place,
    Profile,
    check_sources,
    inputs_of,
    load_settings,
    location,
    opened,
    steps_of,
)

if TYPE_CHECKING:
    from rich.console import Console

    from tasks.workspace import Workspace

app = typer.Typer()


@app.command()
def discover(
    profile: Profile = None,
    workspace: Place = None,
    engine: Engine = None,
    limit: Limit = None,
) -> None:
    """Run everything, from reports to ranked candidates. Example: meissner discover --profile starter"""
    from flows.display import STAGES, print_candidates, print_scores

    settings = load_settings(profile, workspace=workspace, bands={"engine": engine, "limit": limit})
    check_sources(settings)
    with opened(settings, STAGES) as (place, console):
        from flows.discover import discover as flow

        flow(**inputs_of(settings), **steps_of(settings, *DATA_STEPS, *NETWORK_STEPS), processes=settings.processes)
    print_candidates(console, place)
    print_scores(console, place)
    _print_next_steps(console, place)


@app.command()
def screen(
    sources: Annotated[
        list[str] | None,
        typer.Argument(help="mp or mp:COPY, or files of bands as for `grid`; none: the workspace's own grids"),
    ] = None,
    profile: Profile = None,
    workspace: Place = None,
    collection: Annotated[
        str | None, typer.Option(help="Collection for what is read from sources; without sources, to screen its grids")
    ] = None,
    max_gap: Annotated[float | None, typer.Option(help="Largest band gap, eV")] = None,
    element: Annotated[list[str] | None, typer.Option(help="Only materials that hold it; may be repeated")] = None,
    elements: Annotated[str | None, typer.Option(help="Only materials that hold one of these: Nb,Ti")] = None,
    ids: Annotated[str | None, typer.Option(help="File of ids, one a line")] = None,
    since: Annotated[str | None, typer.Option(help="Only rows changed on this day or later, YYYY-MM-DD")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many materials")] = None,
    chunk: Annotated[int | None, typer.Option(help="Materials a task")] = None,
    best: Annotated[int | None, typer.Option(help="So many of the best are asked about in all 24 images")] = None,
    keep_grids: Annotated[bool, typer.Option("--keep-grids", help="Keep the grids of all materials")] = False,
) -> None:
    """Rank every material that has bands. Example: meissner screen mp --elements Nb,Ti"""
    from flows.display import print_candidates

    symbols = [*(element or ()), *(elements.split(",") if elements else ())]
    choices = {"max_gap_ev": max_gap, "elements": symbols or None, "ids": ids, "since": since, "limit": limit}
    work = {"chunk": chunk, "best": best, "keep_grids": keep_grids or None}
    settings = load_settings(profile, workspace=workspace, screening={**choices, **work})
    named = tuple(sources or ())
    with opened(settings, ("grid", "screen") if keep_grids and named else ("screen",)) as (place, console):
        from flows.screening import screen as flow
        from tasks.screening import RESULT, screening_place

        steps = steps_of(settings, "grid", "cluster")
        there = screening_place(place, named, collection, settings.screening)
        flow(settings.workspace, settings.screening, named, collection, **steps, processes=settings.processes)
    print_candidates(console, there)
    if there is not place:
        console.print(f"All of them: {location(there, RESULT)}")
        console.print(f"The report: meissner report --workspace {there.url}", markup=False)


@app.command()
def predict(
    files: Annotated[list[Path], typer.Argument(help="CIF, POSCAR, JSON of pymatgen or ASE, vasprun.xml, *_hr.dat")],
    profile: Profile = None,
    workspace: Place = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV")] = False,
    efermi: Annotated[float | None, typer.Option(help="Fermi level of tight-binding models, eV")] = None,
    disorder: Annotated[
        Literal["refuse", "order"],
        typer.Option(help="Crystals with partial occupancies: refuse them, or order the cell and ask"),
    ] = "refuse",
) -> None:
    """Ask the trained networks about single materials. Example: meissner predict MgB2.cif vasprun.xml"""
    from rich.console import Console

    from flows.display import print_predictions
    from tasks.exceptions import InputError
    from tasks.screening import predict as answer
    from tasks.workspace import Workspace

    if as_json and as_csv:
        raise InputError("--json and --csv exclude each other; give one of them")
    settings = load_settings(profile, workspace=workspace)
    predictions = answer(files, Workspace(settings.workspace), settings.screening, efermi, disorder)
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
    settings = load_settings(profile, workspace=workspace, report={"top": top})
    with opened(settings, ("report",)) as (place, console):
        from flows.report import report as flow

        flow(settings.workspace, settings.report)
    console.print(f"The report: {location(place, 'report/index.html')}")


def _print_next_steps(console: "Console", place: "Workspace") -> None:
    import shutil

    from rich.markup import escape

    option = "" if place.url == "workspace" else f" --workspace {escape(place.url)}"
    meissner = "meissner" if shutil.which("meissner") else sys.argv[0]
    console.print(f"\nThe report: [bold]{location(place, 'report/index.html')}[/]")
    console.print("Next:")
    console.print(f"  {meissner} predict YOUR.cif{option}   both networks on a crystal of yours")
    console.print(f"  {meissner} ui{option}   what ran, in Prefect's UI")
    console.print("  README.md, “Real data”   your own reports and crystals")
