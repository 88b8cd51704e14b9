"""Sampling less: fewer examples, intervals that hold, and the same numbers as all of the data gives."""

import pytest
import torch
from scipy.stats import binom
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import sdkernels as sd
from sdkernels.lab.models import mlp
from tests.engine.compare import assert_same
from tests.engine.zoo import standardised

CONFIDENCE = 0.9
LAYERS = ["relu1", "relu2"]


@pytest.fixture(scope="module")
def network():
    """A network, and 600 examples of which it has most right."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = mlp(12, (16, 16), 4, seed=0).double().eval()
        inputs = torch.randn(600, 12).double()
        labels = standardised(model, inputs).argmax(1)
        labels[::5] = torch.randint(0, 4, (120,))
    return model, (inputs, labels)


ORDERS = torch.stack([torch.arange(32), torch.arange(31, -1, -1), torch.arange(32).roll(7)])
FAMILIES = {
    "auc": lambda *a, **o: sd.cumulative_ablation(*a, orders=ORDERS, points=6, **o),
    "points": lambda *a, **o: sd.cumulative_ablation(*a, orders=ORDERS, points=6, tolerance_of="accuracy", **o),
    "units": lambda *a, **o: sd.unit_importance(*a, **o),
    "sets": lambda *a, **o: sd.ablate(*a, units=[[], [1], [2, 20], range(16)], **o),
    "noise": lambda *a, **o: sd.noise_robustness(*a, scales=[0.1, 1, 5], repeats=2, **o),
}


def known(family, result):
    """The estimates that were to be known well enough, and their bounds."""
    if family == "auc":
        return result.auc(), result.auc_bounds
    return result.accuracy.flatten(), result.bounds.flatten(0, -2)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tolerance_is_kept_with_fewer_examples(network, family):
    model, data = network
    run = FAMILIES[family]
    sampled = run(model, LAYERS, data, tolerance=0.1, confidence=0.99, seed=1)
    estimate, bounds = known(family, sampled)
    assert ((bounds[:, 1] - estimate <= 0.1) & (estimate - bounds[:, 0] <= 0.1)).all()
    assert sampled.used.max() == sampled.examples < 600
    whole = run(model, LAYERS, data, seed=1)
    whole = whole.auc() if family == "auc" else whole.accuracy.flatten()
    assert ((bounds[:, 0] <= whole) & (whole <= bounds[:, 1])).all()  # at these seeds
    if family in ("points", "noise"):
        assert len(sampled.used.unique()) > 1  # each stops by itself
    elif family == "auc":
        assert (sampled.used == sampled.used[:, :1]).all()  # an order's points stop together


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_is_read_where_the_tolerance_asks_for_it(network, family):
    model, (inputs, labels) = network
    data = inputs[:90], labels[:90]
    sampled = FAMILIES[family](model, LAYERS, data, tolerance=1e-6, seed=2)
    whole = FAMILIES[family](model, LAYERS, data, seed=2)
    assert (sampled.used == 90).all()
    assert torch.equal(sampled.correct, whole.correct)
    torch.testing.assert_close(sampled.sums["loss"], whole.sums["loss"], rtol=1e-12, atol=0)
    assert torch.equal(sampled.baseline_sums["accuracy"], whole.baseline_sums["accuracy"])
    estimate, bounds = known(family, sampled)
    torch.testing.assert_close(bounds, estimate[:, None].expand(-1, 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", ["auc", "points", "units"])
def test_coverage(network, family):
    """Over many orders of the examples, intervals miss no more often than they may."""
    model, data = network
    run = FAMILIES[family]
    whole = run(model, LAYERS, data)
    truth = whole.auc() if family == "auc" else whole.accuracy.flatten()
    assert truth.max() - truth.min() > 0.02
    runs = 60
    missed = torch.zeros(len(truth), dtype=torch.int64)
    for seed in range(runs):
        sampled = run(model, LAYERS, data, tolerance=0.1, confidence=CONFIDENCE, metrics="accuracy", seed=seed)
        _, bounds = known(family, sampled)
        assert sampled.examples < 600
        missed += (truth < bounds[:, 0]) | (truth > bounds[:, 1])
    assert missed.max() <= binom.ppf(1 - 1e-6, runs, 1 - CONFIDENCE)


def test_the_examples_are_those_that_were_drawn(network):
    """Counts after a few stages are those of a plain loop over the same examples."""
    model, data = network
    auto = sd.unit_importance(model, LAYERS, data, tolerance=0.1, seed=3)
    oracle = sd.unit_importance(model, LAYERS, data, tolerance=0.1, seed=3, method="loop")
    assert_same(auto, oracle)
    assert torch.equal(auto.used, oracle.used)
    other = sd.unit_importance(model, LAYERS, data, tolerance=0.1, seed=4)
    assert not torch.equal(auto.correct, other.correct)


def test_any_split_and_any_indexed_data(network):
    model, (inputs, labels) = network
    options = {"orders": ORDERS, "points": 6, "tolerance": 0.08, "seed": 5, "value": "resample"}
    first = sd.cumulative_ablation(model, LAYERS, (inputs, labels), **options)
    dataset = TensorDataset(inputs, labels)
    loaders = [DataLoader(dataset, batch_size=17), DataLoader(dataset, batch_size=50, shuffle=True)]
    for data in (dataset, *loaders):
        assert_same(sd.cumulative_ablation(model, LAYERS, data, **options), first)
    assert_same(sd.cumulative_ablation(model, LAYERS, (inputs, labels), batch_size=9, **options), first)


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(torch.zeros(12).double(), 0)] * 8)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"tolerance": 0}, ValueError, "tolerance=0 must be a number between 0 and 1"),
        ({"tolerance": 0.1, "confidence": 95}, ValueError, "confidence=95"),
        ({"tolerance": 0.1, "outcomes": True}, ValueError, "give one"),
        ({"tolerance": 0.1, "metrics": "class_accuracy"}, ValueError, "'class_accuracy' needs every example"),
    ],
    ids=str,
)
def test_refusals(network, options, error, says):
    model, data = network
    with pytest.raises(error, match=says):
        sd.unit_importance(model, LAYERS, data, **options)


def test_more_refusals(network):
    model, data = network
    for source in (Stream(), [data], DataLoader(TensorDataset(*data), batch_size=9, drop_last=True)):
        with pytest.raises(TypeError, match="can be read in any order"):
            sd.unit_importance(model, LAYERS, source, tolerance=0.1)
    with pytest.raises(ValueError, match="tolerance_of='loss'"):
        sd.cumulative_ablation(model, LAYERS, data, tolerance=0.1, tolerance_of="loss")


def test_results_keep_what_was_sampled(network, tmp_path):
    model, data = network
    curve = sd.cumulative_ablation(model, LAYERS, data, orders=ORDERS, points=6, tolerance=0.1)
    curve.save(tmp_path / "curve.npz")
    loaded = sd.AblationCurve.load(tmp_path / "curve.npz")
    assert_same(loaded, curve)
    assert loaded.bounds is None
    assert curve.to_pandas().examples.tolist() == curve.used.flatten().tolist()
    units = sd.unit_importance(model, LAYERS, data, tolerance=0.1)
    table = units.to_pandas()
    assert ((table.accuracy_low <= table.accuracy) & (table.accuracy <= table.accuracy_high)).all()
    expected = units.baseline["accuracy"] - units.correct.double() / units.used
    torch.testing.assert_close(units.importance(), expected, rtol=1e-12, atol=1e-12)
    assert units.top(3).tolist() == expected.argsort(descending=True, stable=True)[:3].tolist()
