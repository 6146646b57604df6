"""The workspace: whether it is whole, and what nothing refers to."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.common import Place, Profile, load_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tasks.workspace_check import Finding

app = typer.Typer()
workspace = typer.Typer(help="Check, repair and clean up what is stored. Example: meissner workspace check")
app.add_typer(workspace, name="workspace", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON")]


@workspace.command("check")
def check(
    profile: Profile = None,
    workspace: Place = None,
    repair: Annotated[bool, typer.Option("--repair", help="Take away what is damaged, so that it is remade")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare all that is stored with its checksums; exit code 1 for damage. Example: meissner workspace check"""
    from rich.console import Console

    from flows.display import live_stages
    from tasks.exceptions import InputError
    from tasks.job_store import open_job_store
    from tasks.workspace import Workspace
    from tasks.workspace_check import STAGE, check_workspace
    from tasks.workspace_repair import repair_workspace

    settings = load_settings(profile, workspace=workspace)
    place, console = Workspace(settings.workspace), Console()
    if not place.list("*"):
        raise InputError(f"There is no workspace {place.url} to check")
    if as_json:
        found = check_workspace(place)
    else:
        with live_stages(console, (STAGE,)):
            found = check_workspace(place)
    jobs = open_job_store(settings.workspace, settings.bands.store) if repair else None
    done = repair_workspace(place, found, jobs) if repair else [""] * len(found)
    if as_json:
        rows = [one.model_dump(mode="json") | {"done": did} for one, did in zip(found, done, strict=True)]
        print(json.dumps(rows, indent=1))
    elif found:
        _print_findings(found, done, repair)
    else:
        console.print(f"All that is stored in {place.url} is whole")
    if found:
        raise typer.Exit(1)


def _print_findings(found: "Sequence[Finding]", done: "Sequence[str]", repaired: bool) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console, table = Console(), Table(title=f"{len(found)} damaged or missing", title_justify="left")
    for heading in ("place", "what", "problem", "to make it again", *(["done"] if repaired else [])):
        table.add_column(heading, overflow="fold")
    for one, did in zip(found, done, strict=True):
        row = one.place, one.what, one.problem, one.again, *([did] if repaired else [])
        table.add_row(*map(escape, row))
    console.print(table)
    if repaired:
        commands = dict.fromkeys(one.again for one in found)
        console.print("To make it again, with the same profile and workspace:", *commands, sep="\n  ", markup=False)
    else:
        console.print("meissner workspace check --repair takes away what is damaged, so that it is made again")


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
        console.print(f"Nothing in {place.url} is left over{'' if now else ' that is older than a day'}")
        return
    table = Table(title=f"Nothing refers to these in {place.url}", title_justify="left")
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
