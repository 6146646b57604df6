"""The command line: it reads settings, opens a Prefect server, and calls flows."""

import sys

import typer

from flows.commands import data, models, networks, operations, screening, workspace

app = typer.Typer(
    name="meissner",
    help="From reports of superconductors to a ranked list of new candidates.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
for part in (screening, data, networks, models, operations, workspace):
    app.add_typer(part.app)


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
