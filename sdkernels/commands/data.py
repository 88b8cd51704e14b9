"""``sdkernels data``: what data sets there are, and fetching them from their publishers."""

import sys
from math import isnan
from pathlib import Path
from typing import Annotated

import typer

from sdkernels.commands.failures import refuse, shortened

app = typer.Typer(help="List and fetch data sets.", no_args_is_help=True)

_DataDir = Annotated[Path | None, typer.Option(envvar="SDKERNELS_DATA", help="The folder of data sets.")]


@app.command("list")
def list_(data_dir: _DataDir = None) -> None:
    """Say which data sets can be fetched, how large they are, whose they are, and what is in DIR of them."""
    from sdkernels.lab.fetching.data_sets import presence
    from sdkernels.lab.fetching.publishers import DATA_SETS

    for data_set in DATA_SETS.values():
        size = f"{data_set.size / 1e6:,.0f} MB" if data_set.size else "size unknown"
        there = f"; in {data_dir}: {presence(data_set, data_dir)}" if data_dir else ""
        typer.echo(f"{data_set.name:<14} {size:>7}  {data_set.title}{there}")
        typer.echo(f"{'':<24}{data_set.publisher}")
        typer.echo(f"{'':<24}licence: {data_set.licence}")


@app.command()
def fetch(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="As `sdkernels data list` shows them.")],
    data_dir: _DataDir = None,
    mirror: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="URL",
            envvar="SDKERNELS_MIRROR",
            help="Ask URL/NAME/FILE instead of the publishers; the published checksums hold all the same.",
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=86_400, help="Seconds without a byte until a connection is dropped.")
    ] = 30,
    tries: Annotated[int, typer.Option(min=1, help="In a row, at one address, that get no further.")] = 4,
) -> None:
    """Fetch data sets into DIR/NAME; verify what is there; run again after a stop, it continues."""
    from tqdm import tqdm

    from sdkernels.lab.fetching.data_sets import Patience
    from sdkernels.lab.fetching.data_sets import fetch as fetch_data_set
    from sdkernels.lab.fetching.publishers import DATA_SETS

    def say(text: str) -> None:
        tqdm.write(shortened(text), file=sys.stderr)  # clears the bar for the line

    command = f"sdkernels data fetch {' '.join(names)}"
    if isnan(timeout):
        refuse(command, "--timeout nan: give seconds")
    if data_dir is None:
        refuse(command, "say by --data-dir DIR (or SDKERNELS_DATA) where the files are to go")
    if unknown := [name for name in names if name not in DATA_SETS]:
        refuse(command, f"there is no data set {unknown[0]!r} to fetch; there are {', '.join(DATA_SETS)}")
    patience = Patience(timeout=timeout, tries=tries)
    for name in names:
        try:
            fetched = fetch_data_set(name, data_dir, mirror=mirror, patience=patience, show_progress=True, say=say)
        except KeyboardInterrupt:
            typer.echo(f"\nstopped; what has arrived is kept: run `{command}` again to continue", err=True)
            raise typer.Exit(130) from None
        except (ValueError, OSError) as error:
            refuse(command, error)
        how = f"downloaded {', '.join(fetched.downloaded)}" if fetched.downloaded else "nothing to download"
        verified = (
            f"; no published checksum for {', '.join(fetched.unverified)}" if fetched.unverified else "; verified"
        )
        typer.echo(f"{name}: {len(fetched.files)} files in {fetched.files[0].parent}, {how}{verified}")
