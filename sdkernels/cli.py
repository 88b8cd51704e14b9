"""The command line: ``sdkernels reproduce FIGURE``, ``sweep``, ``runs``, ``data`` and ``doctor``."""

import sys

try:
    import typer
except ImportError:
    sys.exit('the command line needs typer: `python -m pip install "sdkernels[paper]"`')

from sdkernels.commands import data, runs
from sdkernels.commands.failures import ClearGroup
from sdkernels.commands.reproduce import reproduce
from sdkernels.commands.sweep import sweep

app = typer.Typer(
    cls=ClearGroup,
    help="What does a trained network lose when units are removed?",
    no_args_is_help=True,
    add_completion=False,
)
app.add_typer(data.app, name="data")
app.add_typer(runs.app, name="runs")
app.command()(reproduce)
app.command()(sweep)


@app.command()
def doctor() -> None:
    """Say what is installed, what works, and what to do about what does not."""
    from sdkernels.doctor import examine, screen

    findings = examine()
    typer.echo(screen(findings))
    raise typer.Exit(int(any(finding.state == "broken" for finding in findings)))


def main() -> None:
    """The entry point of the ``sdkernels`` command."""
    try:
        app()
    except ImportError as error:  # of an extra, which the message names
        sys.exit(f"sdkernels: {error}")
