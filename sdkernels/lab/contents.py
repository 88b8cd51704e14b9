"""What a ledger holds, as tables."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from sdkernels.analysis.extras import needed_by
from sdkernels.analysis.passes import KIND as PASS
from sdkernels.analysis.passes import ROWS_KIND as PASS_ROWS
from sdkernels.engine.arrays import read_arrays
from sdkernels.engine.ledger import Item, Ledger, LedgerError, Run, taken_from
from sdkernels.lab.sweep.comparison import COMPARISON
from sdkernels.lab.sweep.driver import CONDITION, NETWORK, STATE
from sdkernels.lab.sweep.results import from_bytes

with needed_by("what a ledger holds, as a table,"):
    import pandas as pd

_TIME = "%Y-%m-%d %H:%M:%S"

# Of descriptions, what is for machines, or too long to read.
_HIDDEN = ("columns", "probe", "history", "tally", "carried", "format", "results", "networks", "learning_rate")


def contents(ledger: Ledger) -> pd.DataFrame:
    """One row a run and one a kept thing: its id, what it is, how far it is, when."""
    rows = []
    for run in ledger.runs():
        with taken_from(ledger, f"run {run.id}"):
            rows.append(_row_of_run(ledger, run))
    for item in _items(ledger):
        with taken_from(ledger, f"{item.kind} {item.key[:12]}"):
            rows.append(_row_of_item(item))
    return pd.DataFrame(rows, columns=["id", "what", "of", "examples", "state", "written"])


def as_text(table: pd.DataFrame) -> str:
    """A table of words, every column from its left."""
    rows = [list(table.columns), *table.astype(str).to_numpy().tolist()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def find(ledger: Ledger, wanted: str) -> Run | tuple[str, str]:
    """The run of a number, or kind and key of the one thing whose key begins so.

    Raises:
        LedgerError: there is none, or several.
    """
    runs = {str(run.id): run for run in ledger.runs()}
    if wanted in runs:
        return runs[wanted]
    keys = [(item.kind, item.key) for item in _items(ledger)]
    found = [(kind, key) for kind, key in keys if len(wanted) >= 4 and key.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(f"{kind} {key}" for kind, key in found[:5])
        raise LedgerError(f"{ledger.path} holds several of id {wanted}: {several}; give more of its digits")
    known = [*runs, *(key[:12] for _, key in keys)]
    more = f", and {len(known) - 8} more" if len(known) > 8 else ""
    raise LedgerError(f"{ledger.path} holds nothing of id {wanted}; it holds {', '.join(known[:8]) or 'nothing'}{more}")


def drop(ledger: Ledger, found: Run | tuple[str, str]) -> None:
    """Take out what :func:`find` gave, with all that belongs to it."""
    if isinstance(found, Run):
        ledger.drop_run(found)
        return
    kind, key = found
    ledger.drop_item(kind, key)
    if kind == PASS:
        for item in ledger.items_without_content(PASS_ROWS):
            if item.key.startswith(f"{key}/"):
                ledger.drop_item(PASS_ROWS, item.key)


def scores(ledger: Ledger, run: Run) -> pd.DataFrame:
    """One row a configuration: what it is, on how many examples it was scored, and its counts and sums over them.

    Raises:
        LedgerError: calls on several data sets have put their tiles into this run, so that sums would mix them.
    """
    with taken_from(ledger, f"run {run.id}"):
        return _scores(ledger, run)


def _scores(ledger: Ledger, run: Run) -> pd.DataFrame:
    columns: dict[str, Any] = run.description["columns"]
    configurations = run.description["configurations"]
    examples = np.zeros(configurations, dtype=np.int64)
    behind = np.zeros(
        configurations, dtype=np.int64
    )  # the place of the first example that a configuration has not seen
    sums: dict[str, np.ndarray[Any, Any]] = {}
    for tile in ledger.tiles(run):
        arrays = read_arrays(io.BytesIO(tile.content))
        which = arrays.get("configurations", np.arange(configurations))
        if not _is_in_stages(run) and (behind[which] > tile.start).any():
            raise _mixed(ledger, run)
        behind[which] = tile.start + tile.examples
        examples[which] += tile.examples
        for name, found in arrays.items():
            if name.startswith("sums/"):
                total = sums.setdefault(name[5:], np.zeros((configurations, *found.shape[1:]), found.dtype))
                total[which] += found
    total_examples = run.description.get("examples")
    if total_examples is not None and (examples > total_examples).any():
        raise _mixed(ledger, run)
    table: dict[str, Any] = {**columns, "examples": examples}
    for name, total in sums.items():
        if total.ndim == 1:
            table[_counted(name)] = total
        else:
            table |= {f"{_counted(name)}_{label}": column for label, column in enumerate(total.T)}
    return pd.DataFrame(table)


def kept_table(ledger: Ledger, kind: str, key: str) -> pd.DataFrame:
    """A kept result's own table; of a network its epochs.

    Raises:
        LedgerError: a kind that has no table.
    """
    item = ledger.item(kind, key)
    with taken_from(ledger, f"{kind} {key[:12]}"):
        if item is not None and kind in (CONDITION, COMPARISON):
            table: pd.DataFrame = from_bytes(item.description["function"], item.content).to_pandas()
            return table
        if item is not None and kind in (NETWORK, STATE) and "history" in item.description:
            return pd.DataFrame(item.description["history"])
    raise LedgerError(f"{ledger.path}: {kind} {key[:12]} has no table; runs, networks, measures, comparisons have one")


def export(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, or as parquet where pyarrow is, by the file's ending.

    Raises:
        ValueError: another ending, or parquet without pyarrow.
    """
    partial = path.with_name(f"{path.name}.partial")
    if path.suffix not in (".csv", ".parquet"):
        raise ValueError(f"{path}: tables are exported to a file that ends in .csv or .parquet")
    try:
        if path.suffix == ".csv":
            table.to_csv(partial, index=False)
        else:
            table.to_parquet(partial, engine="pyarrow", index=False)
        partial.replace(path)
    except ImportError as error:
        raise ValueError(
            'parquet needs pyarrow: `python -m pip install "sdkernels[parquet]"`; or export to a .csv'
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def describe(ledger: Ledger, found: Run | tuple[str, str]) -> str:
    """All that is known of what :func:`find` gave, a line each; what is long is cut."""
    with taken_from(ledger, f"run {found.id}" if isinstance(found, Run) else f"{found[0]} {found[1][:12]}"):
        return _described(ledger, found)


def _described(ledger: Ledger, found: Run | tuple[str, str]) -> str:
    if isinstance(found, Run):
        tiles, examples, written = ledger.progress(found)
        about: dict[str, Any] = {"key": found.key, "function": found.kind, **found.description, "tiles": tiles}
        about |= {"scored": f"{examples // found.description['layout']['parts']} examples"}
        times = {"begun": found.created, "written": written, "finished": found.finished}
    else:
        item = ledger.item(*found)
        if item is None:
            raise LedgerError(f"{ledger.path}: {found[0]} {found[1][:12]} was dropped by another process")
        about = {"key": item.key, "kind": item.kind, "bytes": len(item.content), **item.description}
        about |= {"epochs": len(item.description["history"])} if "history" in item.description else {}
        times = {"written": item.written}
    about |= {name: f"{_time(seconds)} UTC" for name, seconds in times.items() if seconds is not None}
    lines = [line for name, value in about.items() if name not in _HIDDEN for line in _lines(name, value)]
    return "\n".join(f"{name:<20}{text if len(text) <= 200 else text[:197] + '...'}" for name, text in lines)


def _lines(name: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        inner = {k: v for k, v in value.items() if v not in (None, [], {})}
        if any(isinstance(v, dict) for v in inner.values()):  # settings, and options among them
            return [line for k, v in inner.items() for line in _lines(k, v)]
        return [(name, ", ".join(f"{k} {v}" for k, v in inner.items()))]
    return [(name, ", ".join(map(str, value)) if isinstance(value, list) else str(value))]


def _items(ledger: Ledger) -> list[Item]:
    """All but the rows of a pass, which belong to it."""
    return [item for kind in ledger.kinds() if kind != PASS_ROWS for item in ledger.items_without_content(kind)]


def _is_in_stages(run: Run) -> bool:
    """Whether its tiles count their examples from the beginning of a stage."""
    return bool(run.description.get("stages", False))


def _mixed(ledger: Ledger, run: Run) -> LedgerError:
    return LedgerError(
        f"{ledger.path}: run {run.id} holds tiles of several data sets, as the same call was made on each; their sums "
        "cannot be told apart. Each call's own result is right: export that, by to_pandas()"
    )


def _row_of_run(ledger: Ledger, run: Run) -> dict[str, Any]:
    about = run.description
    tiles, examples, written = ledger.progress(run)
    scored, total = examples // about["layout"]["parts"], about.get("examples")
    of = f" of {total}" if total and scored <= total else ""  # more, if the call was made on other data too
    return {
        "id": str(run.id),
        "what": run.kind,
        "of": f"{about['model']}: {', '.join(about['layers'])}; {about['configurations']} configurations",
        "examples": f"{scored}{of}, {tiles} tiles",
        "state": "finished" if run.finished is not None else "under way",
        "written": _time(written if written is not None else run.created),
    }


def _row_of_item(item: Item) -> dict[str, Any]:
    about = item.description
    scored = f"{about['examples']}{f' of {of}' if (of := about.get('of')) else ''}" if item.kind == PASS else ""
    return {
        "id": item.key[:12],
        "what": item.kind,
        "of": _of(about),
        "examples": scored,
        "state": "finished" if about.get("finished", item.kind != STATE) else "under way",
        "written": _time(item.written),
    }


def _of(description: dict[str, Any]) -> str:
    settings = description.get("settings", {})
    if settings:
        made = f"{settings['model']} on {settings['data']}, {_told(settings)}"
        return f"{description['name']}: {made}" if "name" in description else made
    if "function" in description:
        return f"{description['function']}: {', '.join(description.get('layers', []))}"
    return f"epoch {len(description.get('history', []))}, step {description['step']}" if "step" in description else ""


def _told(settings: dict[str, Any]) -> str:
    """What most often tells one network from another."""
    training = settings.get("training", {})
    values = {"corruption": settings.get("corruption"), "learning rate": training.get("learning_rate")}
    words = [f"{name} {value:g}" for name, value in values.items() if value]
    words += [f"epoch {settings['until']}"] if "until" in settings else []
    return ", ".join([*words, f"seed {settings['seed']}"])


def _counted(name: str) -> str:
    """A metric's sum as a column: accuracies are counts of correct predictions."""
    return {"accuracy": "correct", "class_accuracy": "class_correct", "loss": "loss_sum"}.get(name, name)


def _time(seconds: float) -> str:
    try:
        return str(pd.Timestamp(seconds, unit="s").strftime(_TIME))
    except (ValueError, OverflowError):  # no calendar has it: the clock was wrong
        return f"{seconds:g} s"
