"""The command line: ``sdkernels reproduce FIGURE``, ``sweep``, ``runs``, ``data`` and ``doctor``."""

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

try:
    import typer
except ImportError:
    sys.exit('the command line needs typer: `python -m pip install "sdkernels[paper]"`')

from sdkernels.commands import data, runs
from sdkernels.commands.sweep import sweep

app = typer.Typer(
    help="What does a trained network lose when units are removed?", no_args_is_help=True, add_completion=False
)
app.add_typer(data.app, name="data")
app.add_typer(runs.app, name="runs")
app.command()(sweep)


class FigureName(str, Enum):
    """The figures that there are recipes for."""

    fig1a = "fig1a"


class Preset(str, Enum):
    """How much of a recipe is run."""

    quick = "quick"
    small = "small"
    paper = "paper"


@app.command()
def reproduce(
    figure: Annotated[FigureName, typer.Argument(help="Which figure.")],
    preset: Annotated[
        Preset, typer.Option(help="quick: embedded digits; small: 10,000 MNIST images; paper: as published.")
    ] = Preset.quick,
    data_dir: Annotated[
        Path | None, typer.Option(envvar="SDKERNELS_DATA", help="Where the publishers' data files are.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; by default runs/FIGURE-PRESET.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of initialisation, shuffling, corruption and orders.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="At most, if training stops when it has memorised.")] = None,
    orders: Annotated[int | None, typer.Option(min=1, help="Random ablation orders.")] = None,
    points: Annotated[int | None, typer.Option(min=2, help="Points of a curve.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    fresh: Annotated[bool, typer.Option("--fresh", help="Throw away an earlier run in the folder.")] = False,
) -> None:
    """Reproduce a figure of a paper into a run folder; run again after a stop, it continues."""
    from sdkernels.paper import fig1a

    changes: dict[str, Any] = {"seed": seed, "epochs": epochs, "orders": orders, "points": points}
    try:
        report = fig1a.reproduce(preset.value, data_dir=data_dir, out=out, device=device, fresh=fresh, **changes)
    except (ValueError, OSError) as error:
        typer.echo(f"sdkernels reproduce {figure.value}: {error}", err=True)
        raise typer.Exit(2) from error
    typer.echo(f"\n{report['title']}\n\n{fig1a.auc_table(report)}\n")
    folder = Path(report["folder"])
    typer.echo("\n".join(f"wrote {folder / name}" for name in ("figure.png", "curves.csv", "report.json")))


@app.command()
def doctor() -> None:
    """Say what is installed, what works, and what to do about what does not."""
    from sdkernels.doctor import examine, screen

    findings = examine()
    typer.echo(screen(findings))
    raise typer.Exit(int(any(finding.state == "broken" for finding in findings)))


def main() -> None:
    """The entry point of the ``sdkernels`` command."""
    app()
