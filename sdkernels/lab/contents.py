"""What a ledger holds, as tables."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sdkernels.engine.ledger import Ledger, LedgerError, Run
from sdkernels.lab.sweep.network import from_bytes

_TIME = "%Y-%m-%d %H:%M:%S"


def contents(ledger: Ledger) -> pd.DataFrame:
    """One row a run and one a kept thing: its id, what it is, how far it is, when."""
    rows = [_row_of_run(ledger, run) for run in ledger.runs()]
    for kind in ledger.kinds():
        for item in ledger.items_without_content(kind):
            rows.append(
                {
                    "id": item.key[:12],
                    "what": kind,
                    "of": _of(item.description),
                    "examples": "",
                    "state": "finished" if kind != "training state" else "under way",
                    "written": _time(item.written),
                }
            )
    return pd.DataFrame(rows, columns=["id", "what", "of", "examples", "state", "written"])


def find(ledger: Ledger, wanted: str) -> Run | tuple[str, str]:
    """The run of a number, or kind and key of the one thing whose key begins so.

    Raises:
        LedgerError: there is none, or several.
    """
    runs = {str(run.id): run for run in ledger.runs()}
    if wanted in runs:
        return runs[wanted]
    keys = [(kind, item.key) for kind in ledger.kinds() for item in ledger.items_without_content(kind)]
    found = [(kind, key) for kind, key in keys if len(wanted) >= 4 and key.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    known = ", ".join([*runs, *(key[:12] for _, key in keys[:5])]) or "nothing"
    raise LedgerError(
        f"{ledger.path} holds {'several' if found else 'nothing'} of id {wanted}; it holds {known}"
        f"{', ...' if len(keys) > 5 else ''}"
    )


def scores(ledger: Ledger, run: Run) -> pd.DataFrame:
    """One row a configuration: what it is, on how many examples it was scored, and its counts and sums over them."""
    columns: dict[str, Any] = run.description["columns"]
    configurations = run.description["configurations"]
    examples = np.zeros(configurations, dtype=np.int64)
    sums: dict[str, np.ndarray[Any, Any]] = {}
    for tile in ledger.tiles(run):
        with np.load(io.BytesIO(tile.content), allow_pickle=False) as arrays:
            which = arrays["configurations"] if "configurations" in arrays.files else np.arange(configurations)
            examples[which] += tile.examples
            for name in arrays.files:
                if name.startswith("sums/"):
                    found = arrays[name]
                    total = sums.setdefault(name[5:], np.zeros((configurations, *found.shape[1:]), found.dtype))
                    total[which] += found
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
    if item is not None and kind == "condition":
        table: pd.DataFrame = from_bytes(item.description["function"], item.content).to_pandas()
        return table
    if item is not None and "history" in item.description:
        return pd.DataFrame(item.description["history"])
    raise LedgerError(f"{ledger.path}: {kind} {key[:12]} has no table; runs, networks and conditions have one")


def export(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, or as parquet where pyarrow is, by the file's ending.

    Raises:
        ValueError: another ending, or parquet without pyarrow.
    """
    partial = path.with_name(f"{path.name}.partial")
    if path.suffix == ".csv":
        table.to_csv(partial, index=False)
    elif path.suffix == ".parquet":
        try:
            table.to_parquet(partial, engine="pyarrow", index=False)
        except ImportError as error:
            raise ValueError("parquet needs pyarrow: `python -m pip install pyarrow`; or export to a .csv") from error
    else:
        raise ValueError(f"{path}: tables are exported to a file that ends in .csv or .parquet")
    partial.replace(path)


def describe(description: dict[str, Any]) -> str:
    """A description as lines; what is long is cut."""
    lines = []
    for name, value in description.items():
        if isinstance(value, dict):
            text = ", ".join(f"{k} {v}" for k, v in value.items())
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        lines.append(f"{name:<16}{text if len(text) <= 200 else text[:197] + '...'}")
    return "\n".join(lines)


def _row_of_run(ledger: Ledger, run: Run) -> dict[str, Any]:
    about = run.description
    tiles, examples, written = ledger.progress(run)
    parts = about["layout"]["parts"]
    total = about.get("examples")
    return {
        "id": str(run.id),
        "what": run.kind,
        "of": f"{about['model']}: {', '.join(about['layers'])}; {about['configurations']} configurations",
        "examples": f"{examples // parts}{f' of {total}' if total else ''}, {tiles} tiles",
        "state": "finished" if run.finished is not None else "under way",
        "written": _time(written if written is not None else run.created),
    }


def _of(description: dict[str, Any]) -> str:
    settings = description.get("settings", {})
    if settings:
        made = f"{settings['model']} on {settings['data']}, seed {settings['seed']}"
        return f"{description['name']}: {made}" if "name" in description else made
    if "function" in description:
        return f"{description['function']}: {', '.join(description.get('layers', []))}"
    return f"step {description['step']}" if "step" in description else ""


def _counted(name: str) -> str:
    """A metric's sum as a column: accuracies are counts of correct predictions."""
    return {"accuracy": "correct", "class_accuracy": "class_correct", "loss": "loss_sum"}.get(name, name)


def _time(seconds: float) -> str:
    return str(pd.Timestamp(seconds, unit="s").strftime(_TIME))
