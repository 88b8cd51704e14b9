"""``sdkernels sweep``: many networks, trained and measured, from one file that says which."""

from pathlib import Path
from typing import Annotated

import typer

from sdkernels.commands.failures import clear, say
from sdkernels.commands.workers import Count, Cpus, Gpus, Ray, opened_workers


def sweep(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="A TOML file: network, training, grid, measures.")],
    store: Annotated[
        Path | None, typer.Option(help="The ledger, where finished work is kept; by default SPEC with .sdk at its end.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The tables' folder; by default runs/NAME.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(envvar="SDKERNELS_DATA", help="Where the publishers' data files are.")
    ] = None,
    ray: Ray = None,
    workers: Count = None,
    cpus: Cpus = None,
    gpus: Gpus = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Train and measure every network of SPEC; run again after a stop, it goes on where it was."""
    from sdkernels.lab.sweep import NetworksFailedError, read_sweep, run_sweep
    from sdkernels.lab.sweep.table import networks_table, write_tables
    from sdkernels.paper.run_folder import make_folder

    failure = None
    with clear(f"sdkernels sweep {spec}"):
        chosen = read_sweep(spec)
        ledger = store if store is not None else spec.with_suffix(".sdk")
        folder = out if out is not None else Path("runs") / chosen.name
        make_folder(folder)  # rather than find after hours that it cannot be
        with opened_workers(ray, workers, cpus, gpus) as shared:
            try:
                done = run_sweep(chosen, ledger, data_dir=data_dir, workers=shared, device=device, show_progress=True)
            except NetworksFailedError as error:
                failure, done = error, error.networks
        written = write_tables(done, folder)
        table = networks_table(done).to_string()
        typer.echo(f"\n{table}\n")
        typer.echo("\n".join(f"wrote {path}" for path in written))
    if failure is not None:
        say(f"sdkernels sweep {spec}: {failure}")
        raise typer.Exit(1)
