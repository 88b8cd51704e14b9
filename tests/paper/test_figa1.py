"""Figure A1: both clamps against hooks, and its claim on data in which it is true or false."""

import numpy as np
import pandas as pd
import pytest
import torch

from sdkernels.lab.sweep import run_sweep
from sdkernels.lab.sweep.data import measured_data
from sdkernels.paper.claims import FAILS, HOLDS
from sdkernels.paper.directions import figA1
from sdkernels.paper.directions.figA1 import FIGA1, PART
from sdkernels.paper.options import change_options
from sdkernels.paper.recipe import Done
from tests.paper import small_runs

LAYERS = ("relu3", "relu4", "relu11")  # of 4 x 4, 4 x 4 and 1 x 1 positions: the two means differ

ABLATION = {"orders": 3, "points": 6, "layers": ["conv3", "conv4", "conv11"]}


def _done(folder, **changes):
    options = change_options(FIGA1.presets["quick"], {**small_runs.CONVNETS, **ABLATION, **changes})
    (sweep,) = FIGA1.sweeps(options).values()
    return Done(options, {PART: run_sweep(sweep, folder / "networks.sdk")})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("figA1")


@pytest.fixture(scope="module")
def done(folder):
    return _done(folder)


def _by_hooks(model, inputs, labels, order, counts, of_map):
    """Mean loss, with the first units of the order clamped to zero and to their mean."""
    layers = [model.get_submodule(name) for name in LAYERS]
    seen = []
    hooks = [layer.register_forward_hook(lambda _m, _i, out: seen.append(out)) for layer in layers]
    with torch.no_grad():
        model(inputs)
    for hook in hooks:
        hook.remove()
    means = [out.double().mean((0, 2, 3) if of_map else 0, keepdim=True).float() for out in seen]
    sizes = [out.shape[1] for out in seen]
    found = {"zero": [], "mean": []}
    for clamp, count in [(clamp, count) for clamp in found for count in counts]:
        clamped = torch.zeros(sum(sizes), dtype=torch.bool)
        clamped[order[:count]] = True
        hooks = []
        for layer, mean, own in zip(layers, means, clamped.split(sizes), strict=True):
            value = mean if clamp == "mean" else torch.zeros_like(mean)
            hooks.append(
                layer.register_forward_hook(
                    lambda _m, _i, out, v=value, o=own: torch.where(o[:, None, None], v.expand_as(out), out)
                )
            )
        with torch.no_grad():
            found[clamp].append(float(torch.nn.functional.cross_entropy(model(inputs), labels)))
        for hook in hooks:
            hook.remove()
    return found


@pytest.mark.parametrize("mean", ["element_mean", "mean"])
def test_both_clamps_are_those_of_hooks(folder, mean):
    done = _done(folder, mean=mean)
    found, table = done.networks[PART], FIGA1.table(done)
    assert set(table.columns) >= {"clamp", "network", "seed", "order", "ablated", "fraction", "accuracy"}
    assert len(table) == 2 * 2 * 3 * 6
    for index, settings in enumerate(found.sweep.networks):
        data = measured_data(settings, "train", None, None)
        orders = found.result(index, "zero").orders
        assert torch.equal(orders, found.result(index, "mean").orders)
        for order, units in enumerate(orders):
            counts = sorted(table.ablated.unique())
            expected = _by_hooks(found.model(index), data.inputs, data.labels, units, counts, mean == "mean")
            for clamp, losses in expected.items():
                own = table[(table.clamp == clamp) & (table.network == index) & (table.order == order)]
                assert own.loss.tolist() == pytest.approx(losses, rel=1e-4), (index, order, clamp)


def test_the_claim_is_of_the_networks_means(done):
    (claim,) = FIGA1.claims(done, FIGA1.table(done))
    found = done.networks[PART]
    zero, mean = ([float(found.result(i, clamp).auc().mean()) for i in range(2)] for clamp in ("zero", "mean"))
    assert (claim.low + claim.high) / 2 == pytest.approx(np.mean(zero) - np.mean(mean), abs=1e-9)
    assert f"(zero {np.mean(zero):.3g}, mean {np.mean(mean):.3g})" in claim.reason


def test_the_figure_shows_both_clamps(done):
    table = FIGA1.table(done)
    figure = FIGA1.draw(done, table)
    (ax,) = figure.axes
    lines = {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in ax.lines}
    for clamp, label in (("zero", "clamped to zero"), ("mean", "clamped to their mean")):
        assert lines[label] == pytest.approx(table[table.clamp == clamp].groupby("ablated").accuracy.mean().tolist())


@pytest.mark.parametrize(
    ("less", "verdict"),
    [([0.1, 0.12, 0.09], HOLDS), ([-0.1, -0.12, -0.09], FAILS), ([0.1, -0.1, 0.02], FAILS)],
    ids=["true", "false", "undecided"],
)
def test_the_claim_is_paired_over_networks(monkeypatch, less, verdict):
    zero = np.array([0.9, 0.5, 0.2])  # networks differ more than clamps do

    def areas(_networks, clamp, **_kwargs):
        own = zero if clamp == "zero" else zero - less
        return pd.DataFrame([{"network": n, "order": o, "auc": own[n] + 0.1 * o} for n in range(3) for o in range(2)])

    monkeypatch.setattr(figA1, "area_frame", areas)
    (claim,) = FIGA1.claims(Done(FIGA1.presets["quick"], {PART: None}), pd.DataFrame())
    assert claim.verdict == verdict
    assert "within 3 networks" in claim.reason


def test_preset_paper_is_the_published_protocol():
    paper = FIGA1.presets["paper"]
    assert (paper.mean, paper.batch_norm, paper.networks.shape) == ("element_mean", True, {"width": 1.0})
    assert (paper.networks.data, paper.networks.examples, paper.networks.training.epochs) == ("cifar10", None, 100)
    assert (paper.ablation.layers, paper.ablation.measured) == (("conv9", "conv10", "conv11"), None)
    (sweep,) = FIGA1.sweeps(paper).values()
    zero, mean = sweep.conditions
    assert (zero.on, mean.on) == ("train", "train")
    assert dict(mean.arguments) == {**zero.arguments, "value": "element_mean"}
