"""Noise: ``auto`` equals ``loop``, which equals hooks written out here, whatever the split."""

import pytest
import torch
import torch.nn.functional as F

import sdkernels as sd
from sdkernels.lab.models import mlp
from sdkernels.ops import random_stream
from tests.engine.compare import assert_same, assert_same_but_for_rounding, left_as_they_were
from tests.engine.networks import image_networks
from tests.engine.parse import read_plan
from tests.engine.zoo import UNTRACEABLE, ZOO, build
from tests.pairwise import pairwise

METRICS = ("accuracy", "loss", "top5", "class_accuracy", "agreement")
SCALES = [0.0, 0.3, 1.0, 4.0]


def cases():
    """Every network and set of layers, with draws of their own and with the same; one of the two is slow, in turns."""
    return [
        pytest.param(
            *(network, layers, common),
            id=f"{name}-{'+'.join(layers)}-{'same draw' if common else 'own draws'}",
            marks=[pytest.mark.slow] * ((i + j + common) % 2),
        )
        for i, (name, network) in enumerate(ZOO.items())
        for j, layers in enumerate(network.sites)
        for common in (False, True)
    ]


def noisy(network, layers, **options):
    model, data = build(network)
    unit_dim = {layer: network.unit_dim[layer] for layer in layers if layer in network.unit_dim} or None
    options = {"scales": SCALES, "repeats": 2, "seed": 3, "metrics": METRICS, "unit_dim": unit_dim, **options}
    with left_as_they_were(model, data[0]):
        return sd.noise_robustness(model, layers, data, **options)


@pytest.mark.parametrize(("network", "layers", "common"), cases())
def test_zoo(network, layers, common):
    options = {"common_random_numbers": common, "outcomes": True}
    oracle = noisy(network, layers, method="loop", **options)
    assert_same(noisy(network, layers, batch_size=7, **options), oracle)
    assert len(oracle.loss.unique()) > 4  # the noise is seen
    assert torch.equal(oracle.correct[:, 0], oracle.baseline_sums["accuracy"].expand(2))


@pytest.mark.parametrize(
    *pairwise(
        name=["convnet-bn", "resnet-basic", "mobilenet", "vit"],
        options=[{"per_map": True}, {"scale_kind": "var"}, {"repeats": 1}],
        common=[False, True],
    ),
    ids=str,
)
def test_options(name, options, common):
    network = ZOO[name]
    options = options | {"common_random_numbers": common}
    for layers in network.sites[:2]:
        assert_same(noisy(network, layers, **options), noisy(network, layers, method="loop", **options))


def by_hooks(model, layers, inputs, labels, deviations, scales, repeats, seed, per_map=False, common=False):
    """Counts and mean losses [R, T]: the definition, for units in dimension 1."""
    correct, losses = [], []
    ids, modules = torch.arange(len(inputs)), dict(model.named_modules())
    for k in range(repeats * len(scales)):
        draw = torch.tensor([k // len(scales) if common else k])
        handles, scale = [], scales[k % len(scales)]
        for i, layer in enumerate(layers):

            def hook(_module, _args, out, i=i, layer=layer, draw=draw, scale=scale):
                shape = [len(out), out.shape[1], *[1] * (out.ndim - 2)] if per_map else list(out.shape)
                elements = torch.Size(shape[1:]).numel()
                normals = random_stream("normal", seed, draw, ids, elements, site=i).view(shape).to(out.dtype)
                sigma = scale * deviations[layer]
                return out + sigma.view(-1, *[1] * (out.ndim - 2)).to(out.dtype) * normals

            handles.append(modules[layer].register_forward_hook(hook))
        with torch.no_grad():
            logits = model(inputs.clone())
        for handle in handles:
            handle.remove()
        correct.append(int((logits.argmax(1) == labels).sum()))
        losses.append(float(F.cross_entropy(logits, labels)))
    shape = (repeats, len(scales))
    return torch.tensor(correct).view(shape), torch.tensor(losses, dtype=torch.float64).view(shape)


@pytest.mark.parametrize("method", ["auto", "loop"])
@pytest.mark.parametrize("per_map", [False, True])
@pytest.mark.parametrize("common", [False, True])
@pytest.mark.parametrize("name", ["convnet-relu", "convnet-linear", "concatenating"])
def test_the_definition(name, common, per_map, method, seeds_torch):
    model, layers = image_networks()[name]
    inputs, labels = torch.randn(30, 2, 6, 6).double(), torch.randint(0, 5, (30,))
    deviations = {}
    handles = [
        dict(model.named_modules())[layer].register_forward_hook(
            lambda _m, _a, out, layer=layer: deviations.__setitem__(
                layer, out.transpose(0, 1).flatten(1).std(1, correction=0)
            )
        )
        for layer in layers
    ]
    with torch.no_grad():
        labels[::2] = model(inputs.clone()).argmax(1)[::2]
    for handle in handles:
        handle.remove()
    options = {"scales": SCALES, "repeats": 3, "per_map": per_map, "common_random_numbers": common, "seed": 5}
    curve = sd.noise_robustness(model, layers, (inputs, labels), method=method, **options)
    for layer in layers:
        torch.testing.assert_close(curve.deviations[layer], deviations[layer], rtol=1e-12, atol=1e-12)
    correct, loss = by_hooks(model, layers, inputs, labels, curve.deviations, SCALES, 3, 5, per_map, common)
    assert torch.equal(curve.correct, correct)
    torch.testing.assert_close(curve.loss, loss, rtol=1e-9, atol=1e-9)
    assert (curve.correct[:, 1:].sum(0).diff() < 0).any()  # it hurts


def test_deviations_come_from_the_data_that_is_named():
    network = ZOO["convnet-bn"]
    model, (inputs, _) = build(network)
    layer = "relu10"
    other = inputs[:5] * 2
    activations = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _m, _a, out: activations.append(out.clone()))
    with torch.no_grad():
        model(other)
    handle.remove()
    expected = activations[0].double().transpose(0, 1).flatten(1).std(1, correction=0)
    given = noisy(network, [layer], sd_data=(other, torch.zeros(5, dtype=torch.long)))
    torch.testing.assert_close(given.deviations[layer], expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(noisy(network, [layer], sd=given.deviations).sums["loss"], given.sums["loss"])
    assert torch.equal(noisy(network, [layer], sd=given.deviations[layer]).sums["loss"], given.sums["loss"])


@pytest.mark.parametrize("common", [False, True])
def test_any_split_gives_the_same_integers(common, monkeypatch):
    network = ZOO["convnet-bn"]
    layers = network.sites[0]
    whole = noisy(network, layers, common_random_numbers=common, outcomes=True)
    for size, working_set in ((1, 1), (5, 2**16), (64, 2**12)):
        for module in ("tiles", "memory"):
            monkeypatch.setattr(f"sdkernels.engine.{module}.WORKING_SET", {"cpu": working_set})
        assert_same(noisy(network, layers, common_random_numbers=common, outcomes=True, batch_size=size), whole)
    model, (inputs, labels) = build(network)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, labels), batch_size=3)
    options = {"scales": SCALES, "repeats": 2, "seed": 3, "metrics": METRICS, "outcomes": True}
    assert_same(sd.noise_robustness(model, layers, loader, common_random_numbers=common, **options), whole)


def test_threads_and_the_global_random_state_do_not_matter(seeds_torch):
    network = ZOO["mlp"]
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    first = noisy(network, network.sites[0])
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(9)
    torch.set_num_threads(3 - min(threads, 2))
    try:
        assert_same(noisy(network, network.sites[0]), first)
    finally:
        torch.set_num_threads(threads)
    assert not torch.equal(noisy(network, network.sites[0], seed=4).sums["loss"], first.sums["loss"])


def test_draws():
    """Runs differ; scales share a draw if they are asked to, so that the smallest differences are smooth."""
    network = ZOO["mlp"]
    close = [1.0, 1.0]
    own = noisy(network, network.sites[0], scales=close).sums["loss"]
    same = noisy(network, network.sites[0], scales=close, common_random_numbers=True).sums["loss"]
    assert len(own.unique()) == 4
    assert torch.equal(same[:, 0], same[:, 1])
    assert same[0, 0] != same[1, 0]
    assert own[0, 0] == pytest.approx(float(same[0, 0]), rel=1e-12)  # the first draw is the first draw


@pytest.mark.parametrize("common", [False, True])
@pytest.mark.parametrize("name", ["mlp", "convnet-bn", "resnet-basic", "gpt"])
def test_float32_and_bfloat16(name, common):
    network = ZOO[name]
    for precision, scales in (("float32", SCALES), ("bfloat16", [0.0, 0.5]))[: 1 if name == "convnet-bn" else 2]:
        options = {"precision": precision, "scales": scales, "common_random_numbers": common, "metrics": "loss"}
        auto, oracle = (noisy(network, network.sites[0], method=m, **options) for m in ("auto", "loop"))
        if precision == "float32":
            assert_same_but_for_rounding(auto, oracle)
        else:
            torch.testing.assert_close(auto.loss, oracle.loss, rtol=0.1, atol=0.05)


def test_what_is_shared_shows_in_the_plan():
    model = mlp(8, (500, 500), 4, seed=0).eval()
    data = torch.ones(9, 8), torch.zeros(9, dtype=torch.long)
    options = {"scales": SCALES, "repeats": 2, "sd": {layer: torch.ones(500) for layer in ("relu1", "relu2")}}
    shared, own = (
        read_plan(sd.noise_robustness(model, ["relu1", "relu2"], data, common_random_numbers=common, **options).plan)
        for common in (True, False)
    )
    assert {name: (shared.modes[name], own.modes[name]) for name in ("fc1", "fc2", "out")} == {
        "fc1": ("shared", "shared"),
        "fc2": ("line", "dense"),
        "out": ("dense", "dense"),
    }
    assert shared.rows["fc2"].work / shared.rows["fc2"].loop_work == (1 + 2) / 8  # intact, and twice for 8
    assert own.rows["fc2"].work / own.rows["fc2"].loop_work == (1 + 8) / 8


def test_what_no_tracer_can_follow():
    name = next(iter(UNTRACEABLE))
    with pytest.warns(sd.SdkernelsWarning, match="runs as a hook loop"):
        curve = noisy(UNTRACEABLE[name], UNTRACEABLE[name].sites[0])
    assert_same(curve, noisy(UNTRACEABLE[name], UNTRACEABLE[name].sites[0], method="loop"))


def test_units_that_never_change_get_no_noise(seeds_torch):
    """A dead unit's deviation is 0."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).double().eval()
    with torch.no_grad():
        model[0].bias[1], model[0].weight[1] = -1.0, 0.0
    data = torch.randn(20, 3).double(), torch.zeros(20, dtype=torch.long)
    curve = sd.noise_robustness(model, "1", data, scales=[1.0], repeats=1)
    assert curve.deviations["1"][1] == 0
    assert (curve.deviations["1"] > 0).any()


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"scales": 0}, ValueError, "scales=0 must be at least 1"),
        ({"scales": [1.0, -0.1]}, ValueError, "finite numbers, at least 0"),
        ({"scales": [float("nan")]}, ValueError, "finite numbers, at least 0"),
        ({"scales": []}, ValueError, r"\[0\]"),
        ({"scales": "many"}, TypeError, "scales must be numbers"),
        ({"repeats": 0}, ValueError, "repeats=0"),
        ({"scale_kind": "sd"}, ValueError, "scale_kind='sd'"),
        ({"sd": torch.ones(3)}, ValueError, "one tensor for 2 layers"),
        ({"sd": {"relu1": torch.ones(9)}}, ValueError, "must name the layers"),
        ({"sd": {"relu1": torch.ones(9), "relu2": torch.ones(7)}}, ValueError, r"'relu2' must be \[8\]"),
        ({"sd": {"relu1": -torch.ones(9), "relu2": torch.ones(8)}}, ValueError, "at least 0 for each unit"),
        ({"sd": torch.ones(3), "sd_data": []}, ValueError, "give one"),
        ({"seed": -1}, ValueError, "seed=-1"),
    ],
    ids=str,
)
def test_refusals(options, error, says):
    with pytest.raises(error, match=says):
        noisy(ZOO["mlp"], ["relu1", "relu2"], **options)


def test_save_plot_and_table(tmp_path):
    curve = noisy(ZOO["mlp"], ["relu1", "relu2"])
    curve.save(tmp_path / "noise.npz")
    assert_same(sd.NoiseCurve.load(tmp_path / "noise.npz"), curve)
    table = curve.to_pandas()
    assert list(table.columns[:4]) == ["run", "scale", "correct", "accuracy"]
    assert table.query("run == 1 and scale == 1.0").accuracy.item() == pytest.approx(float(curve.accuracy[1, 2]))
    axes = curve.plot()
    assert axes.get_xlabel() == "scale of the noise"
