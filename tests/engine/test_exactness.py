"""``auto`` equals ``loop``: count for count in float64, losses to 1e-10. The loop equals a raw hook loop."""

import ast
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sdkernels as sd
from sdkernels.engine import fused, loop, memory
from sdkernels.lab.models import mlp
from sdkernels.ops import nested_linear_score
from tests.engine.compare import assert_same
from tests.engine.networks import Branching, Encoder, image_networks, raw_hook_counts

METRICS = ("accuracy", "loss", "top5", "class_accuracy", "agreement")
ACTIVATIONS = [
    nn.ReLU,
    lambda: nn.ReLU(inplace=True),
    nn.Tanh,
    nn.Sigmoid,  # sends 1/2 on where it gets 0
    nn.GELU,
    lambda: nn.LeakyReLU(0.1, inplace=True),
    lambda: nn.Sequential(nn.Dropout(0.5), nn.SiLU()),
]


def random_mlp(draw, seed: int) -> tuple[nn.Module, list[str], int]:
    """A random MLP in float64, the names of one to three sites of it, and its input width."""
    depth = draw(st.integers(1, 4))
    widths = [draw(st.integers(1, 9)) for _ in range(depth + 1)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        candidates: list[str] = []
        for fan_in, fan_out in pairwise(widths):
            activation = draw(st.sampled_from(ACTIVATIONS))()
            layers += [nn.Linear(fan_in, fan_out, bias=draw(st.booleans())), activation]
            candidates.append(str(len(layers) - draw(st.sampled_from([1, 1, 2]))))  # after the nonlinearity, or before
        layers.append(nn.Linear(widths[-1], 6))
        layers += draw(st.sampled_from([[], [nn.Softmax(1)], [nn.Tanh()], [nn.Tanh(), nn.Softmax(1)]]))
        model = nn.Sequential(*layers).double().eval()
    sites = draw(st.lists(st.sampled_from(candidates), min_size=1, max_size=3, unique=True))
    return model, sites, widths[0]


@pytest.mark.filterwarnings("ignore::sdkernels.SdkernelsWarning")  # tiny networks are often dead
@settings(max_examples=100)
@given(st.data())
def test_random_mlps(data):
    seed = data.draw(st.integers(0, 10**6))
    model, sites, width = random_mlp(data.draw, seed)
    generator = torch.Generator().manual_seed(seed)
    examples = data.draw(st.integers(1, 40))
    inputs = torch.randn(examples, width, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 6, (examples,), generator=generator)
    options = {
        "orders": data.draw(st.integers(1, 3)),
        "points": data.draw(st.sampled_from(["all", 2, 5, [0], [1]])),
        "value": data.draw(st.sampled_from([0.0, -0.7, "mean", "element_mean"])),
        "metrics": METRICS,
        "seed": seed,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDKERNELS_BACKEND", data.draw(st.sampled_from(["native", "reference"])))
        patch.setattr(memory, "WORKING_SET", {"cpu": data.draw(st.sampled_from([1, 2**12, 2**24]))})
        patch.setattr(memory, "FEWEST", 1)
        auto = sd.cumulative_ablation(
            model, sites, (inputs, labels), batch_size=data.draw(st.integers(1, 50)), **options
        )
    assert "nested" in auto.plan or options["points"] == [1]  # one set of few units runs whole
    assert_same(auto, sd.cumulative_ablation(model, sites, (inputs, labels), method="loop", **options))


@pytest.mark.parametrize("layers", [["1", "3"], ["1", "3", "5"], ["5", "1", "3"]], ids=str)
def test_orders_pooled_over_layers(seeds_torch, layers):
    model = (
        nn.Sequential(
            *(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 10), nn.ReLU(), nn.Linear(10, 4))
        )
        .double()
        .eval()
    )
    data = torch.randn(120, 8).double(), torch.randint(0, 4, (120,))
    options = {"orders": 4, "points": "all", "seed": 3}
    auto = sd.cumulative_ablation(model, layers, data, **options)
    assert "nested" in auto.plan or options["points"] == [1]  # one set of few units runs whole
    assert "compact" in auto.plan
    assert_same(auto, sd.cumulative_ablation(model, layers, data, method="loop", **options))
    assert auto.unit_counts == tuple({"1": 12, "3": 7, "5": 10}[name] for name in layers)
    assert torch.equal(auto.correct[:, 0], auto.baseline_sums["accuracy"].expand(4))
    for order, point in ((0, 5), (2, 11), (3, sum(auto.unit_counts))):
        pooled = torch.zeros(sum(auto.unit_counts), dtype=torch.bool)
        pooled[auto.orders[order, :point]] = True
        counted = raw_hook_counts(model, layers, *data, pooled.split(auto.unit_counts), 0.0)
        assert counted[0] == int(auto.correct[order, point])
        assert counted[1] == pytest.approx(float(auto.sums["loss"][order, point]), rel=1e-12)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_two_layers_run_in_the_fused_kernel(seeds_torch, monkeypatch, backend):
    monkeypatch.setenv("SDKERNELS_BACKEND", backend)
    model = mlp(8, (12, 7), 6, seed=0).double().eval()
    data = torch.randn(120, 8).double(), torch.randint(0, 6, (120,))
    calls = []
    monkeypatch.setattr(
        fused, "nested_linear_score", lambda *a, **options: calls.append(1) or nested_linear_score(*a, **options)
    )
    for layers in (["relu1", "relu2"], ["relu2", "relu1"], ["relu1"]):
        calls.clear()
        options = {"orders": 4, "points": "all", "seed": 3, "value": 0.5}
        auto = sd.cumulative_ablation(model, layers, data, **options)
        assert len(calls) == (4 if backend == "native" else 0)  # one an order
        assert_same(auto, sd.cumulative_ablation(model, layers, data, method="loop", **options))


@pytest.mark.parametrize("value", [0.0, 0.3, "mean", "element_mean"], ids=str)
@pytest.mark.parametrize("name", list(image_networks()))
def test_other_networks(seeds_torch, name, value):
    model, layers = image_networks()[name]
    data = torch.randn(30, 2, 6, 6).double(), torch.randint(0, 5, (30,))
    options = {"orders": 2, "points": 4, "value": value, "metrics": METRICS, "batch_size": 11}
    oracle = sd.cumulative_ablation(model, layers, data, method="loop", **options)
    for configs_per_batch in ("auto", 3):
        auto = sd.cumulative_ablation(model, layers, data, configs_per_batch=configs_per_batch, **options)
        assert "shared" in auto.plan
        assert_same(auto, oracle)


def test_values_as_tensors_and_by_layer(seeds_torch):
    model, _ = image_networks()["convnet-relu"]
    data = torch.randn(20, 2, 6, 6).double(), torch.randint(0, 5, (20,))
    value = {"relu1": torch.randn(5, 6, 6), "relu2": torch.randn(6), "fc1": "mean"}
    options = {"orders": 2, "points": 4, "value": value}
    auto = sd.cumulative_ablation(model, list(value), data, **options)
    assert_same(auto, sd.cumulative_ablation(model, list(value), data, method="loop", **options))
    assert auto.value == "{relu1: tensor [5, 6, 6], relu2: tensor [6], fc1: mean}"


def test_means_over_other_data(seeds_torch):
    model, layers = image_networks()["convnet-relu"]
    data = torch.randn(20, 2, 6, 6).double(), torch.randint(0, 5, (20,))
    other = torch.randn(17, 2, 6, 6).double(), torch.zeros(17, dtype=torch.long)
    with torch.no_grad():
        relu1 = model.relu1(model.bn1(model.conv1(other[0])))
    given = {"relu1": relu1.mean((0, 2, 3)), "relu2": 0.5}
    named = {"relu1": "mean", "relu2": 0.5}
    auto = sd.cumulative_ablation(model, layers, data, value=named, value_data=other, orders=2, points=5)
    assert_same(auto, sd.cumulative_ablation(model, layers, data, value=given, orders=2, points=5))


def test_untraceable_model_runs_as_a_loop_and_says_so(seeds_torch):
    model = Branching().double().eval()
    data = torch.randn(20, 4).double(), torch.randint(0, 5, (20,))
    with pytest.warns(sd.SdkernelsWarning, match=r"Branching runs as a hook loop.*cannot trace"):
        auto = sd.cumulative_ablation(model, "relu", data, orders=2, points=4)
    assert "loop" in auto.plan
    assert_same(auto, sd.cumulative_ablation(model, "relu", data, orders=2, points=4, method="loop"))


def test_a_layer_inside_a_module_of_torch(seeds_torch):
    model = Encoder().double().eval()
    data = torch.randn(20, 2, 6, 6).double(), torch.randint(0, 5, (20,))
    options = {"orders": 2, "points": 4}
    oracle = sd.cumulative_ablation(model, "block.linear1", data, method="loop", **options)
    assert not torch.equal(oracle.loss[:, 0], oracle.loss[:, -1])
    inner = sd.cumulative_ablation(model, "block.linear1", data, **options)
    assert "nested" in inner.plan
    assert_same(inner, oracle)
    whole = sd.cumulative_ablation(model, "block", data, **options)
    assert "nested" in whole.plan
    assert_same(whole, sd.cumulative_ablation(model, "block", data, method="loop", **options))


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_a_loader_of_any_batch_size(seeds_torch, batch):
    model = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 4)).double().eval()
    inputs, labels = torch.randn(50, 5).double(), torch.randint(0, 4, (50,))
    data = TensorDataset(inputs, labels)
    expected = sd.cumulative_ablation(model, "1", (inputs, labels), method="loop")
    assert_same(sd.cumulative_ablation(model, "1", data, batch_size=batch), expected)
    assert_same(sd.cumulative_ablation(model, "1", DataLoader(data, batch_size=batch)), expected)


def test_float32_contract(seeds_torch):
    model = nn.Sequential(nn.Linear(20, 60), nn.ReLU(), nn.Linear(60, 50), nn.ReLU(), nn.Linear(50, 10)).eval()
    data = torch.randn(400, 20), torch.randint(0, 10, (400,))
    auto = sd.cumulative_ablation(model, ["1", "3"], data)
    oracle = sd.cumulative_ablation(model, ["1", "3"], data, method="loop")
    assert auto.precision == "float32"
    assert ((auto.correct - oracle.correct).abs() <= torch.maximum(auto.ambiguous, oracle.ambiguous)).all()
    torch.testing.assert_close(auto.loss, oracle.loss, rtol=1e-5, atol=0)


def test_precision_converts_a_copy(seeds_torch):
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)).eval()
    data = torch.randn(40, 6), torch.randint(0, 4, (40,))
    curve = sd.cumulative_ablation(model, model[1], data, precision="float64")
    assert curve.precision == "float64"
    assert model[0].weight.dtype == torch.float32
    in_double = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)).double().eval()
    in_double.load_state_dict(model.state_dict())
    assert_same(curve, sd.cumulative_ablation(in_double, "1", (data[0].double(), data[1]), method="loop"))


def test_bfloat16_as_asked_for(seeds_torch):
    model = mlp(8, (12, 7), 6, seed=0).eval()
    data = torch.randn(64, 8), torch.randint(0, 6, (64,))
    curve = sd.cumulative_ablation(model, ["relu1", "relu2"], data, orders=2, points=4, precision="bfloat16")
    assert curve.precision == "bfloat16"
    assert next(model.parameters()).dtype == torch.float32
    exact = sd.cumulative_ablation(model, ["relu1", "relu2"], data, orders=2, points=4)
    assert ((curve.correct - exact.correct).abs() <= curve.ambiguous).all()
    assert not torch.equal(curve.loss, exact.loss)


def test_tf32_needs_a_gpu(seeds_torch):
    data = torch.randn(10, 8), torch.randint(0, 6, (10,))
    with pytest.raises(ValueError, match="'tf32' is arithmetic of NVIDIA GPUs; the model is on cpu"):
        sd.cumulative_ablation(mlp(8, (12, 7), 6, seed=0).eval(), "relu1", data, precision="tf32")


def test_ambiguous_counts_ties(seeds_torch):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False)).double().eval()
    data = torch.randn(25, 3).double(), torch.zeros(25, dtype=torch.long)
    for method in ("auto", "loop"):
        curve = sd.cumulative_ablation(model, "1", data, points=[4], orders=1, method=method)
        assert curve.ambiguous.tolist() == [[25]]  # both logits are 0
        assert curve.correct.tolist() == [[25]]  # the lowest index wins, as argmax has it


def test_functions_as_metrics(seeds_torch):
    def margin(logits, labels):
        return logits.gather(1, labels[:, None]).squeeze(1) - logits.mean(1)

    model = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 4)).double().eval()
    data = torch.randn(50, 5).double(), torch.randint(0, 4, (50,))
    auto = sd.cumulative_ablation(model, "1", data, metrics=["loss", margin])
    assert_same(auto, sd.cumulative_ablation(model, "1", data, metrics=["loss", margin], method="loop"))
    assert auto.metric("margin").shape == (10, 10)


def test_the_oracle_imports_nothing_of_the_package():
    tree = ast.parse(Path(loop.__file__).read_text())
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module or "." for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} == {"collections", "typing", "torch"}
