"""Versions of the networks: what there is, how two differ, which one is in use."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.common import Place, Profile, load_settings

if TYPE_CHECKING:
    from tasks.workspace import Workspace

app = typer.Typer()
models = typer.Typer(help="Versions of the networks, and which one is in use. Example: meissner models list")
app.add_typer(models, name="models", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON")]
Version = Annotated[str, typer.Argument(help="A version, or the first digits of one")]


def _place(profile: str | None, workspace: str | None) -> "Workspace":
    from tasks.workspace import Workspace

    return Workspace(load_settings(profile, workspace=workspace).workspace)


@models.command("list")
def list_models(profile: Profile = None, workspace: Place = None, as_json: AsJson = False) -> None:
    """All trained versions with their scores. Example: meissner models list --json"""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from tasks.model_versions import list_versions

    place = _place(profile, workspace)
    found = list_versions(place)
    if as_json:
        print(json.dumps([row.model_dump(mode="json") for row in found], indent=1))
        return
    table = Table(title=f"Networks in {escape(place.url)}", title_justify="left")
    for heading in ("network", "version", "trained", "score", "on", "data", "code", "state"):
        table.add_column(heading)
    for row in found:
        split, score = row.headline or ("", None)
        marks = [name for name in ("promoted", "latest") if getattr(row, name)]
        state = ", ".join([*(["[bold]in use[/]"] if row.in_use else []), *marks])
        trained = f"{row.trained:%Y-%m-%d %H:%M}" if row.trained else ""
        numbers = "" if score is None else f"{score:.3f}", split, (row.data or "")[:10], str(row.code_version or "")
        table.add_row(row.name, row.version, trained, *numbers, state)
    none = f"No trained network in {escape(place.url)}; train one with `meissner train bnas`"
    Console().print(table if found else none)


@models.command("compare")
def compare(
    one: Version, other: Version, profile: Profile = None, workspace: Place = None, as_json: AsJson = False
) -> None:
    """What differs between two versions. Example: meissner models compare 0f3a 91bc"""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from tasks.model_versions import compare_versions

    found = compare_versions(_place(profile, workspace), one, other)
    if as_json:
        print(json.dumps(found, indent=1, default=str))
        return
    table = Table(show_header=False)
    for name, (first, second) in found.items():
        table.add_row(*map(escape, (name, _text(first), _text(second), _change(first, second))))
    Console().print(table)


@models.command("promote")
def promote(version: Version, profile: Profile = None, workspace: Place = None) -> None:
    """Let screening and prediction use a version. Example: meissner models promote 0f3a"""
    from tasks.model_store import promote as choose
    from tasks.model_versions import find_version

    place = _place(profile, workspace)
    name, whole = find_version(place, version)
    choose(place, name, whole)
    print(f"{name} {whole} is in use from now on; back: meissner models rollback {name}")


@models.command("rollback")
def rollback(
    network: Annotated[str, typer.Argument(help="bnas or s2snet")], profile: Profile = None, workspace: Place = None
) -> None:
    """Take the last promotion back. Example: meissner models rollback bnas"""
    from tasks.exceptions import InputError
    from tasks.model_store import rollback as go_back
    from tasks.model_versions import HEADLINE

    if network not in HEADLINE:
        raise InputError(f"The network {network!r} is not one of {', '.join(HEADLINE)}")
    version = go_back(_place(profile, workspace), network)
    print(f"{network} {version} is in use again")


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _change(first: Any, second: Any) -> str:
    return f"{second - first:+.3g}" if isinstance(first, float) and isinstance(second, float) else ""
