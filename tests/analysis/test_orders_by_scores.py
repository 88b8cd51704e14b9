"""Every score a unit sorts an order of ablation, in both directions, across layers and within, on other data."""

from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import sdkernels as sd

LAYERS = ["relu1", "relu2"]
Data = tuple[torch.Tensor, torch.Tensor]


@cache
def network() -> tuple[nn.Module, Data, Data]:
    """A small network with batch norms, data to rank units on, and data to score the network on."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(1, 6, 3, padding=1),
                bn1=nn.BatchNorm2d(6),
                relu1=nn.ReLU(),
                conv2=nn.Conv2d(6, 5, 3, stride=2),
                bn2=nn.BatchNorm2d(5),
                relu2=nn.ReLU(),
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                out=nn.Linear(5, 3),
            )
        )
        model.bn1.weight.data.uniform_(0.5, 1.5)
        model.bn2.weight.data.uniform_(0.5, 1.5)
        model.bn1.bias.data.normal_()
        model.conv2.weight.data[3] = 0
        model.bn2.bias.data[3] = -1.0  # a dead unit
    inputs = torch.randn(80, 1, 8, 8, generator=generator)
    with torch.no_grad():
        logits = model.eval()(inputs)
        model.out.bias.data.sub_(logits.mean(0))
        labels = model(inputs).argmax(1)  # so that units matter to the accuracy
    return model, (inputs[:40], labels[:40]), (inputs[40:], labels[40:])


Score = Callable[[nn.Module, Data], sd.UnitScore]


def importance(metric: str, **options: Any) -> Score:
    return lambda model, data: sd.unit_importance(
        model, LAYERS, data, metrics=("accuracy", "loss", "class_accuracy")
    ).score(metric, **options)


def statistic(of: Callable[[sd.UnitStatistics], sd.UnitScore]) -> Score:
    return lambda model, data: of(sd.unit_statistics(model, LAYERS, data))


def weights(side: str, p: int) -> Score:
    return lambda model, data: sd.weight_norm(model, LAYERS, data, side=side, p=p)


SCORES: dict[str, Score] = {
    "accuracy": importance("accuracy"),
    "loss": importance("loss"),
    "accuracy of class 2": importance("class_accuracy", label=2),
    "selectivity": statistic(lambda stats: stats.selectivity()),
    "mutual information": statistic(lambda stats: stats.mutual_information(5)),
    "sparsity": statistic(lambda stats: stats.sparsity()),
    "mean": statistic(lambda stats: stats.score("mean")),
    "variance": statistic(lambda stats: stats.score("variance")),
    "firing rate": statistic(lambda stats: stats.score("firing_rate")),
    "L1 incoming": weights("incoming", 1),
    "L2 incoming": weights("incoming", 2),
    "L1 outgoing": weights("outgoing", 1),
    "L2 outgoing": weights("outgoing", 2),
    "batch norm": lambda model, data: sd.batch_norm_scale(model, LAYERS, data),
    "Taylor": lambda model, data: sd.taylor_importance(model, LAYERS, data),
    "absolute Taylor": lambda model, data: sd.taylor_importance(model, LAYERS, data, kind="absolute"),
}


@pytest.mark.parametrize("name", SCORES)
def test_sorts_an_order_that_is_scored_on_other_data(name):
    model, seen, held_out = network()
    score = SCORES[name](model, seen)
    assert score.layers == tuple(LAYERS)
    assert score.unit_counts == (6, 5)
    dead = score.values.isnan()
    assert dead.nonzero().tolist() == ([[9]] if name in ("selectivity", "sparsity") else [])
    ways = [(direction, spread) for direction in ("ascending", "descending") for spread in ("across", "within")]
    orders = [(score, *way) for way in ways]
    curve = sd.cumulative_ablation(model, LAYERS, held_out, orders=orders, points=[0, 1, 5, 11])
    values = score.values.tolist()
    for order, (direction, spread) in zip(curve.orders.tolist(), ways, strict=True):
        groups = [order] if spread == "across" else [[u for u in order if u < 6], [u for u in order if u >= 6]]
        for group in groups:
            ranked = [values[unit] for unit in group if not dead[unit]]
            assert ranked == sorted(ranked, reverse=direction == "descending")
            assert not any(dead[unit] for unit in group[: len(ranked)])
        if spread == "within":
            assert sorted(unit >= 6 for unit in order[:2]) == [False, True]
    assert (curve.examples, len(set(map(tuple, curve.orders.tolist())))) == (40, 4)
    first = int(curve.orders[2, 0])  # the highest score of all
    alone = sd.ablate(model, LAYERS, held_out, units=[[first]])
    assert int(curve.correct[2, 1]) == int(alone.correct[0])


def test_every_pair_of_scores_correlates():
    model, seen, _ = network()
    selectivity = SCORES["selectivity"](model, seen)
    for name, score in SCORES.items():
        found = sd.rank_correlation(score(model, seen), selectivity, resamples=0)
        assert found.pooled.units == 10, name
        assert found.with_dead.pooled.units == 11, name
        assert list(found.by_layer) == LAYERS
    assert found.x.name == "absolute Taylor importance (nats)"
