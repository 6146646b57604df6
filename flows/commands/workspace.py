"""The workspace: whether it is whole, and what nothing refers to."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.common import Place, Profile, load_settings, opened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from tasks.settings import Settings
    from tasks.workspace import Workspace
    from tasks.workspace_check import Finding

app = typer.Typer()
workspace = typer.Typer(help="Check, repair and clean up what is stored. Example: meissner workspace check")
app.add_typer(workspace, name="workspace", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON")]


@workspace.command("check")
def check(
    profile: Profile = None,
    workspace: Place = None,
    repair: Annotated[bool, typer.Option("--repair", help="Make what is damaged again")] = False,
    run: Annotated[
        bool, typer.Option("--run/--no-run", help="With --repair: run what makes it again, or only take it away")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Compare all that is stored with its checksums; exit code 1 for damage. Example: meissner workspace check"""
    from rich.console import Console

    from tasks.exceptions import InputError
    from tasks.workspace import Workspace

    settings = load_settings(profile, workspace=workspace)
    place, console = Workspace(settings.workspace), Console(stderr=as_json)
    if not place.list("*"):
        raise InputError(f"There is no workspace {place.url} to check")
    found = _check(place, console)
    left, done, failed = found, [""] * len(found), list[str]()
    if found and repair:
        done = _take_away(settings, found)
        if run:
            failed, left = _make_again(settings, found, console)
    if as_json:
        lost = {one.place for one in left}
        rows = [
            one.model_dump(mode="json") | {"done": did, "left": one.place in lost}
            for one, did in zip(found, done, strict=True)
        ]
        print(json.dumps(rows, indent=1))
    elif found:
        _print_findings(found, done, repair)
    for sentence in failed:
        console.print(sentence, markup=False, soft_wrap=True)
    if repair and run:
        for one in left:
            console.print(f"{one.place} is not made again here: {one.again}", markup=False, soft_wrap=True)
    if left or failed:
        raise typer.Exit(1)
    console.print(f"All that is stored in {place.url} is whole{' again' if found else ''}", markup=False)


def _check(place: "Workspace", console: "Console") -> "list[Finding]":
    from flows.display import live_stages
    from tasks.workspace_check import STAGE, check_workspace

    with live_stages(console, (STAGE,)):
        return check_workspace(place)


def _take_away(settings: "Settings", found: "Sequence[Finding]") -> list[str]:
    from tasks.job_store import open_job_store
    from tasks.workspace import Workspace
    from tasks.workspace_repair import repair_workspace

    jobs = open_job_store(settings.workspace, settings.bands.store)
    return repair_workspace(Workspace(settings.workspace), found, jobs)


def _make_again(
    settings: "Settings", found: "Sequence[Finding]", console: "Console"
) -> "tuple[list[str], list[Finding]]":
    """Run what made the damaged files; gives why a stage could not, and what is damaged or gone afterwards."""
    from tasks.workspace import Workspace
    from tasks.workspace_repair import plan_repair, still_lost

    failed: list[str] = []
    if work := plan_repair(found):
        with opened(settings, tuple(dict.fromkeys(stage for _, stage in work)), to_stderr=console.stderr):
            from flows.repair import repair

            failed = repair(settings.workspace, work, settings.without_secrets())
    place = Workspace(settings.workspace)
    return failed, still_lost(place, found, _check(place, console))


def _print_findings(found: "Sequence[Finding]", done: "Sequence[str]", repaired: bool) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console, table = Console(), Table(title=f"{len(found)} damaged or missing", title_justify="left")
    for heading in ("place", "what", "problem", "what makes it", *(["done"] if repaired else [])):
        table.add_column(heading, overflow="fold")
    for one, did in zip(found, done, strict=True):
        row = one.place, one.what, one.problem, one.again, *([did] if repaired else [])
        table.add_row(*map(escape, row))
    console.print(table)
    if not repaired:
        console.print("meissner workspace check --repair makes it again")


@workspace.command("gc")
def collect(
    profile: Profile = None,
    workspace: Place = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove without asking")] = False,
    now: Annotated[bool, typer.Option("--now", help="Also what is younger than a day")] = False,
) -> None:
    """Remove what nothing refers to, after asking. Example: meissner workspace gc"""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from tasks.workspace import Workspace
    from tasks.workspace_gc import find_leftovers, remove_leftovers

    place, console = Workspace(load_settings(profile, workspace=workspace).workspace), Console()
    found = find_leftovers(place, now)
    if not found:
        console.print(f"Nothing in {escape(place.url)} is left over{'' if now else ' that is older than a day'}")
        return
    table = Table(title=f"Nothing refers to these in {escape(place.url)}", title_justify="left")
    for heading in ("place", "why", "megabytes", "written"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "megabytes" else "left")
    for one in found:
        table.add_row(escape(one.place), escape(one.why), f"{one.size / 1e6:.3f}", f"{one.written:%Y-%m-%d %H:%M}")
    console.print(table)
    total = sum(one.size for one in found) / 1e6
    if not yes and not typer.confirm(f"Remove these {len(found)}, {total:.3f} MB?"):
        console.print("Nothing was removed")
        return
    console.print(f"Removed {len(found)}, {remove_leftovers(place, found) / 1e6:.3f} MB are free again")
