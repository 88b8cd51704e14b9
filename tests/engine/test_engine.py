"""What the engine promises besides its numbers: the model is left alone, what it cannot do is said."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import sdkernels as sd
from sdkernels.engine.graph import UntraceableError, trace
from sdkernels.engine.sites import find_sites
from sdkernels.lab.models import mlp
from tests.engine.compare import assert_same
from tests.engine.networks import ConvNet, Residual, image_networks, with_lively_batch_norm


@pytest.fixture
def images(seeds_torch):
    return torch.randn(12, 2, 6, 6).double(), torch.randint(0, 5, (12,))


@pytest.mark.parametrize("method", ["auto", "loop"])
def test_the_model_is_left_as_it_was(images, method):
    model, layers = image_networks()["residual"]
    hooked = []
    model.conv1.register_forward_hook(lambda *_: hooked.append(1))
    state, before = copy.deepcopy(model.state_dict()), images[0].clone()
    sd.cumulative_ablation(model, layers, images, orders=2, points=3, value="mean", method=method)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == 1
    assert torch.equal(images[0], before)
    assert hooked, "the user's own hooks still fire"


@pytest.mark.parametrize("method", ["auto", "loop"])
def test_hooks_are_removed_when_the_model_raises(images, method, monkeypatch):
    model, _ = image_networks()["convnet-relu"]

    class BrokenError(RuntimeError):
        """The model's own, and so passed on."""

    class Breaks(nn.Module):
        def forward(self, x):
            if len(x) < 12:  # not in the first batch
                raise BrokenError("out of order")
            return x

    model.fc2.register_forward_hook(lambda *_: None)
    broken = nn.Sequential(model, Breaks()).eval()
    data = torch.cat([images[0], images[0][:5]]), torch.cat([images[1], images[1][:5]])
    monkeypatch.setattr(torch.fx.Tracer, "is_leaf_module", lambda *_: True)  # or fx stumbles on the comparison
    with pytest.raises(BrokenError, match="out of order"):
        sd.cumulative_ablation(broken, "0.relu1", data, batch_size=12, value="mean", method=method)
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in broken.modules()) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it wraps
def test_wrappers_are_unwrapped(images):
    model, layers = image_networks()["convnet-relu"]
    expected = sd.cumulative_ablation(model, layers, images, orders=2, points=3)
    for wrapped in (torch.compile(model), nn.DataParallel(model)):
        assert torch.equal(
            sd.cumulative_ablation(wrapped, layers, images, orders=2, points=3).correct, expected.correct
        )


def test_the_shared_prefix_runs_once_a_batch(images):
    model, _ = image_networks()["convnet-relu"]
    runs = {"conv1": 0}
    for name in runs:
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: runs.__setitem__(name, runs[name] + 1))
    sd.cumulative_ablation(model, "relu1", images, orders=4, points=6, batch_size=6)
    assert runs["conv1"] < 4 * 6  # the data, and the looks before it; not once a configuration


@pytest.mark.parametrize("method", ["auto", "loop"])
def test_a_model_that_mixes_examples_is_refused(images, method):
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = with_lively_batch_norm(ConvNet())

        def forward(self, x):
            logits = self.net(x)
            return logits - logits.mean(0)

    with pytest.raises(ValueError, match="Centred mixes the examples of a batch"):
        sd.cumulative_ablation(Centred().eval(), "net.relu1", images, method=method)


def test_folding_leaves_what_does_not_grow_with_the_batch(seeds_torch):
    class Masked(nn.Module):
        """Its token mask has as many rows as there are tokens: as many as examples, in the probe."""

        def __init__(self):
            super().__init__()
            self.embed, self.act, self.out = nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 5)

        def forward(self, x, scale=None):
            mask = torch.ones_like(x[0])[:, None].expand(-1, x.shape[1]).tril()
            x = self.act(self.embed(x[..., None]))
            x = (mask @ x).mean(1)
            return self.out(x if scale is None else x * scale)

    model = Masked().double().eval()
    data = torch.randn(16, 16).double(), torch.randint(0, 5, (16,))
    folded = sd.unit_importance(model, "act", data, configs_per_batch=4)
    assert "dense" in folded.plan
    assert_same(folded, sd.unit_importance(model, "act", data, method="loop"))


def test_a_size_from_above_the_first_site_is_not_folded(images):
    class Sized(ConvNet):
        def forward(self, x):
            batch = x.size(0)
            x = self.pool(self.relu2(self.conv2(self.relu1(self.conv1(x)))))
            return self.fc2(self.fc1(x.view(batch, -1)))

    model = Sized().double().eval()
    together = sd.unit_importance(model, "relu1", images, configs_per_batch=4)
    assert "rank-one" in together.plan
    assert_same(together, sd.unit_importance(model, "relu1", images, method="loop"))


def test_sizes_between_two_sites_are_those_of_the_rows(seeds_torch):
    class Sized(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.relu1, self.fc2, self.relu2 = nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU()
            self.out = nn.Linear(8, 5)

        def forward(self, x):
            x = self.relu1(self.fc1(x))
            n = x.size(0) * 2 // 2
            return self.out(self.relu2(self.fc2(x)).view(n, 4, 2).softmax(1).view(n, 8))

    model = Sized().double().eval()
    data = torch.randn(30, 6).double(), torch.randint(0, 5, (30,))
    together = sd.unit_importance(model, ["relu1", "relu2"], data)
    assert_same(together, sd.unit_importance(model, ["relu1", "relu2"], data, method="loop"))


def test_tokens_that_become_examples(seeds_torch):
    class Merged(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.relu, self.fc2, self.out = nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 5)

        def forward(self, x):
            x = self.relu(self.fc1(x)).softmax(1).reshape(-1, 6)
            return self.out(self.fc2(x).relu().view(-1, 4, 6).mean(1))

    model = Merged().double().eval()
    data = torch.randn(30, 4, 3).double(), torch.randint(0, 5, (30,))
    curve = sd.cumulative_ablation(model, "relu", data, orders=2, points=5)
    assert_same(curve, sd.cumulative_ablation(model, "relu", data, orders=2, points=5, method="loop"))


class Doubling(nn.Module):
    """Writes into its inputs."""

    def forward(self, x):
        return x.mul_(2)


def test_the_inputs_are_not_written(images):
    model = nn.Sequential(Doubling(), with_lively_batch_norm(ConvNet())).eval()
    before = images[0].clone()
    options = {"orders": 2, "points": 4, "value": "mean"}
    curves = [sd.cumulative_ablation(model, "1.relu1", images, method=m, **options) for m in ("auto", "loop")]
    assert torch.equal(images[0], before)
    assert torch.equal(curves[0].correct, curves[1].correct)
    torch.testing.assert_close(curves[0].loss, curves[1].loss, rtol=1e-10, atol=0)


def test_in_place_writes_to_what_is_read_later_are_not_traced(images):
    class Overwrites(Residual):
        def forward(self, x):
            skip = self.relu(self.conv1(x))
            other = self.conv2(skip)
            skip.add_(1)
            return self.out((skip + other).mean((2, 3)))

    model = Overwrites().double().eval()
    sites, logits = find_sites(model, "conv2", images[0])
    with pytest.raises(UntraceableError, match="writes in place"):
        trace(model, sites, images[0], logits)
    with pytest.warns(sd.SdkernelsWarning, match="hook loop"):
        sd.cumulative_ablation(model, "conv2", images, orders=1, points=3)


def test_a_graph_that_computes_something_else_is_not_used(images):
    class Counts(ConvNet):
        calls = 0

        def forward(self, x):
            Counts.calls += 1
            return super().forward(x) + Counts.calls  # another function at every call

    model = Counts().double().eval()
    sites, logits = find_sites(model, "relu1", images[0])
    with pytest.raises(UntraceableError, match="gives other logits"):
        trace(model, sites, images[0], logits)


def test_says_when_a_layer_does_not_reach_the_logits(images):
    class Aside(ConvNet):
        def forward(self, x):
            self.conv1(x)
            return super().forward(x[:, :2] * 1)

    model = Aside().double().eval()
    with pytest.warns(sd.SdkernelsWarning, match=r"do not depend on layers \['conv1@0'\]"):
        curve = sd.cumulative_ablation(model, "conv1@0", images, orders=2, points=3)
    assert (curve.correct == curve.correct[0, 0]).all()


@pytest.mark.parametrize("method", ["auto", "loop"])
def test_says_when_ablation_changes_nothing(seeds_torch, method):
    model = mlp(4, (6,), 3, seed=0).eval()
    model.fc1.weight.data.zero_()
    model.fc1.bias.data.fill_(-1)  # every unit is dead
    data = torch.randn(9, 4), torch.randint(0, 3, (9,))
    with pytest.warns(sd.SdkernelsWarning, match=r"\['relu1'\] did not change the loss"):
        sd.cumulative_ablation(model, "relu1", data, method=method)


def test_a_dataset_is_read_without_the_global_random_state():
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(9, 4, generator=generator), torch.zeros(9, dtype=torch.long))
    sd.cumulative_ablation(mlp(4, (5,), 3, seed=0).eval(), "relu1", data)  # conftest looks at the state


def test_orders_are_random_by_seed_and_nested_in_number(seeds_torch):
    model = mlp(4, (30,), 3, seed=0).eval()
    data = torch.randn(9, 4), torch.randint(0, 3, (9,))
    few, many = (sd.cumulative_ablation(model, "relu1", data, orders=n, seed=1) for n in (2, 5))
    other = sd.cumulative_ablation(model, "relu1", data, orders=2, seed=2)
    assert torch.equal(few.orders, many.orders[:2])
    assert torch.equal(few.correct, many.correct[:2])
    assert not torch.equal(few.orders, other.orders)


def test_orders_by_score(seeds_torch):
    model = mlp(4, (5,), 3, seed=0).eval()
    data = torch.randn(9, 4), torch.randint(0, 3, (9,))
    score = torch.tensor([0.3, 0.1, 0.1, 0.9, -1.0])
    up = sd.cumulative_ablation(model, "relu1", data, orders=(score, "ascending"))
    down = sd.cumulative_ablation(model, "relu1", data, orders=(score, "descending"))
    assert up.orders.tolist() == [[4, 1, 2, 0, 3]]
    assert down.orders.tolist() == [[3, 0, 1, 2, 4]]


def test_points(seeds_torch):
    model = mlp(4, (10,), 3, seed=0).eval()
    data = torch.randn(9, 4), torch.randint(0, 3, (9,))
    expected = {3: [0, 5, 10], 33: list(range(11)), "all": list(range(11)), (2, 7): [2, 7]}
    for points, counts in expected.items():
        assert sd.cumulative_ablation(model, "relu1", data, points=points).points.tolist() == counts


def test_the_plan_counts_the_work(seeds_torch):
    model = mlp(8, (10, 10), 4, seed=0).eval()
    data = torch.randn(9, 8), torch.randint(0, 4, (9,))
    plan = sd.cumulative_ablation(model, ["relu1", "relu2"], data, orders=2, points=[0, 10, 20]).plan
    rows = {line.split()[0]: line.split()[1:] for line in plan.splitlines()}
    assert rows["fc1"][0] == rows["relu1"][0] == "shared"
    assert rows["fc2"] == ["nested", f"{3 * 200 / 1e6:.3f}", f"{6 * 200 / 1e6:.3f}"]
    assert rows["out"][0] == "compact"


def test_an_error_of_the_data_stands_alone(images):
    """Not as one that came up while another, of the engine's own, was handled."""
    model, layers = image_networks()["convnet-relu"]
    images[1][5] = 9
    with pytest.raises(ValueError, match="label 9 of example 5") as raised:
        sd.cumulative_ablation(model, layers, images)
    assert raised.value.__context__ is None


def test_progress_bar_ends_full(seeds_torch, capsys):
    model = mlp(8, (10, 10), 4, seed=0).eval()
    data = torch.randn(9, 8), torch.randint(0, 4, (9,))
    for layers in ("relu1", "fc1"):
        sd.cumulative_ablation(model, layers, data, orders=2, points=5, show_progress=True)
        assert "100%" in capsys.readouterr().err.splitlines()[-1]
