"""Operations: Prefect's UI, the machine, other job managers."""

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.common import Place, Profile, load_settings

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
