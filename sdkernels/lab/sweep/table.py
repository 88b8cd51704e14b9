"""A sweep's results as tables: one row a network; and for each condition one row a configuration of each network."""

from pathlib import Path
from typing import Any

import pandas as pd

from sdkernels.lab.sweep.run import Networks
from sdkernels.lab.sweep.spec import flat

_OUTCOMES = ("epochs", "memorised", "train_accuracy", "train_loss", "test_accuracy", "test_loss")

# Losses are sums of float64, whose last bits depend on how examples were grouped: tables stop before them.
DIGITS = "%.10g"


def networks_table(networks: Networks) -> pd.DataFrame:
    """One row a network: the settings that vary, how training ended, and each condition's summary."""
    rows = []
    for index, settings in enumerate(networks.sweep.networks):
        record = networks.record(index)
        row: dict[str, Any] = {name: flat(settings).get(name) for name in networks.sweep.varying}
        row |= {name: record[name] for name in _OUTCOMES if name in record}
        for condition in networks.sweep.conditions:
            found = networks.summary(index, condition.name)
            row |= {f"{condition.name}_{name}": value for name, value in found.items()}
        rows.append(row)
    return pd.DataFrame(rows, index=pd.RangeIndex(len(rows), name="network"))


def condition_table(networks: Networks, condition: str) -> pd.DataFrame:
    """One row a configuration of each network, as the result's own ``to_pandas`` has it."""
    parts = []
    for index, settings in enumerate(networks.sweep.networks):
        table: pd.DataFrame = networks.result(index, condition).to_pandas()
        for place, name in enumerate(["network", *networks.sweep.varying]):
            value = index if name == "network" else flat(settings).get(name)
            table.insert(place, name, [value] * len(table))
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def write_tables(networks: Networks, folder: Path) -> list[Path]:
    """``networks.csv`` and a CSV file a condition; the files."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {"networks": networks_table(networks).reset_index()}
    tables |= {c.name: condition_table(networks, c.name) for c in networks.sweep.conditions}
    written = []
    for name, table in tables.items():
        path = folder / f"{name}.csv"
        partial = path.with_suffix(".csv.partial")
        table.to_csv(partial, index=False, float_format=DIGITS)
        partial.replace(path)
        written.append(path)
    return written
