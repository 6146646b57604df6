"""Operations: Prefect's UI, the machine, other job managers."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.common import Place, Profile, load_settings

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer()


@app.command()
def ui(
    profile: Profile = None,
    workspace: Place = None,
    port: Annotated[int | None, typer.Option(help="Port of the server")] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to answer on; any but 127.0.0.1 needs PREFECT_SERVER_API_AUTH_STRING")
    ] = None,
) -> None:
    """Open Prefect's server on the workspace's runs. Example: meissner ui --port 4200"""
    import threading

    from rich.console import Console

    from flows.server import prefect_server
    from tasks.workspace import Workspace

    settings = load_settings(profile, workspace=workspace)
    with prefect_server(Workspace(settings.workspace), port, host=host) as server:
        if host and not server.owned:
            Console().print(f"--host {host} has no effect: a server is there already", style="yellow")
        Console().print(f"Prefect's UI: {server.ui_url}   (Ctrl-C ends it)" if server.owned else server.ui_url)
        if server.owned:
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()


@app.command()
def deploy(
    profile: Profile = None,
    workspace: Place = None,
    file: Annotated[Path | None, typer.Option(help="A prefect.yaml of yours in place of deployments/")] = None,
) -> None:
    """Register deployments, queues, limits, automations. Example: meissner deploy --profile mine.toml"""
    from rich.console import Console

    from flows.up import opened_server, register_everything

    settings = load_settings(profile, workspace=workspace)
    with opened_server(settings) as server:
        console = Console()
        console.print(f"[dim]Prefect server {server.ui_url}[/]")
        register_everything(settings, file, _shown(console))


@app.command()
def up(
    profile: Profile = None,
    workspace: Place = None,
    file: Annotated[Path | None, typer.Option(help="A prefect.yaml of yours in place of deployments/")] = None,
    queue: Annotated[list[str] | None, typer.Option(help="Only runs of this queue: cpu, dft or gpu; repeat")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the server on 127.0.0.1")] = None,
) -> None:
    """Server, deployments and worker until Ctrl-C. Example: meissner up --profile starter"""
    from rich.console import Console

    from flows.interrupt import stop_on_interrupt
    from flows.up import opened_server, register_everything, watch
    from tasks.exceptions import InputError

    if unknown := set(queue or ()) - {"cpu", "dft", "gpu"}:
        raise InputError(f"--queue {', '.join(sorted(unknown))} is not one of cpu, dft, gpu")
    settings = load_settings(profile, workspace=workspace)
    console = Console()
    with stop_on_interrupt(), opened_server(settings, port) as server, stop_on_interrupt(server):
        register_everything(settings, file, _shown(console))
        console.print(f"Prefect's UI: {server.ui_url}   A worker takes what is due. Ctrl-C ends all of it.")
        watch(settings, server, queue or (), console.print)


@app.command()
def keep(profile: Profile = None, workspace: Place = None) -> None:
    """Find lost runs of a group's server, start crashed ones again. Example: meissner keep --profile group.toml"""
    from rich.console import Console

    from flows.interrupt import stop_on_interrupt
    from flows.server import configured_api_url
    from flows.up import opened_server, watch_runs
    from tasks.exceptions import InputError

    if configured_api_url() is None:
        raise InputError(
            "PREFECT_API_URL names no Prefect server to keep going; a server of your own has `meissner up`"
        )
    settings = load_settings(profile, workspace=workspace)
    console = Console()
    with stop_on_interrupt(), opened_server(settings) as server:
        console.print(f"Lost and crashed runs of {server.ui_url} are started again. Ctrl-C ends this.")
        watch_runs(settings, server, console.print)


@app.command()
def status(
    profile: Profile = None,
    workspace: Place = None,
    days: Annotated[float, typer.Option(help="How far back failures are told")] = 7,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
) -> None:
    """Runs, stages and networks, in the terminal. Example: meissner status --json"""
    from rich.console import Console

    from flows.server import prefect_server
    from tasks.workspace import Workspace

    settings = load_settings(profile, workspace=workspace)
    place = Workspace(settings.workspace)
    with prefect_server(place) as server:
        from flows.status import print_status, read_status

        found = read_status(place, server.ui_url, days)
    if as_json:
        print(found.model_dump_json(indent=1))
    else:
        print_status(Console(), found)


def _shown(console: "Console") -> "Callable[[str, str, str], None]":
    def show(kind: str, name: str, outcome: str) -> None:
        console.print(f"{kind:11} {name:36} {outcome}", highlight=False, markup=False)

    return show


@app.command()
def doctor(profile: Profile = None, workspace: Place = None) -> None:
    """Tell what is installed, which engines can run, and what the workspace holds. Example: meissner doctor"""
    from rich.console import Console

    from flows.doctor import print_health

    print_health(Console(), load_settings(profile, workspace=workspace))


@app.command("jobflow-remote")
def jobflow_remote(
    profile: Profile = None,
    workspace: Place = None,
    output: Annotated[str | None, typer.Option(help="File to write, such as ~/.jfremote/meissner.yaml")] = None,
) -> None:
    """Print a project file for jobflow-remote. Example: meissner jobflow-remote --output ~/.jfremote/meissner.yaml"""
    import yaml  # type: ignore[import-untyped]

    from tasks.jobflow_remote import remote_project

    text = yaml.safe_dump(remote_project(load_settings(profile, workspace=workspace)), sort_keys=False)
    if output is None:
        print(text, end="")
        return
    path = Path(output).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(f"Written {path}; next: jf project check")
