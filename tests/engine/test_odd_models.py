"""Models that do odd things: each runs right, or is refused by name; none is quietly wrong."""

import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sdkernels as sd
from sdkernels.engine.graph import UntraceableError, trace
from sdkernels.engine.sites import find_sites
from tests.engine.compare import assert_same
from tests.fuzz import calls


class Net(nn.Module):
    """Two linear layers with something of a subclass's own between and after."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.relu, self.fc2 = nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.fc2(self.between(self.relu(self.fc1(x)))))

    def between(self, x: Tensor) -> Tensor:
        return x

    def after(self, x: Tensor) -> Tensor:
        return x


class EluOfItsOwn(Net):
    def between(self, x):
        return F.elu(x - 0.5, 0.3)


class ViewedTail(Net):
    def after(self, x):
        return F.softmax(x.view(-1, 5, 1), 1).view(-1, 5)


class Autocast(Net):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x).double()


class Optional(Net):
    def forward(self, x, scale=None, *, shift=0.0):
        x = super().forward(x)
        return (x if scale is None else x * scale) + shift


class Twice(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


class OddSubclass(Net):
    def __init__(self):
        super().__init__()
        self.fc2 = Twice(8, 5)


def replaced_forward(name):
    def make():
        model = Net()
        module = model.get_submodule(name)
        inner = module.forward
        module.forward = lambda x: inner(x) + 1  # as offloading tools do
        return model

    return make


def hooked(name):
    def make():
        model = Net()
        model.get_submodule(name).register_forward_hook(lambda _m, _a, output: output * 1.5)
        return model

    return make


class OnlyOnTheRight(Net):
    """Hooked after the site, so that what the hook does lies within the chain."""

    def __init__(self):
        super().__init__()
        self.relu2 = nn.ReLU()
        self.relu2.register_forward_hook(lambda _m, _a, output: output + 0.25)

    def between(self, x):
        return self.relu2(x - 0.1)


MODELS = {
    "elu": EluOfItsOwn,
    "viewed-tail": ViewedTail,
    "optional-arguments": Optional,
    "subclass": OddSubclass,
    "hooked-linear": hooked("fc2"),
    "hooked-pointwise": OnlyOnTheRight,
    "replaced-linear": replaced_forward("fc2"),
    "replaced-relu": replaced_forward("relu"),
}


@pytest.fixture
def data(seeds_torch):
    return torch.randn(40, 6).double(), torch.randint(0, 5, (40,))


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("layers", ["fc1", "relu", ["fc1", "relu"]], ids=str)
def test_auto_equals_loop(data, name, layers):
    model = MODELS[name]().double().eval()
    options = {"orders": 2, "points": 5, "value": 0.3}
    auto = sd.cumulative_ablation(model, layers, data, **options)
    assert auto.method == "auto"
    assert_same(auto, sd.cumulative_ablation(model, layers, data, method="loop", **options))


def test_hooks_on_every_module(data):
    model = Net().double().eval()
    handle = nn.modules.module.register_module_forward_hook(
        lambda m, _a, output: output * 1.1 if isinstance(m, nn.Linear) else None
    )
    try:
        auto = sd.cumulative_ablation(model, "relu", data, orders=2, points=5)
        assert_same(auto, sd.cumulative_ablation(model, "relu", data, orders=2, points=5, method="loop"))
    finally:
        handle.remove()


def test_autocast_within_the_model(data):
    model = Autocast().eval()
    inputs = data[0].float(), data[1]
    auto = sd.cumulative_ablation(model, "relu", inputs, orders=2, points=5)  # fx does not see autocast, export does
    assert "dense" in auto.plan
    assert_same(auto, sd.cumulative_ablation(model, "relu", inputs, orders=2, points=5, method="loop"))


def test_autocast_around_the_call_changes_nothing(data):
    model = Net().eval()
    inputs = data[0].float(), data[1]
    expected = sd.cumulative_ablation(model, "relu", inputs, orders=2, points=5)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(sd.cumulative_ablation(model, "relu", inputs, orders=2, points=5), expected)


def test_half_precision_runs_dense_and_equals_the_loop(data):
    model = Net().bfloat16().eval()
    inputs = data[0].bfloat16(), data[1]
    auto = sd.cumulative_ablation(model, "relu", inputs, orders=2, points=5)
    assert "would lose digits" in auto.plan
    assert_same(auto, sd.cumulative_ablation(model, "relu", inputs, orders=2, points=5, method="loop"))


def test_a_site_with_transposed_memory(data):
    class Transposing(Net):
        def forward(self, x):
            x = self.relu(self.fc1(x).view(-1, 4, 2).transpose(1, 2))
            return self.fc2(x.transpose(1, 2).view(-1, 8))

    model = Transposing().double().eval()
    auto = sd.cumulative_ablation(model, "relu", data, orders=2, points=5)
    assert_same(auto, sd.cumulative_ablation(model, "relu", data, orders=2, points=5, method="loop"))


def test_in_place_writes_through_a_view_are_not_traced(data):
    class Views(Net):
        def forward(self, x):
            h = self.fc1(x)
            early = h[:, :] + self.relu(h)
            late = h.flatten(1).relu_()
            return self.fc2(early + late)

    model = Views().double().eval()
    sites, logits = find_sites(model, "relu", data[0])
    with pytest.raises(UntraceableError, match="writes in place"):
        trace(model, sites, data[0], logits)
    with pytest.warns(sd.SdkernelsWarning, match="hook loop"):
        auto = sd.cumulative_ablation(model, "relu", data, orders=2, points=5)
    assert_same(auto, sd.cumulative_ablation(model, "relu", data, orders=2, points=5, method="loop"))


@pytest.mark.parametrize("method", ["auto", "loop"])
def test_a_model_that_reads_the_examples_before_is_refused(data, method):
    class Recurrent(Net):
        """The classic mistake: examples taken for time steps."""

        def __init__(self):
            super().__init__()
            self.rnn = nn.RNN(6, 6)

        def forward(self, x):
            return super().forward(self.rnn(x)[0])

    with pytest.raises(ValueError, match="Recurrent mixes the examples of a batch"):
        sd.cumulative_ablation(Recurrent().double().eval(), "relu", data, method=method)


def test_a_model_that_draws_is_refused_as_such(data):
    class Drawing(Net):
        def between(self, x):
            return F.dropout(x)

    with pytest.raises(ValueError, match="Drawing gives other logits at every call"):
        sd.cumulative_ablation(Drawing().double().eval(), "relu", data)


def test_tracing_leaves_nothing_in_the_model(data):
    class Remembers(Net):
        def between(self, x):
            self.features = x
            return x

    model = Remembers().double().eval()
    sd.cumulative_ablation(model, "relu", data, orders=1, points=3)
    assert type(model.features) is Tensor
    pickle.dumps(model.state_dict())
    seen = []
    outer = nn.Sequential(nn.Sequential(nn.Linear(6, 8), nn.ReLU()), nn.Linear(8, 5)).double().eval()
    outer[0].register_forward_hook(lambda _m, _a, output: seen.append(type(output)))
    with pytest.warns(sd.SdkernelsWarning, match="has hooks"):
        sd.cumulative_ablation(outer, "0.1", data, orders=1, points=3)
    assert set(seen) == {Tensor}


def test_a_compiled_model_runs_as_a_loop(data):
    model = Net().double().eval()
    expected = sd.cumulative_ablation(model, "relu", data, orders=1, points=3)
    model.compile(backend="eager")
    assert_same(sd.cumulative_ablation(model, "relu", data, orders=1, points=3, method="loop"), expected)


def test_texts_of_several_lengths(seeds_torch):
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.net = nn.Embedding(20, 6), Net()

        def forward(self, x):
            return self.net(self.words(x).mean(1))

    model = Bag().double().eval()
    batches = [(torch.randint(0, 20, (5, n)), torch.randint(0, 5, (5,))) for n in (3, 8, 4)]
    auto = sd.cumulative_ablation(model, "net.relu", batches, orders=2, points=5)
    assert "nested" in auto.plan
    assert_same(auto, sd.cumulative_ablation(model, "net.relu", batches, orders=2, points=5, method="loop"))


@pytest.mark.parametrize(
    "call",
    [
        sd.unit_importance,
        partial(sd.ablate, units=[[0], [1, 2]]),
        partial(sd.pair_importance, pairs=[[0, 1], [2, 5]]),
        partial(sd.noise_robustness, scales=[0.5], repeats=2),
        partial(sd.ablate, units=[[0], [1, 2]], within=1.0),
    ],
    ids=["units", "sets", "pairs", "noise", "ranges"],
)
def test_positions_of_texts_of_several_lengths(seeds_torch, call):
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.fc, self.relu, self.out = nn.Embedding(20, 6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)

        def forward(self, x):
            return self.out(self.relu(self.fc(self.words(x))).mean(1))

    model = Words().double().eval()
    batches = [(torch.randint(0, 20, (5, n)), torch.randint(0, 5, (5,))) for n in (3, 8, 4)]
    auto = call(model, "relu", batches)
    assert "no graph" not in auto.plan
    assert_same(auto, call(model, "relu", batches, method="loop"))


@pytest.mark.parametrize("mask", [float("-inf"), -1e9])
def test_masked_logits_do_not_make_everything_ambiguous(data, mask):
    class Masked(Net):
        def after(self, x):
            return x.masked_fill(torch.arange(5) == 4, mask)

    inputs = data[0], data[1] % 4
    for method in ("auto", "loop"):
        curve = sd.cumulative_ablation(Masked().double().eval(), "relu", inputs, orders=1, points=3, method=method)
        assert curve.ambiguous.sum() == 0


@pytest.mark.parametrize("method", ["auto", "loop"])
def test_nearly_equal_logits_are_ambiguous(data, method):
    class NearlyTied(Net):
        def after(self, x):
            return torch.stack([x[:, 0], x[:, 0] + 1e-7 * x[:, 0].abs(), x[:, 0] - 1], 1)

    inputs = data[0].float(), data[1] % 3
    curve = sd.cumulative_ablation(NearlyTied().eval(), "relu", inputs, orders=1, points=3, method=method)
    assert (curve.ambiguous == 40).all()


@pytest.mark.parametrize("method", ["auto", "loop"])
def test_metrics_may_view_and_write_their_logits(data, method):
    def careless(logits, labels):
        score = logits.view(-1, 5).gather(1, labels[:, None]).squeeze(1).clone()
        logits.view(-1).zero_()
        return score

    def total(logits, labels):
        return logits.mean()

    model = Net().double().eval()
    curve = sd.cumulative_ablation(model, "relu", data, metrics=[careless, "loss"], method=method)
    assert_same(curve, sd.cumulative_ablation(model, "relu", data, metrics=[careless, "loss"], method="loop"))
    assert torch.equal(curve.loss, sd.cumulative_ablation(model, "relu", data, metrics="loss", method=method).loss)
    with pytest.raises(ValueError, match=r"'total' gave \[\]"):
        sd.cumulative_ablation(model, "relu", data, metrics=total, method=method)


def test_units_after_a_convolution_in_one_dimension(data):
    model = (
        nn.Sequential(
            *(nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 4, 2), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5))
        )
        .double()
        .eval()
    )
    assert sd.cumulative_ablation(model, ["1", "2"], data).unit_counts == (4, 4)
    with pytest.raises(ValueError, match=r"layer '3' gives .*\[8, 4, 2\] in a model with 1-d convolutions.*unit_dim"):
        sd.cumulative_ablation(model, "3", data)
    assert sd.cumulative_ablation(model, "3", data, unit_dim={"3": 1}).unit_counts == (4,)
    assert sd.cumulative_ablation(model, "3", data, unit_dim=-1).unit_counts == (2,)


def test_nan_among_the_first_examples_is_named(data):
    data[0][2, 0] = float("nan")
    for method in ("auto", "loop"):
        with pytest.raises(ValueError, match=r"layer 'relu': .* not finite .*the first in example 2"):
            sd.cumulative_ablation(Net().double().eval(), "relu", data, method=method)


def test_a_layer_that_overflows_is_named_and_no_graph_is_blamed():
    """Another order of the same sums overflows elsewhere."""
    x, labels = calls.data()
    with pytest.raises(ValueError, match=r"layer '1': .* not finite"):
        sd.ablate_directions(calls.network(), ["1", "3"], (x * 1e38, labels), directions="random")


def test_means_that_are_not_finite_are_named(data):
    other = torch.full((9, 6), float("nan")).double(), torch.zeros(9, dtype=torch.long)
    with pytest.raises(ValueError, match="layer 'relu': 72 of 72 activations of a batch are not finite, so means"):
        sd.cumulative_ablation(Net().double().eval(), "relu", data, value="mean", value_data=other)


def test_a_loader_leaves_the_global_random_state_as_it_was(data):
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), shuffle=True, batch_size=8)
    model = Net().double().eval()
    before = torch.get_rng_state()
    sd.cumulative_ablation(model, "relu", loader)
    assert torch.equal(before, torch.get_rng_state())
