"""Models that torch.fx cannot follow and torch.export can: as fast as others, equal to the loop, left as they were."""

import dataclasses
import warnings
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sdkernels as sd
from sdkernels.engine.exported import trace_exported
from sdkernels.engine.graph import UntraceableError, trace
from sdkernels.engine.sites import find_sites
from tests.engine.compare import assert_same, left_as_they_were
from tests.engine.networks import image_networks, with_lively_batch_norm

CURVE = {"orders": 2, "points": 5, "value": 0.3}


class Net(nn.Module):
    """A convolution, batch norm, an in-place ReLU, a residual sum, pooling and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(inplace=True)
        self.conv2, self.relu2 = nn.Conv2d(5, 5, 3, padding="same", bias=False), nn.ReLU()
        self.fc1, self.relu3, self.fc2 = nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.conv1(x)))
        y = self.conv2(x)
        y += x
        return self.tail(F.max_pool2d(self.relu2(y), 2))

    def tail(self, x: Tensor) -> Tensor:
        return self.fc2(self.relu3(self.fc1(x.mean((2, 3)))))


class BranchesOnShape(Net):
    def forward(self, x):
        if x.shape[-1] != 6 or x.shape[0] < 1:
            raise ValueError("wrong size")
        return super().forward(x)


class UsesLen(Net):
    def tail(self, x):
        assert len(x) > 0, "no examples"
        return super().tail(x.view(len(x), 5, -1)[..., None])


class ChecksTypes(Net):
    def forward(self, x):
        if not isinstance(x, Tensor) or x.dim() != 4:
            raise TypeError("not images")
        return super().forward(x)

    def tail(self, x):
        return super().tail(torch.stack(list(x.chunk(int(x.shape[2]), 2))).sum(0).div(3))


class TakesKeywords(Net):
    def forward(self, x, **options):
        scales = {f"scale{x.shape[1]}": 2.0} | options
        return super().forward(x) * scales["scale2"]


@dataclasses.dataclass
class Features:
    """What a stage hands on."""

    maps: Tensor
    extra: dict[str, Tensor]


class HandsOnObjects(Net):
    def tail(self, x):
        if x.size(2) not in (2, 3):
            raise ValueError("wrong size")
        stage = Features(x, {"pooled": F.adaptive_avg_pool2d(x, 1)})
        return super().tail(stage.maps + stage.extra["pooled"])


class LoopsOverSizes(Net):
    def tail(self, x):
        total = x[:, :, 0]
        for row in range(1, x.shape[2]):
            total = total + x[:, :, row] * (row + 1)
        return super().tail(total[..., None])


class HoldsTensors(Net):
    """Tensors that are no buffers, and some made in passing."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.rand(5, 1, 1).double()

    def tail(self, x):
        if x.shape[1] != 5:
            raise ValueError("wrong size")
        return super().tail(x * self.scale + torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).view(5, 1, 1).double())


class Attends(Net):
    """The maps' positions as tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(5, 1, 8, dropout=0.0, batch_first=True)

    def tail(self, x):
        tokens = self.block(x.flatten(2).transpose(1, 2))
        is_causal = bool(tokens.shape[1] > 1)
        causal = F.scaled_dot_product_attention(tokens, tokens, tokens, is_causal=is_causal)
        return super().tail(causal.transpose(1, 2)[..., None])


class SwitchesGradients(Net):
    def tail(self, x):
        if x.shape[1] != 5:
            raise ValueError("wrong size")
        with torch.set_grad_enabled(not self.training):
            return super().tail(x)


MODELS = [
    *(BranchesOnShape, UsesLen, ChecksTypes, TakesKeywords, HandsOnObjects, LoopsOverSizes, HoldsTensors, Attends),
    SwitchesGradients,
]
FAMILIES = {
    "curves": lambda model, layers, data, **o: sd.cumulative_ablation(model, layers, data, **CURVE, **o),
    "singles": lambda model, layers, data, **o: sd.unit_importance(model, layers, data, value=0.3, **o),
    "sets": lambda model, layers, data, **o: sd.ablate(model, layers, data, units=[[0], [1, 3], range(5)], **o),
}


@pytest.fixture
def data(seeds_torch):
    return torch.randn(30, 2, 6, 6).double(), torch.randint(0, 5, (30,))


def cases() -> list[Any]:
    """Every model with every family and every set of layers; one set always, in turns, and the others are slow."""
    found = []
    for i, make in enumerate(MODELS):
        sets = [["relu1"], ["conv2", "relu3"]] + [["block.linear1"]] * (make is Attends)
        for (j, family), (k, layers) in product(enumerate(FAMILIES), enumerate(sets)):
            marks = [pytest.mark.slow] * ((i + j) % len(sets) != k)
            found.append(
                pytest.param(make, family, layers, id=f"{make.__name__}-{family}-{'+'.join(layers)}", marks=marks)
            )
    return found


@pytest.mark.parametrize(("make", "family", "layers"), cases())
def test_auto_equals_loop(data, make, family, layers):
    model = with_lively_batch_norm(make())
    sites, logits = find_sites(model, ["relu1"], data[0])
    with pytest.raises(UntraceableError):
        trace(model, sites, data[0], logits)
    with left_as_they_were(model, data[0]):
        auto = FAMILIES[family](model, layers, data, batch_size=7)
    assert auto.method == "auto"
    assert "shared" in auto.plan
    assert "loop: the whole model" not in auto.plan
    assert_same(auto, FAMILIES[family](model, layers, data, method="loop"))


@pytest.mark.parametrize("make", [BranchesOnShape, UsesLen, HandsOnObjects], ids=lambda m: m.__name__)
def test_runs_by_the_fast_modes(data, make):
    model = with_lively_batch_norm(make())
    curve = sd.cumulative_ablation(model, ["relu1", "relu3"], data, **CURVE).plan
    assert "nested" in curve
    assert "compact" in curve
    singles = sd.unit_importance(model, ["bn1", "relu3"], data, configs_per_batch=3).plan
    assert "one channel" in singles
    assert "rank-one" in singles


@pytest.mark.parametrize("name", list(image_networks()))
def test_gives_the_plans_of_fx(data, name, monkeypatch):
    model, layers = image_networks()[name]

    def modes(family):
        rows = FAMILIES[family](model, layers, data).plan.splitlines()
        return [mode for row in rows for mode in ("nested", "compact", "rank-one", "one channel") if f"  {mode}" in row]

    expected = {family: modes(family) for family in ("curves", "singles")}
    monkeypatch.setattr("sdkernels.engine.exported.trace", trace_exported)
    assert {family: modes(family) for family in ("curves", "singles")} == expected


@pytest.mark.parametrize("length", [1, 4])
def test_tokens(seeds_torch, length):
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.out = nn.Embedding(20, 6), nn.Linear(6, 5)
            self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True) for _ in range(2))

        def forward(self, tokens):
            if tokens.dtype != torch.int64 or tokens.shape[1] > 8:
                raise ValueError("no tokens")
            x = self.words(tokens)
            for block in self.blocks:
                x = block(x)
            return self.out(x.mean(1))

    model = Classifier().double().eval()
    data = torch.randint(0, 20, (17, length)), torch.randint(0, 5, (17,))
    for family in (FAMILIES[name] for name in (("curves", "sets") if length > 1 else ("singles",))):
        auto = family(model, "blocks.1.linear1", data, batch_size=5)
        assert "loop: the whole model" not in auto.plan
        assert_same(auto, family(model, "blocks.1.linear1", data, method="loop"))


def test_a_part_of_a_tuple_and_one_of_several_calls(data):
    class Splits(nn.Module):
        def forward(self, x):
            return x.flatten(2).mean(2), x

    class Parts(Net):
        def __init__(self):
            super().__init__()
            self.splits = Splits()

        def tail(self, x):
            if x.shape[1] != 5:
                raise ValueError("wrong size")
            pooled, maps = self.splits(x)
            return super().tail(self.relu1(maps - pooled[..., None, None]))

    model = with_lively_batch_norm(Parts())
    for layers, select in ((["splits"], 0), (["splits"], 1), (["relu1@1", "relu1@0"], None)):
        auto = sd.cumulative_ablation(model, layers, data, select=select, **CURVE)
        assert "shared" in auto.plan
        assert_same(auto, sd.cumulative_ablation(model, layers, data, select=select, method="loop", **CURVE))


@pytest.mark.parametrize("examples", [1, 2, 9])
def test_any_number_of_examples(data, examples):
    model = with_lively_batch_norm(UsesLen())
    few = data[0][:examples], data[1][:examples]
    auto = sd.cumulative_ablation(model, "relu1", few, batch_size=4, **CURVE)
    assert "nested" in auto.plan
    assert_same(auto, sd.cumulative_ablation(model, "relu1", few, method="loop", **CURVE))


def test_autocast_within_the_model(data):
    class Autocast(Net):
        def tail(self, x):
            if x.shape[1] != 5:
                raise ValueError("wrong size")
            with torch.autocast("cpu", torch.bfloat16):
                x = super().tail(x)
            return x.float()

    model = with_lively_batch_norm(Autocast()).float()
    inputs = data[0].float(), data[1]
    for layer in ("relu1", "fc1"):
        auto = sd.cumulative_ablation(model, layer, inputs, **CURVE)
        assert "shared" in auto.plan
        oracle = sd.cumulative_ablation(model, layer, inputs, method="loop", **CURVE)
        torch.testing.assert_close(auto.loss, oracle.loss, rtol=1e-2, atol=1e-2)


class Decides(Net):
    """Control flow that depends on the data."""

    def tail(self, x):
        return super().tail(x if x.sum() > 0 else -x)


class OneSizeAlone(Net):
    """Code for each number of examples."""

    def tail(self, x):
        return super().tail(torch.stack([x[i] for i in range(x.shape[0])]))


class OneIsSpecial(Net):
    """Code for one example, which torch.export never sees."""

    def tail(self, x):
        return super().tail(x[:, :, 1:] if len(x) == 1 else x)


class WritesWhatIsRead(Net):
    def tail(self, x):
        if x.shape[1] != 5:
            raise ValueError("wrong size")
        other = x * 2
        x.view(-1).add_(1)
        return super().tail(x + other)


class Fails(Net):
    def tail(self, x):
        if type(x) is not Tensor:
            raise RuntimeError("not one of mine")
        return super().tail(x)


@pytest.mark.parametrize(
    "make", [Decides, OneSizeAlone, OneIsSpecial, WritesWhatIsRead, Fails], ids=lambda m: m.__name__
)
def test_what_neither_can_follow_runs_as_a_loop_and_says_so_once(data, make, capfd):
    model = with_lively_batch_norm(make())
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        auto = sd.cumulative_ablation(model, "relu2", data, **CURVE)
    (warning,) = caught
    assert warning.category is sd.SdkernelsWarning
    text = str(warning.message)
    assert f"{make.__name__} runs as a hook loop" in text
    assert "with torch.export, " in text
    assert "\n" not in text
    assert len(text) < 600
    assert capfd.readouterr() == ("", "")
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert_same(auto, sd.cumulative_ablation(model, "relu2", data, method="loop", **CURVE))


def test_a_later_shape_that_cannot_be_followed(seeds_torch):
    class LongOnesDecide(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.relu, self.out = nn.Embedding(20, 6), nn.ReLU(), nn.Linear(6, 5)

        def forward(self, tokens):
            x = self.relu(self.words(tokens)).mean(1)
            return self.out(-x if tokens.shape[1] > 4 and x.sum() < 0 else x)

    model = LongOnesDecide().double().eval()
    batches = [(torch.randint(0, 20, (5, n)), torch.randint(0, 5, (5,))) for n in (3, 8, 4)]
    with pytest.warns(sd.SdkernelsWarning, match="runs as a hook loop") as caught:
        auto = sd.cumulative_ablation(model, "relu", batches, **CURVE)
    assert len(caught) == 1
    assert_same(auto, sd.cumulative_ablation(model, "relu", batches, method="loop", **CURVE))


def test_the_model_is_left_as_it_was(data):
    class Remembers(BranchesOnShape):
        def __init__(self):
            super().__init__()
            self.seen, self.last, self.sizes = [], None, {}

        def tail(self, x):
            self.seen.append(x)
            self.last, self.sizes[x.ndim] = x, x
            return super().tail(x)

    model = with_lively_batch_norm(Remembers())
    sites, logits = find_sites(model, ["relu2"], data[0])
    held = [(m, dict(vars(m)), list(m._parameters.items()), list(m._buffers.items())) for m in model.modules()]
    seen, sizes = list(model.seen), dict(model.sizes)
    state, scope = torch.get_rng_state(), set(globals())
    with left_as_they_were(model, data[0]):
        graph = trace_exported(model, sites, data[0], logits.detach())
    for module, attributes, parameters, buffers in held:
        assert list(vars(module)) == list(attributes)
        assert all(vars(module)[name] is value for name, value in attributes.items())
        assert all(a is b for (_, a), (_, b) in zip(module._parameters.items(), parameters, strict=True))
        assert all(a is b for (_, a), (_, b) in zip(module._buffers.items(), buffers, strict=True))
    assert len(model.seen) == len(seen)
    assert all(a is b for a, b in zip(model.seen, seen, strict=True))
    assert model.sizes == sizes
    assert torch.equal(state, torch.get_rng_state())
    assert set(globals()) == scope
    weights = {graph.attribute(n).data_ptr() for n in graph.nodes if n.op == "get_attr"}
    assert weights <= {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}  # no copies


def test_hooks_of_the_users_never_see_tensors_without_data(data):
    model = with_lively_batch_norm(BranchesOnShape())
    seen = []
    model.fc1.register_forward_hook(lambda _m, _a, output: seen.append(type(output)))
    with pytest.warns(sd.SdkernelsWarning, match=r"with torch.export, its hooks, at \['fc1'\]"):
        sd.cumulative_ablation(model, "relu2", data, **CURVE)
    assert set(seen) == {Tensor}
