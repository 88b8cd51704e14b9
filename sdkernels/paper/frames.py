"""Networks and their measurements as tables that figures are drawn from and claims tested on."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from sdkernels.analysis.curves import AblationCurve
from sdkernels.analysis.noise import NoiseCurve
from sdkernels.lab.sweep import Networks
from sdkernels.lab.sweep.settings import flat

OUTCOMES = ("epochs", "train_accuracy", "train_loss", "test_accuracy", "test_loss", "memorised")


def trained(networks: Networks) -> Iterator[int]:
    """The places of the networks that there are: all but those whose training has diverged."""
    return (index for index in range(len(networks)) if index not in networks.failed)


def network_frame(networks: Networks, *settings: str) -> pd.DataFrame:
    """One row a network: ``network``, the settings that are named, and how its training ended.

    The columns of the latter are ``epochs``, ``train_accuracy``, ``train_loss``, ``test_accuracy``, ``test_loss``,
    ``memorised``; nan where the network has no such number.
    """
    rows = []
    for index in trained(networks):
        record = networks.record(index)
        rows.append({**_settings(networks, index, settings), **{name: record.get(name, np.nan) for name in OUTCOMES}})
    return pd.DataFrame(rows)


def result_frame(networks: Networks, condition: str, *settings: str) -> pd.DataFrame:
    """One row a configuration of each network, as the result's own ``to_pandas`` has it, behind ``network`` and the
    settings that are named."""
    tables: list[pd.DataFrame] = []
    rows: list[dict[str, Any]] = []
    for index in trained(networks):
        tables.append(networks.result(index, condition).to_pandas())
        rows += [_settings(networks, index, settings)] * len(tables[-1])
    return pd.concat([pd.DataFrame(rows), pd.concat(tables, ignore_index=True)], axis=1)


def area_frame(networks: Networks, condition: str, *settings: str, metric: str = "accuracy") -> pd.DataFrame:
    r"""One row a network and order (or run of noise): ``network``, the settings that are named, ``order``, ``auc``.

    The area under an ablation curve is over the fraction of units ablated; under a noise curve it is over the
    logarithm of the scale, divided by that logarithm's range, so that both are mean accuracies.

    Raises:
        TypeError: the condition's results are no curves.
        ValueError: noise of a scale of 0, or of one scale alone.
    """
    rows: list[dict[str, Any]] = []
    for index in trained(networks):
        result = networks.result(index, condition)
        if isinstance(result, AblationCurve):
            areas = result.auc(metric).numpy()
        elif isinstance(result, NoiseCurve):
            areas = _mean_over_scales(condition, result, metric)
        else:
            raise TypeError(f"{condition}: a {type(result).__name__} has no area; give a curve's condition")
        own = _settings(networks, index, settings)
        rows += [{**own, "order": order, "auc": float(area)} for order, area in enumerate(areas)]
    return pd.DataFrame(rows)


def robustness_frame(networks: Networks, condition: str, *settings: str, metric: str = "accuracy") -> pd.DataFrame:
    """One row a network: as :func:`network_frame` has it, and ``auc``, the mean over orders (or runs of noise)."""
    areas = area_frame(networks, condition, metric=metric).groupby("network").auc.mean()
    found = network_frame(networks, *settings)
    return found.assign(auc=found.network.map(areas))


def _mean_over_scales(condition: str, curve: NoiseCurve, metric: str) -> NDArray[np.float64]:
    """The mean of each run over the logarithm of the scale ``[R]``."""
    scales, order = curve.scales.sort()
    if scales[0] <= 0 or scales[0] == scales[-1]:
        raise ValueError(
            f"{condition}: an area over the logarithm of scales {scales.tolist()}: give two or more, greater than 0"
        )
    across, scores = scales.log10(), curve.metric(metric).double()[:, order]
    found: NDArray[np.float64] = (torch.trapezoid(scores, across) / (across[-1] - across[0])).numpy()
    return found


def _settings(networks: Networks, index: int, names: tuple[str, ...]) -> dict[str, Any]:
    everyone = networks.sweep.networks
    values = flat(everyone[index])
    for name in names:  # some may lack it, as networks without dropout do; where all do, it is a slip
        if name not in values and not any(name in flat(settings) for settings in everyone):
            raise ValueError(f"networks have no setting {name!r}; they have {', '.join(values)}")
    return {"network": index, **{name: values.get(name) for name in names}}
