"""What commands share: options, settings, and the surroundings in which flows run."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

# Everything else is imported where it is used: `meissner --help` answers at once.
if TYPE_CHECKING:
    from rich.console import Console

    from tasks.settings import Settings
    from tasks.workspace import Workspace

Profile = Annotated[str | None, typer.Option("--profile", "-p", help="starter, or a TOML file of settings")]
Place = Annotated[str | None, typer.Option("--workspace", "-w", help="Folder or URL that holds everything made")]
Config = Annotated[
    str | None, typer.Option(help="Network and recipe: starter, paper, tiny; bnas: best; s2snet: s2snet")
]
Epochs = Annotated[int | None, typer.Option(help="Epochs in place of the recipe's")]
Folds = Annotated[int | None, typer.Option(help="Folds of each cross-validation")]
Split = Annotated[list[str] | None, typer.Option(help="random, chemical-system, family or year; may be repeated")]
Seed = Annotated[int | None, typer.Option(help="Seed of weights, folds and batches")]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda")]
Precision = Annotated[str | None, typer.Option(help="float32, bf16, or auto: bf16 on a GPU, float32 on a CPU")]
Compiled = Annotated[bool | None, typer.Option(help="Compile the network by torch.compile, for long runs on a GPU")]
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


def load_settings(profile: str | None, **flags: Any) -> "Settings":
    """Settings of file, environment and flags."""
    from tasks.settings import Settings

    return Settings.load(profile, **flags)


def check_sources(settings: "Settings") -> None:
    """Refuse a database that cannot be asked before anything is started."""
    from flows.server import has_server
    from tasks.crystal_sources import MATERIALS_PROJECT, check_databases
    from tasks.workspace import Workspace

    place, sources = Workspace(settings.workspace), settings.crystals
    if not settings.mp_api_key and has_server(place):  # it may hold the key, which the run then asks it for
        sources = tuple(source for source in sources if source != MATERIALS_PROJECT)
    check_databases(place, sources, settings.fetch, settings.mp_api_key)


def inputs_of(settings: "Settings") -> dict[str, Any]:
    return {"workspace": settings.workspace, "supercon": settings.supercon, "crystals": settings.crystals}


def steps_of(settings: "Settings", *names: str) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in names}


@contextlib.contextmanager
def opened(
    settings: "Settings", stages: tuple[str, ...], to_stderr: bool = False
) -> Iterator[tuple["Workspace", "Console"]]:
    """A checked workspace, a Prefect server, a live display, and a Ctrl-C that stops within seconds."""
    from rich.console import Console
    from rich.markup import escape

    from flows.display import live_stages
    from flows.interrupt import stop_on_interrupt
    from flows.runs import mark_crashed_runs
    from flows.server import prefect_server
    from tasks.workspace import Workspace

    place = Workspace(settings.workspace)
    place.check_writable()
    console = Console(stderr=to_stderr)
    with stop_on_interrupt(), prefect_server(place) as server:
        mark_crashed_runs(server)
        console.print(f"[dim]Workspace {escape(place.url)} · Prefect's UI {server.ui_url}[/]")
        with live_stages(console, stages) as close_display, stop_on_interrupt(server, close_display):
            yield place, console


def location(place: "Workspace", name: str) -> str:
    """Where something lies, escaped for rich."""
    from rich.markup import escape

    return escape(str(place.local(name)) if place.is_local else f"{place.url}/{name}")
