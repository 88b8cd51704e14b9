"""A sweep's results as tables: one row a network; and for each condition one row a configuration of each network."""

import os
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import Any

import pandas as pd

from sdkernels.lab.sweep.run import Networks
from sdkernels.lab.sweep.settings import flat

_OUTCOMES = (
    "memorised",
    *(f"{part}_{what}" for part in ("train", "validation", "test") for what in ("accuracy", "loss", "perplexity")),
)

# Means of float32 losses, whose last digits depend on how examples were grouped: no more of them than that.
DIGITS = "%.10g"


def networks_table(networks: Networks) -> pd.DataFrame:
    """One row a network: the settings that vary, how training ended, and each condition's summary.

    Of a network whose training has diverged, the settings alone.
    """
    rows, varying = [], networks.sweep.varying
    for index, settings in enumerate(networks.sweep.networks):
        row: dict[str, Any] = {name: flat(settings).get(name) for name in varying}
        rows.append(row)
        if index in networks.failed:
            continue
        record = networks.record(index)
        row |= {"trained_epochs": record["epochs"]} | {name: record[name] for name in _OUTCOMES if name in record}
        for condition in networks.sweep.conditions:
            found = networks.summary(index, condition.name)
            row |= {f"{condition.name}_{name}": value for name, value in found.items()}
    return pd.DataFrame(rows, index=pd.RangeIndex(len(rows), name="network"))


def condition_table(networks: Networks, condition: str) -> pd.DataFrame:
    """One row a configuration of each network, as the result's own ``to_pandas`` has it.

    Before its columns stand the network and the settings that vary; one that the result's table has a column of the
    same name for is called ``network_...``.
    """
    tables: list[pd.DataFrame] = []
    rows: list[dict[str, Any]] = []
    for index, settings in enumerate(networks.sweep.networks):
        if index in networks.failed:
            continue
        tables.append(networks.result(index, condition).to_pandas())
        values = {"network": index, **{name: flat(settings).get(name) for name in networks.sweep.varying}}
        rows += [values] * len(tables[-1])
    if not tables:
        return pd.DataFrame()
    table = pd.concat(tables, ignore_index=True)
    ahead = pd.DataFrame(rows).rename(columns=lambda name: f"network_{name}" if name in table.columns else name)
    return pd.concat([ahead, table], axis=1)


def write_tables(networks: Networks, folder: Path) -> list[Path]:
    """``networks.csv`` and a CSV file a condition; the files. A crash never leaves half of one."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in ["networks", *(condition.name for condition in networks.sweep.conditions)]:
        table = networks_table(networks).reset_index() if name == "networks" else condition_table(networks, name)
        written.append(folder / f"{name}.csv")
        _write(table.to_csv(index=False, float_format=DIGITS), written[-1])
    return written


def _write(text: str, path: Path) -> None:
    """Put a file in place whole, while other processes may write the same one, or were killed when they did."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    while True:
        for left in path.parent.glob(f"{escape(path.name)}.*.partial"):
            left.unlink(missing_ok=True)
        try:
            partial.write_text(text)
            with suppress(FileNotFoundError):  # another process took it for one that was left
                partial.replace(path)
                return
        finally:
            partial.unlink(missing_ok=True)
