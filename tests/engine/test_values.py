"""What clamped units become, against hooks written out here: class means, other examples, ranges."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import sdkernels as sd
from sdkernels.engine.batches import Batches
from sdkernels.lab.models import convnet
from tests.engine.compare import assert_same
from tests.engine.networks import image_networks
from tests.engine.parse import read_plan
from tests.engine.zoo import ZOO, build, standardised

CLASSES = 5


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 2, 6, 6, generator=generator).double()
    return inputs, torch.randint(0, CLASSES, (40,), generator=generator)


@pytest.fixture(scope="module")
def network():
    """A network whose logits vary, and its two layers."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model, layers = image_networks()["convnet-relu"]
        standardised(model, torch.randn(40, 2, 6, 6).double())
    return model, layers


def activations(model, layers, inputs):
    """What the layers give, by hooks."""
    found = {}
    handles = [
        model.get_submodule(layer).register_forward_hook(
            lambda _m, _a, out, layer=layer: found.__setitem__(layer, out.clone())
        )
        for layer in layers
    ]
    with torch.no_grad():
        model(inputs.clone())
    for handle in handles:
        handle.remove()
    return found


def by_hooks(model, layers, data, units, become):
    """Correct predictions and the mean loss with pooled units set to ``become(layer, out)`` [N, C, H, W]."""
    inputs, labels = data
    handles, first = [], 0
    for layer, count in zip(layers, (5, 6), strict=False):
        own = torch.tensor([u - first for u in units if first <= u < first + count], dtype=torch.long)
        first += count

        def hook(_module, _args, out, layer=layer, own=own):
            changed = out.clone()
            changed[:, own] = become(layer, out)[:, own]
            return changed

        handles.append(model.get_submodule(layer).register_forward_hook(hook))
    with torch.no_grad():
        logits = model(inputs.clone())
    for handle in handles:
        handle.remove()
    return int((logits.argmax(1) == labels).sum()), float(F.cross_entropy(logits, labels))


def become_of(kind, model, layers, data, given):
    """The definitions: (layer, out) -> [N, C, H, W]."""
    labels = data[1]
    taken = activations(model, layers, given[0])
    if kind == "class_element_mean":
        means = {a: torch.stack([taken[a][given[1] == c].mean(0) for c in range(CLASSES)]) for a in layers}
        return lambda layer, out: means[layer][labels]
    if kind == "class_mean":
        means = {a: torch.stack([taken[a][given[1] == c].mean((0, 2, 3)) for c in range(CLASSES)]) for a in layers}
        return lambda layer, out: means[layer][labels][:, :, None, None].expand_as(out)
    donors = Batches(data, batch_size=64, device=torch.device("cpu")).with_donors(None, 7)
    taken = activations(model, layers, next(donors.numbered()).donors)
    return lambda layer, out: taken[layer]


TWO_CLASSES = torch.zeros(3, 2, 6, 6).double(), torch.tensor([0, 0, 1])
SETS = [[], [0], [2, 3, 7], list(range(11)), [5, 6, 7]]


@pytest.mark.parametrize("method", ["auto", "loop"])
@pytest.mark.parametrize("kind", ["class_mean", "class_element_mean", "resample"])
def test_values_by_example(network, data, kind, method):
    model, layers = network
    result = sd.ablate(model, layers, data, units=SETS, value=kind, seed=7, method=method)
    become = become_of(kind, model, layers, data, data)
    expected = [by_hooks(model, layers, data, units, become) for units in SETS]
    assert result.correct.tolist() == [correct for correct, _ in expected]
    assert result.loss.tolist() == pytest.approx([loss for _, loss in expected], rel=1e-9)
    assert len(result.loss.unique()) == len(SETS)


@pytest.mark.parametrize("method", ["auto", "loop"])
@pytest.mark.parametrize("value", [0.0, "mean"])
@pytest.mark.parametrize("tau", [0.5, 1.5, (-0.2, 0.9)], ids=str)
def test_ranges(network, data, value, tau, method):
    model, layers = network
    taken = activations(model, layers, data[0])
    means = {layer: taken[layer].mean((0, 2, 3), keepdim=True) for layer in layers}
    deviations = {layer: taken[layer].transpose(0, 1).flatten(1).std(1, correction=0) for layer in layers}

    def become(layer, out):
        clamped = torch.zeros_like(out) if value == 0.0 else means[layer].expand_as(out)
        reach = None if isinstance(tau, tuple) else tau * deviations[layer][None, :, None, None]
        low, high = tau if reach is None else (means[layer] - reach, means[layer] + reach)
        return torch.where((out >= low) & (out <= high), clamped, out)

    result = sd.ablate(model, layers, data, units=SETS, value=value, within=tau, method=method)
    expected = [by_hooks(model, layers, data, units, become) for units in SETS]
    assert result.correct.tolist() == [correct for correct, _ in expected]
    assert result.loss.tolist() == pytest.approx([loss for _, loss in expected], rel=1e-9)
    everywhere = sd.ablate(model, layers, data, units=SETS, value=value)
    assert (result.loss[1:] != everywhere.loss[1:]).all()


def test_ranges_as_tensors_and_by_layer(network, data):
    model, layers = network
    low, high = torch.linspace(-1, 0, 5), torch.linspace(0, 1, 6)
    within = {layers[0]: (low, 0.7), layers[1]: (0.0, high)}
    auto, loop = (sd.ablate(model, layers, data, units=SETS, within=within, method=m) for m in ("auto", "loop"))
    assert_same(auto, loop)
    assert "within {" in auto.value
    assert auto.loss[3] != sd.ablate(model, layers, data, units=SETS, within=(-10, 10)).loss[3]
    whole = sd.ablate(model, layers, data, units=SETS, within=(-1e9, 1e9))
    torch.testing.assert_close(whole.loss, sd.ablate(model, layers, data, units=SETS).loss, rtol=1e-12, atol=0)


def test_values_come_from_the_data_that_is_named(network, data):
    model, layers = network
    other = data[0].flip(0)[:20] + 0.5, data[1][:20]
    assert len(other[1].unique()) == CLASSES
    for kind in ("class_mean", "class_element_mean"):
        result = sd.ablate(model, layers, data, units=SETS, value=kind, value_data=other)
        become = become_of(kind, model, layers, data, other)
        assert result.correct.tolist() == [by_hooks(model, layers, data, units, become)[0] for units in SETS]
    theirs = sd.ablate(model, layers, data, units=SETS, value="resample", value_data=other)
    assert theirs.loss[3] != sd.ablate(model, layers, data, units=SETS, value="resample").loss[3]


def test_donors(seeds_torch):
    """Never the example itself, each as likely as any other, the same at any batch size and for any kind of data."""
    inputs, labels = torch.arange(50.0)[:, None], torch.zeros(50, dtype=torch.long)
    drawn = []
    for seed in range(200):
        batches = Batches((inputs, labels), batch_size=50, device=torch.device("cpu")).with_donors(None, seed)
        drawn.append(next(batches.numbered()).donors[:, 0])
    drawn = torch.stack(drawn)
    assert (drawn != inputs[:, 0]).all()
    counts = ((drawn - inputs[:, 0]) % 50).long().flatten().bincount(minlength=50)
    assert counts[0] == 0
    chi2 = ((counts[1:] - 200 * 50 / 49) ** 2 / (200 * 50 / 49)).sum()
    assert chi2 < 48 + 6 * (2 * 48) ** 0.5
    for data in (TensorDataset(inputs, labels), DataLoader(TensorDataset(inputs, labels), batch_size=7)):
        batches = Batches(data, batch_size=9, device=torch.device("cpu")).with_donors(None, 3)
        assert torch.equal(torch.cat([batch.donors for batch in batches.numbered()])[:, 0], drawn[3])


@pytest.mark.parametrize("kind", ["class_mean", "resample"])
def test_a_seed_is_kept_where_something_is_drawn(network, data, kind):
    result = sd.unit_importance(*network, data, value=kind, seed=11)
    assert result.seed == (11 if kind == "resample" else None)
    other = sd.unit_importance(*network, data, value=kind, seed=12)
    assert torch.equal(result.sums["loss"], other.sums["loss"]) == (kind == "class_mean")


@pytest.mark.parametrize("kind", ["class_mean", "resample"])
def test_a_curve_still_costs_few_products(kind):
    model, data = build(ZOO["mlp"])
    plan = read_plan(sd.cumulative_ablation(model, ["relu1", "relu2"], data, value=kind).plan)
    assert plan.modes["fc2"] == "nested"
    plan = read_plan(sd.unit_importance(model, "relu1", data, value=kind).plan)
    assert plan.modes["fc2"] == "rank-one"


@pytest.mark.parametrize("own", ["class_mean", "class_element_mean", "resample"])
@pytest.mark.parametrize("layers", [["relu1"], ["relu1", "relu2"]], ids=str)
@pytest.mark.parametrize("within", [None, 0.8])
def test_one_kernel_takes_values_by_example(layers, own, within):
    """Where the units of the layer behind have one value for all: as many inputs again, which never die."""
    if within is not None:
        layers = layers[:1]
    model, data = build(ZOO["mlp"])
    options = {"value": {"relu1": own, "relu2": 0.3}, "within": within, "orders": 3, "points": "all", "batch_size": 5}
    options["value"] = {layer: options["value"][layer] for layer in layers}
    auto, loop = (sd.cumulative_ablation(model, layers, data, method=m, **options) for m in ("auto", "loop"))
    assert any("one kernel" in note for note in read_plan(auto.plan).notes)
    assert_same(auto, loop)


def test_a_range_below_float64_needs_no_loop(seeds_torch):
    """Rounding puts an activation on the other side of a range's edge, now and then; a warning is an error here."""
    model = convnet(classes=10, width=1 / 4, seed=0).eval()
    data = torch.rand(40, 3, 16, 16), torch.randint(0, 10, (40,))
    for seed in range(5):
        options = {"value": "resample", "within": 1.0, "orders": 1, "points": 5, "seed": seed}
        sd.cumulative_ablation(model, ["relu9", "relu10", "relu11"], data, **options)


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(torch.zeros(2, 6, 6).double(), 0)] * 8)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        (
            {"value": "class_mean", "value_data": TWO_CLASSES},
            ValueError,
            "class . has no example among those that class",
        ),
        ({"within": -1.0}, ValueError, "within=-1.0 for layer 'relu1' must be at least 0"),
        ({"within": (1.0, 0.0)}, ValueError, "low must be no more than high"),
        ({"within": (torch.zeros(4), 1.0)}, ValueError, r"within \[4\] for layer 'relu1' fits neither"),
        ({"within": "wide"}, TypeError, "within for layer 'relu1' is 'wide'"),
        ({"within": {"relu1": 1.0}}, ValueError, "within is a dict of"),
        ({"value": "resample", "value_data": Stream()}, TypeError, "can be read in any order"),
        ({"value": "resample", "seed": -1}, ValueError, "seed=-1"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_refusals(network, data, options, error, says):
    for method in ("auto", "loop"):
        with pytest.raises(error, match=says):
            sd.unit_importance(*network, data, method=method, **options)


def test_one_example_has_no_other(network, data):
    with pytest.raises(ValueError, match="needs another example"):
        sd.unit_importance(*network, (data[0][:1], data[1][:1]), value="resample")


@pytest.mark.parametrize("method", ["auto", "loop"])
def test_outcomes(network, data, method, tmp_path):
    model, layers = network
    curve = sd.cumulative_ablation(model, layers, data, orders=2, points=4, outcomes=True, method=method, batch_size=7)
    matrix = curve.outcome_matrix()
    assert matrix.shape == (2, 4, 40)
    assert matrix.dtype == torch.bool
    assert torch.equal(matrix.sum(2), curve.correct)
    assert curve.outcomes.shape == (2, 4, 5)
    with torch.no_grad():
        assert torch.equal(matrix[0, 0], model(data[0].clone()).argmax(1) == data[1])
    curve.save(tmp_path / "curve.npz")
    assert torch.equal(sd.AblationCurve.load(tmp_path / "curve.npz").outcome_matrix(), matrix)
    loader = DataLoader(TensorDataset(*data), batch_sampler=torch.utils.data.BatchSampler(range(40), 11, False))
    streamed = sd.cumulative_ablation(model, layers, loader, orders=2, points=4, outcomes=True, method=method)
    assert torch.equal(streamed.outcome_matrix(), matrix)
    with pytest.raises(ValueError, match="ask for them by outcomes=True"):
        sd.cumulative_ablation(model, layers, data, orders=1, points=2).outcome_matrix()
