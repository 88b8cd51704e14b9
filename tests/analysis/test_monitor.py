"""AblationMonitor: training goes on bit for bit as if it had not been watched; areas, stopping, state, refusals."""

import copy
import json
import math
import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

import sdkernels as sd
from sdkernels.analysis import monitor as monitor_module
from sdkernels.analysis.monitor import AblationMonitor

OPTIMIZERS = {
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
}


class Augmented(Dataset):
    """Draws from every global random state, as augmentations do, and from a generator of its own."""

    def __init__(self):
        self.own = np.random.default_rng(0)

    def __len__(self):
        return 24

    def __getitem__(self, index):
        drawn = random.random() + np.random.rand() + self.own.random() + torch.rand(()).item()
        return torch.arange(6).float() * drawn / 6 + index % 3, index % 3


class Net(nn.Module):
    """Dropout, batch norm, a frozen part, and attributes that its forward changes even in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.fc1, self.bn1, self.relu1 = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU()
        self.dropout = nn.Dropout(0.3)
        self.fc2, self.bn2, self.relu2 = nn.Linear(8, 7), nn.BatchNorm1d(7), nn.ReLU()
        self.out = nn.Linear(7, 3)
        self.register_buffer("seen", torch.zeros(()))
        self.calls, self.log = 0, []
        self.bn2.eval()

    def forward(self, x):
        if not isinstance(x, torch.fx.Proxy):
            self.seen += 1
            self.calls += 1
            self.log.append(x.shape)
            self.last = x
        x = self.dropout(self.relu1(self.bn1(self.fc1(x))))
        return self.out(self.relu2(self.bn2(self.fc2(x))))


def train_net(loader, watch=lambda model: None, *, optimizer="momentum", epochs=3):
    """A network, what its training left, and every loss; the monitor looks after each epoch and in its midst."""
    model = Net()
    descent = OPTIMIZERS[optimizer](model.parameters())
    losses = []
    for _ in range(epochs):
        for step, (inputs, labels) in enumerate(loader):
            descent.zero_grad()
            loss = F.cross_entropy(model(inputs), labels)
            loss.backward()
            if step == 1:
                watch(model)  # before the gradients are used
            descent.step()
            losses.append(loss.detach())
        watch(model)
    return model, descent, losses


def everything(model):
    """The state of a network and of the process, as far as training may depend on it; copied."""
    modules = dict(model.named_modules())
    return copy.deepcopy(
        {
            "training": {name: module.training for name, module in modules.items()},
            "parameters": dict(model.named_parameters()),
            "buffers": dict(model.named_buffers()),
            "grads": {name: parameter.grad for name, parameter in model.named_parameters()},
            "hooks": {
                name: {key: list(value) for key, value in vars(module).items() if "hooks" in key}
                for name, module in modules.items()
            },
            "attributes": {name: sorted(vars(module)) for name, module in modules.items()},
            "counters": (getattr(model, "calls", 0), list(getattr(model, "log", []))),
            "random": (torch.get_rng_state(), random.getstate(), np.random.get_state()),
            "modes": (
                torch.is_grad_enabled(),
                torch.is_inference_mode_enabled(),
                torch.is_autocast_enabled("cpu"),
                torch.are_deterministic_algorithms_enabled(),
                torch.backends.cudnn.benchmark,
                torch.backends.cudnn.deterministic,
                torch.backends.cudnn.allow_tf32,
                torch.backends.cuda.matmul.allow_tf32,
                torch.get_float32_matmul_precision(),
                torch.get_default_dtype(),
                torch.get_num_threads(),
            ),
        }
    )


def same(a, b):
    if isinstance(a, (torch.Tensor, np.ndarray)):
        return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def differences(before, after):
    return [key for key in before if not same(before[key], after[key])]


def result(model, descent, losses, loader):
    """What a training gave, and where its random generators stand."""
    generator = loader.generator.get_state() if loader.generator is not None else None
    state = everything(model)
    return state | {"optimizer": descent.state_dict()["state"], "losses": losses, "generator": generator}


def watched_and_not(make_loader, make_data, **how):
    """The same training without and with a monitor."""
    results = []
    for is_watched in (False, True):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        loader = make_loader()
        watch = AblationMonitor(["relu1", "relu2"], make_data(loader), points=5) if is_watched else lambda model: None
        results.append(result(*train_net(loader, watch, **how), loader))
    return results


def shuffling(generator=None):
    return DataLoader(Augmented(), batch_size=6, shuffle=True, generator=generator)


def generated():
    return shuffling(torch.Generator().manual_seed(3))


DATA = {
    "tensors": lambda _loader: (torch.linspace(-1, 1, 120).view(20, 6), torch.arange(20) % 3),
    "a loader of its own": lambda _loader: DataLoader(Augmented(), batch_size=8, shuffle=True),
    "the training loader": lambda loader: loader,
}


@pytest.mark.usefixtures("seeds_torch")
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("make_loader", [shuffling, generated])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_goes_on_as_if_unwatched(optimizer, make_loader, data):
    alone, watched = watched_and_not(make_loader, DATA[data], optimizer=optimizer)
    assert differences(alone, watched) == []
    assert any(grad.any() for grad in alone["grads"].values())


@pytest.mark.usefixtures("seeds_torch")
@pytest.mark.parametrize(
    ("part", "differ"),
    [
        ("_random_states", {"random", "parameters", "losses"}),
        ("_generators", {"generator", "parameters", "losses"}),
        ("_attributes", {"training", "counters", "parameters", "losses"}),
        ("_bits", {"buffers"}),
    ],
)
def test_without_a_part_of_the_restoring_training_changes(monkeypatch, part, differ):
    """So the test above would see it."""
    broken = (lambda _: lambda: None) if part in ("_attributes", "_bits") else lambda *_: iter(())
    monkeypatch.setattr(f"sdkernels.analysis.preserve.{part}", broken)
    alone, watched = watched_and_not(generated, DATA["the training loader"])
    assert differ <= set(differences(alone, watched))


@pytest.mark.usefixtures("seeds_torch")
def test_persistent_workers_go_on_in_the_midst_of_an_epoch():
    inputs, labels = DATA["tensors"](None)
    loader = DataLoader(
        torch.utils.data.TensorDataset(inputs, labels), 4, shuffle=True, num_workers=1, persistent_workers=True
    )
    monitor = AblationMonitor(["relu1", "relu2"], loader, points=3)
    model = Net()
    seen = []
    for step, (batch, _) in enumerate(loader):
        seen.append(batch)
        if step == 1:
            monitor(model)
    assert torch.equal(torch.cat(seen).sort(0).values, inputs.sort(0).values)


def contexts():
    return {
        "plainly": nullcontext(),
        "no_grad": torch.no_grad(),
        "inference": torch.inference_mode(),
        "autocast": torch.autocast("cpu", torch.bfloat16),
    }


@pytest.fixture
def net(seeds_torch):
    model = Net()
    model.fc1.weight.grad = torch.ones_like(model.fc1.weight)  # the others have none
    model.relu2.register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize("context", contexts())
def test_a_check_changes_nothing(net, context):
    monitor = AblationMonitor(["relu1", "relu2"], DATA["tensors"](None), points=5)
    expected = AblationMonitor(["relu1", "relu2"], DATA["tensors"](None), points=5)
    expected.check(net)
    with contexts()[context]:
        before = everything(net)
        curve = monitor.check(net)
        assert differences(before, everything(net)) == []
    assert torch.equal(curve.correct, expected.history[0].curve.correct)
    assert torch.equal(curve.loss, expected.history[0].curve.loss)


@pytest.mark.parametrize(
    "options",
    [{}, {"method": "loop"}, {"precision": "float64"}, {"value": "mean"}, {"batch_size": 7}],
    ids=["auto", "loop", "float64", "mean", "batches"],
)
def test_a_check_measures_the_network_in_evaluation_mode(net, options):
    data = DATA["tensors"](None)
    monitor = AblationMonitor(["relu1", net.relu2], data, points=5, orders=2, seed=4, **options)
    auc = monitor(net)
    (check,) = monitor.history
    expected = sd.cumulative_ablation(net.eval(), ["relu1", "relu2"], data, points=5, orders=2, seed=4, **options)
    assert torch.equal(check.curve.correct, expected.correct)
    assert auc == check.auc == expected.auc().mean()
    assert check.auc_sd == expected.auc().std()
    assert check.seconds > 0


def test_an_exception_leaves_the_network_as_it_was(net):
    def failing(_logits, _labels):
        torch.rand(1)
        raise ArithmeticError("on purpose")

    before = everything(net)
    monitor = AblationMonitor("relu1", DATA["tensors"](None), metrics=("accuracy", failing), metric="failing")
    with pytest.raises(ArithmeticError, match="on purpose"):
        monitor.check(net)
    assert differences(before, everything(net)) == []
    assert monitor.history == []
    with pytest.raises(ValueError, match="no layer 'relu9'"):
        AblationMonitor("relu9", DATA["tensors"](None)).check(net)
    assert differences(before, everything(net)) == []


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")], ids=["DataParallel", "compile"]
)
def test_wrapped_models(net, wrap):
    wrapped = wrap(net)
    before = everything(net)
    auc = AblationMonitor("relu1", DATA["tensors"](None))(wrapped)
    assert auc == AblationMonitor("relu1", DATA["tensors"](None))(net)
    assert differences(before, everything(net)) == []
    assert wrapped.training


@pytest.mark.usefixtures("seeds_torch")
def test_a_train_method_of_the_network_is_not_called():
    class Merging(Net):
        def train(self, mode=True):
            raise NotImplementedError("may merge weights")

    assert AblationMonitor("relu1", DATA["tensors"](None))(Merging()) is not None


@pytest.mark.usefixtures("seeds_torch")
def test_a_network_whose_forward_writes_weights_keeps_them():
    class MaxNorm(nn.Linear):
        def forward(self, x):
            if not isinstance(x, torch.fx.Proxy):
                self.weight.data = torch.renorm(self.weight.data, 2, 0, 0.1)
            return super().forward(x)

    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), MaxNorm(8, 3))
    storage = model[2].weight.data_ptr()
    before = everything(model)
    AblationMonitor("1", DATA["tensors"](None)).check(model)
    assert differences(before, everything(model)) == []
    assert model[2].weight.data_ptr() == storage


def test_every_and_steps(net):
    monitor = AblationMonitor("relu1", DATA["tensors"](None), points=3, every=3)
    monitor.check(net)
    given = [monitor(net) for _ in range(5)] + [monitor(net, step=600)]
    assert [auc is None for auc in given] == [True, True, False, True, True, False]
    assert [check.step for check in monitor.history] == [0, 3, 600]
    assert monitor.calls == 6


def seeing(areas, **options):
    """A monitor that has seen these areas."""
    monitor = AblationMonitor("relu1", DATA["tensors"](None), **options)
    history = [{"step": i, "auc": auc, "auc_sd": 0.1, "seconds": 1.0} for i, auc in enumerate(areas)]
    monitor.load_state_dict({"calls": len(areas), "history": history})
    return monitor


@pytest.mark.parametrize(
    ("areas", "options", "stops", "best"),
    [
        ([], {}, False, None),
        ([0.5, 0.6, 0.7], {}, False, 2),
        ([0.5, 0.7, 0.6, 0.6], {}, False, 1),
        ([0.5, 0.7, 0.6, 0.6, 0.6], {}, True, 1),
        ([0.7, 0.6, 0.695, 0.6, 0.6], {}, False, 0),  # back within min_delta of the best
        ([0.7, 0.695, 0.695, 0.695], {}, False, 0),
        ([0.7, 0.695, 0.695, 0.695], {"min_delta": 0}, True, 0),
        ([0.7, 0.6], {"patience": 1}, True, 0),
        ([0.7, 0.6, 0.7], {"patience": 1}, False, 0),
        ([0.7, 0.7, 0.7], {"patience": 1, "min_delta": 0}, False, 0),
        ([2.0, 1.5, 2.5], {"patience": 1, "metric": "loss"}, True, 1),
        ([2.0, 1.5, 1.0], {"patience": 1, "metric": "loss"}, False, 2),
    ],
)
def test_stopping(areas, options, stops, best):
    monitor = seeing(areas, **options)
    assert monitor.should_stop is stops
    assert monitor.best is (None if best is None else monitor.history[best])


@pytest.mark.parametrize("metric", ["accuracy", "loss", "agreement", "first"])
def test_any_metric_can_be_watched(net, metric):
    def first(logits, _labels):
        return logits[:, 0]

    options = {"metrics": (first,)} if metric == "first" else {}
    monitor = AblationMonitor("relu1", DATA["tensors"](None), metric=metric, **options)
    assert monitor(net) == monitor.history[0].curve.auc(metric).mean()


def test_one_order_has_no_deviation(net):
    monitor = AblationMonitor("relu1", DATA["tensors"](None), orders=1)
    monitor.check(net)
    assert math.isnan(monitor.history[0].auc_sd)
    assert monitor.to_pandas().auc_sd.isna().all()


def test_a_resumed_monitor_goes_on_alike(net):
    whole = AblationMonitor("relu1", DATA["tensors"](None), every=2, points=3)
    first = AblationMonitor("relu1", DATA["tensors"](None), every=2, points=3)
    second = AblationMonitor("relu1", DATA["tensors"](None), every=2, points=3)
    for call in range(7):
        whole(net)
        (first if call < 3 else second)(net)
        if call == 2:
            second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [(check.step, check.auc, check.auc_sd) for check in second.history] == [
        (check.step, check.auc, check.auc_sd) for check in whole.history
    ]
    assert second.history[0].curve is None
    assert second.calls == 7


@pytest.mark.parametrize("state", [{}, {"calls": 1, "history": [{"step": 1}]}, {"calls": "x", "history": []}])
def test_another_state_is_refused(state):
    monitor = seeing([0.5])
    with pytest.raises(ValueError, match="not a state of an AblationMonitor"):
        monitor.load_state_dict(state)
    assert len(monitor.history) == 1


def test_table_and_plot():
    from matplotlib.figure import Figure

    monitor = seeing([0.5, 0.7])
    table = monitor.to_pandas()
    assert list(table) == ["step", "auc", "auc_sd", "seconds"]
    assert table.auc.tolist() == [0.5, 0.7]
    assert len(seeing([]).to_pandas()) == 0
    ax = monitor.plot(Figure().subplots(), label="run")
    (line,) = ax.lines
    assert line.get_ydata().tolist() == [0.5, 0.7]
    assert len(ax.collections) == 1
    assert ax.get_ylabel() == "area under the ablation curve, accuracy"


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"batchsize": 3}, TypeError, "unknown option batchsize; did you mean batch_size?"),
        ({"patient": 3}, TypeError, "unknown option patient; did you mean patience or points?"),
        ({"zzz": 3}, TypeError, "cumulative_ablation has orders, points"),
        ({"every": 0}, ValueError, "every=0 must be a positive int"),
        ({"patience": True}, ValueError, "patience=True must be a positive int"),
        ({"min_delta": -1}, ValueError, "min_delta=-1 must be a finite number"),
        ({"metric": "class_accuracy"}, ValueError, "is a score a class"),
        ({"metric": "los"}, ValueError, "metric='los': choose one of accuracy, loss"),
        ({"metric": "loss", "metrics": "top5"}, ValueError, "would not be measured; metrics= gives accuracy, top5"),
        ({"metric": max}, TypeError, "give a name, and a function by metrics="),
    ],
)
def test_refusals(options, error, says):
    with pytest.raises(error, match=says.replace("?", r"\?")):
        AblationMonitor("relu1", DATA["tensors"](None), **options)


def test_other_refusals(net):
    with pytest.raises(TypeError, match="can be read only once"):
        AblationMonitor("relu1", iter([]))
    with pytest.raises(TypeError, match=r"model is a dict; give a torch\.nn\.Module"):
        AblationMonitor("relu1", DATA["tensors"](None)).check({})


def test_every_option_of_the_function_is_passed_on(monkeypatch, net):
    """Whatever options it has, or will have."""
    seen = {}

    def cumulative_ablation(model, layers, data, *, orders, points, seed, metrics, tolerance=None):
        seen.update(tolerance=tolerance, seed=seed)
        return sd.cumulative_ablation(model, layers, data, orders=orders, points=points, seed=seed, metrics=metrics)

    monkeypatch.setattr(monitor_module, "cumulative_ablation", cumulative_ablation)
    AblationMonitor("relu1", DATA["tensors"](None), tolerance=0.02, seed=5).check(net)
    assert seen == {"tolerance": 0.02, "seed": 5}


def test_a_check_may_read_fewer_examples(seeds_torch):
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).train()
    inputs = torch.randn(2000, 4)
    data = inputs, model(inputs).argmax(1)
    monitor = sd.AblationMonitor("1", data, orders=2, points=5, tolerance=0.05)
    assert monitor(model) == pytest.approx(sd.AblationMonitor("1", data, orders=2, points=5)(model), abs=0.05)
    assert monitor.history[0].curve.used.max() < 2000
    assert model.training
