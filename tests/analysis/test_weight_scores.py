"""Scores by weights: against loops over weights, and against weights found by trying what reaches what."""

import math
import re
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sdkernels.analysis.unit_score import UnitScore
from sdkernels.analysis.weight_scores import batch_norm_scale, weight_norm
from sdkernels.engine.sites import find_sites
from tests.analysis.reached import Reached
from tests.analysis.wired import Wired
from tests.engine.networks import with_lively_batch_norm
from tests.engine.zoo import UNTRACEABLE, ZOO, build

NORMS = (1, 1.5, 2, 7, math.inf)


def norm(weights, p):
    """Of a list of numbers, written out."""
    sizes = [abs(float(w.detach())) for w in weights]
    return max(sizes) if p == math.inf else sum(size**p for size in sizes) ** (1 / p)


def assert_norms(found, expected, p):
    """``expected`` lists each unit's weights."""
    expected = torch.tensor([norm(weights, p) for weights in expected], dtype=torch.float64)
    torch.testing.assert_close(found.values, expected, rtol=1e-12, atol=0)


@pytest.fixture
def wired(seeds_torch):
    model = with_lively_batch_norm(Wired())
    return SimpleNamespace(model=model, inputs=torch.randn(14, 2, 11, 11).double())


# Loops over weights.


@pytest.mark.parametrize("p", NORMS)
def test_of_a_perceptron(p, seeds_torch):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double().eval()
    first, _, second, _, third = model
    inputs = torch.randn(6, 3).double()
    found = weight_norm(model, ["1", "3"], inputs, p=p)
    assert isinstance(found, UnitScore)
    assert (found.layers, found.unit_counts, found.dead) == (("1", "3"), (4, 5), None)
    rows = [list(first.weight[u]) for u in range(4)] + [list(second.weight[u]) for u in range(5)]
    assert_norms(found, rows, p)
    columns = [[second.weight[d, u] for d in range(5)] for u in range(4)]
    columns += [[third.weight[d, u] for d in range(2)] for u in range(5)]
    assert_norms(weight_norm(model, ["1", "3"], inputs, p=p, side="outgoing"), columns, p)
    assert_norms(weight_norm(model, "0", inputs, p=p), rows[:4], p)  # the linear map itself
    assert_norms(weight_norm(model, "0", inputs, p=p, side="outgoing"), columns[:4], p)


@pytest.mark.parametrize("p", [1, 2])
def test_of_convolutions(p, wired):
    """Of a convolution, its depthwise reader, a grouped one, and both sides of flatten."""
    m, inputs = wired.model, wired.inputs
    assert_norms(weight_norm(m, "relu1", inputs, p=p), [list(m.stem.weight[c].flatten()) for c in range(4)], p)
    assert_norms(weight_norm(m, "act", inputs, p=p), [list(m.depth.weight[c].flatten()) for c in range(8)], p)
    assert_norms(
        weight_norm(m, "bn2", inputs, p=p, side="outgoing"), [list(m.point.weight[:, c, 0, 0]) for c in range(8)], p
    )
    summed = [[*m.point.weight[c].flatten(), *m.stem.weight[c].flatten()] for c in range(4)]
    assert_norms(weight_norm(m, "act3", inputs, p=p), summed, p)
    joined = [list(m.grouped.weight[c].flatten()) for c in range(6)] + summed
    assert_norms(weight_norm(m, "joined", inputs, p=p), joined, p)
    assert_norms(weight_norm(m, "drop", inputs, p=p), [joined[feature // 4] for feature in range(40)], p)
    read = []
    for c in range(10):
        of_head = [m.head.weight[d, 4 * c + s] for d in range(5) for s in range(4)]
        read.append(of_head + [m.side.weight[d, c, i, j] for d in range(5) for i in range(2) for j in range(2)])
    assert_norms(weight_norm(m, "joined", inputs, p=p, side="outgoing"), read, p)
    of_sum = []  # by the grouped convolution, and as the last four channels that are joined
    for c in range(4):
        group = range(3 * (c // 2), 3 * (c // 2) + 3)
        of_sum.append([w for d in group for w in m.grouped.weight[d, c % 2].flatten()] + read[6 + c])
    assert_norms(weight_norm(m, "act3", inputs, p=p, side="outgoing"), of_sum, p)
    through = [[w for d in (2 * c, 2 * c + 1) for w in m.depth.weight[d].flatten()] + of_sum[c] for c in range(4)]
    assert_norms(weight_norm(m, "relu1", inputs, p=p, side="outgoing"), through, p)


def test_batch_norm_and_biases_do_not_count(wired):
    before = weight_norm(wired.model, ["relu1", "joined"], wired.inputs)
    for module in wired.model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            module.weight.data *= 3
        if getattr(module, "bias", None) is not None:
            module.bias.data += 1
    assert torch.equal(weight_norm(wired.model, ["relu1", "joined"], wired.inputs).values, before.values)


class Functional(nn.Module):
    """Weights that are the model's own, tokens, and a flatten of them; features may be picked in between."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(2, 20))
        self.kernel, self.act, self.features = nn.Parameter(torch.randn(2, 4, 1)), nn.Identity(), 4

    def forward(self, x):  # [N, 5, 3]
        x = self.act(F.linear(x, self.first))
        picked = x if self.features == 4 else x[:, :, : self.features]
        return F.linear(x.flatten(1), self.second) + F.conv1d(picked.transpose(1, 2), self.kernel).sum(2)


def test_of_functions_and_tokens(seeds_torch):
    """Token features after flatten: feature u stands at u, u + 4, u + 8, ..."""
    model, inputs = Functional().double().eval(), torch.randn(6, 5, 3).double()
    assert_norms(weight_norm(model, "act", inputs), [list(model.first[u]) for u in range(4)], 1)
    read = [[*model.second[:, u::4].flatten(), *model.kernel[:, u, 0]] for u in range(4)]
    assert_norms(weight_norm(model, "act", inputs, side="outgoing"), read, 1)


def test_what_picks_channels_is_refused(seeds_torch):
    model, inputs = Functional().double().eval(), torch.randn(6, 5, 3).double()
    model.features, model.kernel = 3, nn.Parameter(model.kernel.detach()[:, :3])
    with pytest.raises(ValueError, match=r"layer 'act': node 'getitem' \(getitem\) reads its units before"):
        weight_norm(model, "act", inputs, side="outgoing")


class Calls(nn.Module):
    """A linear map that is called twice, its results summed or joined in two orders."""

    def __init__(self, join):
        super().__init__()
        self.shared, self.act, self.out, self.join = nn.Linear(3, 3), nn.Identity(), nn.Linear(6, 2), join

    def forward(self, x):
        a, b = self.shared(x), self.shared(torch.tanh(x))
        return self.out(self.act(self.join(a, b)))


def test_a_weight_of_several_calls_counts_once(seeds_torch):
    inputs = torch.randn(4, 3).double()
    model = Calls(lambda a, b: torch.cat([a + b, b], 1)).double().eval()
    rows = [list(model.shared.weight[u % 3]) for u in range(6)]
    assert_norms(weight_norm(model, "act", inputs), rows, 1)
    model = Calls(lambda a, b: torch.cat([a, b], 1) + torch.cat([b, b], 1)).double().eval()
    rows = [list(model.shared.weight[u % 3]) for u in range(6)]
    assert_norms(weight_norm(model, "act", inputs), rows, 1)


class Twice(nn.Module):
    """One linear map reads the units as they are and rectified; or reads them joined with themselves."""

    def __init__(self, joined):
        super().__init__()
        self.fc, self.out, self.joined = nn.Linear(3, 4), nn.Linear(8 if joined else 4, 2), joined

    def forward(self, x):
        x = self.fc(x)
        if self.joined:
            return self.out(torch.cat([F.relu(-x), F.relu(x)], 1))
        return self.out(x) + self.out(F.relu(x))


def test_what_reads_a_unit_twice(seeds_torch):
    inputs = torch.randn(4, 3).double()
    model = Twice(False).double().eval()
    columns = [list(model.out.weight[:, u]) for u in range(4)]
    assert_norms(weight_norm(model, "fc", inputs, side="outgoing", p=2), columns, 2)
    model = Twice(True).double().eval()
    columns = [[*model.out.weight[:, u], *model.out.weight[:, 4 + u]] for u in range(4)]
    assert_norms(weight_norm(model, "fc", inputs, side="outgoing", p=2), columns, 2)


class Swapped(nn.Module):
    """Two linear maps, their results joined in both orders and summed."""

    def __init__(self, left):
        super().__init__()
        self.left, self.right, self.out = nn.Linear(3, left), nn.Linear(3, 2), nn.Linear(left + 2, 2)
        self.act, self.sum = nn.Identity(), nn.Identity()

    def forward(self, x):
        a, b = self.act(self.left(x)), self.right(x)
        return self.out(self.sum(torch.cat([a, b], 1) + torch.cat([b, a], 1)))


def test_sums_of_permuted_channels(seeds_torch):
    """With two units each, unit 0 is the sum of the first of both; with three and two, some are sums of one map's."""
    inputs = torch.randn(4, 3).double()
    model = Swapped(2).double().eval()
    rows = [[*model.left.weight[u % 2], *model.right.weight[u % 2]] for u in range(4)]
    assert_norms(weight_norm(model, "sum", inputs), rows, 1)
    columns = [[*model.out.weight[:, u], *model.out.weight[:, 2 + u]] for u in range(2)]
    assert_norms(weight_norm(model, "act", inputs, side="outgoing"), columns, 1)
    model = Swapped(3).double().eval()
    with pytest.raises(ValueError, match=r"layer 'sum': two ways to node 'act' \(act: Identity\) permute channels"):
        weight_norm(model, "sum", inputs)
    with pytest.raises(ValueError, match=r"layer 'act': two ways to node 'add' \(add\) permute channels differently"):
        weight_norm(model, "act", inputs, side="outgoing")


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_large_p_neither_vanishes_nor_overflows(scale, seeds_torch):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    model[0].weight.data.mul_(scale)
    largest = model[0].weight.detach().abs().amax(1).double()
    torch.testing.assert_close(weight_norm(model, "1", torch.zeros(1, 3), p=1000).values, largest, rtol=2e-3, atol=0)
    model[0].weight.data.zero_()
    assert weight_norm(model, "1", torch.zeros(1, 3), p=3).values.tolist() == [0] * 4


# Weights that are found by trying.

# By network, layer and side: what is in the way.
REFUSED = {
    ("resnext", "relu@3", "outgoing"): "node 'shuffle' (shuffle: ChannelShuffle) reads",
    ("resnext", "shuffle", "incoming"): "node 'shuffle' (shuffle: ChannelShuffle) makes",
    ("resnext", "widen", "outgoing"): "node 'shuffle' (shuffle: ChannelShuffle) reads",
    ("unet", "down2", "outgoing"): "node 'upsample' (upsample: Upsample) reads",
    ("unet", "up2", "incoming"): "node 'up2' (up2: ConvTranspose2d) makes",
    ("unet", "upsample", "incoming"): "node 'upsample' (upsample: Upsample) makes",
    ("groupnorm", "conv1", "outgoing"): "node 'norm1' (norm1: GroupNorm) reads",
    ("groupnorm", "conv3", "outgoing"): "node 'norm3' (norm3: InstanceNorm2d) reads",
    ("groupnorm", "norm1", "incoming"): "node 'norm1' (norm1: GroupNorm) makes",
    ("groupnorm", "norm2", "incoming"): "node 'norm2' (norm2: GroupNorm) makes",
    ("groupnorm", "norm3", "incoming"): "node 'norm3' (norm3: InstanceNorm2d) makes",
    ("groupnorm", "relu@0", "incoming"): "node 'norm1' (norm1: GroupNorm) makes",
    ("groupnorm", "relu@1", "incoming"): "node 'norm2' (norm2: GroupNorm) makes",
    ("odd-convolutions", "relu5", "outgoing"): "node 'transposed' (transposed: ConvTranspose2d) reads",
    ("odd-convolutions", "relu6", "incoming"): "node 'transposed' (transposed: ConvTranspose2d) makes",
    ("padded", "conv1", "outgoing"): "node 'pad_1' (pad: ConstantPad2d) reads",
    ("padded", "conv2", "outgoing"): "node 'pad_2' (pad) reads",
    ("padded", "pad", "incoming"): "node 'pad_1' (pad: ConstantPad2d) makes",
    ("torch-attention", "embed", "outgoing"): "node 'norm1' (norm1: LayerNorm) reads",
    ("torch-attention", "norm1", "incoming"): "node 'norm1' (norm1: LayerNorm) makes",
    ("torch-attention", "norm1", "outgoing"): "node 'attn' (attn: MultiheadAttention) reads",
    ("torch-attention", "norm2", "incoming"): "node 'norm2' (norm2: LayerNorm) makes",
    ("gpt", "block1.mlp", "outgoing"): "node 'block2_norm1' (block2.norm1: LayerNorm) reads",
    ("gpt", "block2", "incoming"): "node 'add' (add) makes",
    ("gpt", "block2", "outgoing"): "node 'norm' (norm: LayerNorm) reads",
    ("gpt", "block2.attn", "outgoing"): "node 'block2_norm2' (block2.norm2: LayerNorm) reads",
    ("gpt", "embed", "incoming"): "node 'embed' (embed: Embedding) makes",
    ("gpt", "embed", "outgoing"): "node 'block1_norm1' (block1.norm1: LayerNorm) reads",
    ("lstm", "embed", "outgoing"): "node 'lstm' (lstm: LSTM) reads",
    ("lstm", "norm", "incoming"): "node 'norm' (norm: LayerNorm) makes",
}
SWEEP = ["mlp", "vgg", "resnet-basic-last", "preactivation", "densenet", "squeeze-excite", "read-twice", "resnext"]
SWEEP += ["unet", "groupnorm", "conv1d", "odd-convolutions", "padded", "torch-attention", "gpt", "lstm"]


@pytest.mark.parametrize("side", ["incoming", "outgoing"])
@pytest.mark.parametrize("name", SWEEP)
def test_as_found_by_trying(name, side):
    network = ZOO[name]
    model, (inputs, _) = build(network)
    for layer in dict.fromkeys(layer for layers in network.sites for layer in layers):
        unit_dim = network.unit_dim.get(layer)
        if (name, layer, side) in REFUSED:
            with pytest.raises(ValueError, match="^layer '" + re.escape(f"{layer}': {REFUSED[name, layer, side]}")):
                weight_norm(model, layer, inputs, side=side, unit_dim=unit_dim)
            continue
        found = weight_norm(model, layer, inputs, side=side, unit_dim=unit_dim, p=2)
        dim = find_sites(model, layer, inputs, unit_dim)[0][0].unit_dim
        expected = getattr(Reached(model, layer, inputs, dim), side)()
        assert expected is not None, layer
        norms = torch.stack([weights.norm() for weights in expected])
        torch.testing.assert_close(found.values, norms, rtol=1e-10, atol=0, msg=lambda text, layer=layer: layer + text)


@pytest.mark.parametrize("gates", [False, True])
@pytest.mark.parametrize("side", ["incoming", "outgoing"])
def test_a_network_of_many_parts_as_found_by_trying(side, gates, wired):
    """A gate multiplies the maps by numbers that linear maps make of them: they make the units too."""
    wired.model.gates = gates
    layers = ["relu1", "bn2", "act", "act3", "joined", "pool", "drop"]
    found = weight_norm(wired.model, layers, wired.inputs, side=side).split()
    for layer in layers:
        expected = getattr(Reached(wired.model, layer, wired.inputs, 1), side)()
        torch.testing.assert_close(found[layer], torch.stack([weights.abs().sum() for weights in expected]))


# What is refused.


class Odd(nn.Module):
    """Units that are the input, or the logits, beside some of a linear map; a constant; an unread layer."""

    def __init__(self):
        super().__init__()
        self.fc, self.act, self.end, self.out = nn.Linear(3, 3), nn.Identity(), nn.Identity(), nn.Linear(6, 2)
        self.shift, self.unread, self.const = (
            nn.Parameter(torch.randn(3)),
            nn.Linear(3, 3),
            nn.Parameter(torch.randn(4, 3)),
        )

    def forward(self, x):
        self.unread(x)
        x = torch.cat([self.act(self.fc(x) + x), self.fc(x) + self.shift], 1)
        return self.end(self.out(x).tanh())


def test_units_of_the_input_or_the_logits(seeds_torch):
    model, inputs = Odd().double().eval(), torch.randn(4, 3).double()
    with pytest.raises(ValueError, match=r"layer 'act': its units are made of the model's input, node 'x'"):
        weight_norm(model, "act", inputs)
    assert_norms(
        weight_norm(model, "act", inputs, side="outgoing"), [list(model.out.weight[:, u]) for u in range(3)], 1
    )
    for layer in ("out", "end"):
        assert_norms(weight_norm(model, layer, inputs), [list(row) for row in model.out.weight], 1)
        with pytest.raises(ValueError, match=rf"layer '{layer}': units reach the logits at node '\w+' .* no weights"):
            weight_norm(model, layer, inputs, side="outgoing")
    with pytest.raises(ValueError, match="the logits do not depend on layer 'unread'"):
        weight_norm(model, "unread", inputs)


def test_a_model_without_a_graph():
    model, (inputs, _) = build(UNTRACEABLE["branching-on-data"])
    with pytest.raises(ValueError, match=r"BranchingOnData has none, because torch\.fx cannot trace it"):
        weight_norm(model, "relu", inputs)


def test_a_graph_by_export(seeds_torch):
    """A loop over the batch's shape, which torch.fx does not follow."""

    class Asserting(nn.Sequential):
        def forward(self, x):
            if x.shape[1] != 3:
                raise ValueError("other inputs")
            return super().forward(x)

    model = Asserting(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Linear(4, 2)).eval()
    with_lively_batch_norm(model)
    inputs = torch.randn(4, 3).double()
    assert_norms(weight_norm(model, "2", inputs), [list(row) for row in model[0].weight], 1)
    assert_norms(weight_norm(model, "2", inputs, side="outgoing"), [list(column) for column in model[3].weight.t()], 1)
    assert torch.equal(batch_norm_scale(model, "2", inputs).values, model[1].weight.detach())


def test_units_in_another_dimension(seeds_torch):
    model = (
        nn.Sequential(nn.Linear(3, 4), nn.Identity(), nn.Linear(4, 2), nn.Flatten(), nn.Linear(10, 2)).double().eval()
    )
    inputs = torch.randn(4, 5, 3).double()
    with pytest.raises(
        ValueError, match=r"units of layer '1' are dimension 1, but the channels of node '_1' .* are dim"
    ):
        weight_norm(model, "1", inputs, unit_dim=1)
    with pytest.raises(ValueError, match=r"layer '1': node '_2' \(2: Linear\) reads its units"):
        weight_norm(model, "1", inputs, unit_dim=1, side="outgoing")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": 3}, TypeError, "model is a int"),
        ({"layers": "relu9"}, ValueError, "no layer 'relu9'"),
        ({"side": "both"}, ValueError, "side='both': choose 'incoming' or 'outgoing'"),
        ({"p": 0.5}, ValueError, "p=0.5 must be at least 1"),
        ({"p": math.nan}, ValueError, "p=nan must be"),
        ({"p": "1"}, TypeError, "p is a str; give a number"),
        ({"data": torch.zeros(0, 2, 11, 11).double()}, ValueError, "data is empty"),
        ({"data": torch.zeros(4, 2, 11, 11)}, TypeError, "float32 inputs but the model is torch.float64"),
    ],
)
def test_arguments_that_are_refused(change, error, message, wired):
    with pytest.raises(error, match=message):
        weight_norm(**({"model": wired.model, "layers": "relu1", "data": wired.inputs} | change))


def test_train_mode_and_broken_weights(wired):
    wired.model.bn1.train()
    with pytest.raises(ValueError, match="train mode"):
        weight_norm(wired.model, "relu1", wired.inputs)
    wired.model.eval()
    wired.model.stem.weight.data[2, 0, 1, 1] = math.nan
    with pytest.raises(ValueError, match="layer 'relu1': weights of unit 2 are not finite"):
        weight_norm(wired.model, "relu1", wired.inputs)


def test_any_kind_of_data_and_labels_that_nobody_reads(wired):
    expected = weight_norm(wired.model, "joined", wired.inputs).values
    labels = torch.full((14,), 99)
    for data in ((wired.inputs, labels), DataLoader(TensorDataset(wired.inputs, labels), batch_size=2)):
        assert torch.equal(weight_norm(wired.model, wired.model.joined, data).values, expected)
