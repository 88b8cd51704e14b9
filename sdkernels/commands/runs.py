"""``sdkernels runs``: what a ledger holds."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import typer

from sdkernels.commands.failures import clear

app = typer.Typer(
    help="List, show, export, check and drop what a ledger (store=, --store) holds.", no_args_is_help=True
)

_Store = Annotated[Path, typer.Argument(metavar="STORE", help="The ledger's file.")]
_Id = Annotated[str, typer.Argument(metavar="ID", help="As `sdkernels runs list` shows it.")]


@app.command("list")
def list_(store: _Store) -> None:
    """Every run and every kept thing, how far it is, and when it was written last (UTC)."""
    from sdkernels.engine.ledger import Ledger
    from sdkernels.lab.contents import as_text, contents

    with _clear("list", store), Ledger(store, must_exist=True) as ledger:
        table = contents(ledger)
        typer.echo(as_text(table) if len(table) else f"{store} holds nothing yet")


@app.command()
def show(store: _Store, wanted: _Id) -> None:
    """All that is known of one."""
    from sdkernels.engine.ledger import Ledger
    from sdkernels.lab.contents import describe, find

    with _clear("show", store), Ledger(store, must_exist=True) as ledger:
        typer.echo(describe(ledger, find(ledger, wanted)))


@app.command()
def export(
    store: _Store, wanted: _Id, out: Annotated[Path, typer.Argument(help="A file that ends in .csv or .parquet.")]
) -> None:
    """Write a run's counts, as far as they are there, one row a configuration; or a kept result's table."""
    from sdkernels.engine.ledger import Ledger, Run
    from sdkernels.lab.contents import export as write
    from sdkernels.lab.contents import find, kept_table, scores

    with _clear("export", store), Ledger(store, must_exist=True) as ledger:
        found = find(ledger, wanted)
        table = scores(ledger, found) if isinstance(found, Run) else kept_table(ledger, *found)
        write(table, out)
        typer.echo(f"wrote {len(table)} rows to {out}")


@app.command()
def check(store: _Store) -> None:
    """Read everything and compare all checksums."""
    from sdkernels.engine.ledger import Ledger

    with _clear("check", store), Ledger(store, must_exist=True) as ledger:
        typer.echo(f"{store}: {ledger.check()} rows, all as they were written")


@app.command()
def drop(store: _Store, wanted: _Id) -> None:
    """Take one out, for good; what it is of is done anew when it is asked for."""
    from sdkernels.engine.ledger import Ledger
    from sdkernels.lab.contents import drop as take_out
    from sdkernels.lab.contents import find

    with _clear("drop", store), Ledger(store, must_exist=True) as ledger:
        take_out(ledger, find(ledger, wanted))
        typer.echo(f"dropped {wanted} from {store}")


def _clear(command: str, store: Path) -> AbstractContextManager[None]:
    return clear(f"sdkernels runs {command} {store}")
