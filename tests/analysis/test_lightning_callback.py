"""AblationMonitor in Lightning: what is logged, when it stops, what a checkpoint keeps."""

import pickle
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sdkernels.analysis.monitor import AblationMonitor

pytestmark = [  # Lightning's own affairs
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
]

LAYERS = ["net.relu1", "net.relu2"]


def examples():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 6, generator=generator)
    return inputs, inputs[:, :3].argmax(1)


def monitoring(**options):
    return AblationMonitor(LAYERS, examples(), **{"points": 5, **options})


def falling(*areas, **options):
    """A monitor that has seen areas which networks do not reach any more."""
    monitor = monitoring(**options)
    history = [{"step": 0, "auc": auc, "auc_sd": 0.0, "seconds": 0.0} for auc in areas]
    monitor.load_state_dict({"calls": 0, "history": history})
    return monitor


@pytest.fixture(scope="module")
def lightning():
    return pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")


@pytest.fixture
def run(lightning, tmp_path, seeds_torch):
    """Train a small network for some epochs with callbacks; gives the trainer, the network, and what was logged."""
    from lightning.pytorch.callbacks import Callback

    class Classifier(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential()
            self.net.fc1, self.net.bn1, self.net.relu1 = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU()
            self.net.dropout = nn.Dropout(0.3)
            self.net.fc2, self.net.relu2, self.net.out = nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3)

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, _index):
            return F.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    class Logged(Callback):
        """What others find at the end of each epoch."""

        def __init__(self):
            self.areas = []

        def on_train_epoch_end(self, trainer, _module):
            value = trainer.callback_metrics.get("ablation_auc")
            self.areas.append(None if value is None else float(value))

    def fit(*callbacks, epochs=4, checkpoint=None):
        torch.manual_seed(0)
        model, logged = Classifier(), Logged()
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            callbacks=[*callbacks, logged],
        )
        loader = DataLoader(TensorDataset(*examples()), batch_size=10, shuffle=True)
        trainer.fit(model, loader, ckpt_path=checkpoint)
        return trainer, model, logged.areas

    return fit


def is_close(given, monitor):
    """Lightning keeps what is logged in float32."""
    return given == pytest.approx([check.auc for check in monitor.history], rel=1e-6)


def test_every_epoch_is_measured_and_logged(run):
    monitor = monitoring()
    _, _, areas = run(monitor.callback())
    assert [check.step for check in monitor.history] == [1, 2, 3, 4]
    assert is_close(areas, monitor)


def test_every_step_is_measured(run):
    monitor = monitoring(every=3)
    trainer, _, areas = run(monitor.callback(on="step", log_name="ablation_auc"), epochs=3)
    assert trainer.global_step == 12
    assert [check.step for check in monitor.history] == [3, 6, 9, 12]
    assert areas[-1] == pytest.approx(monitor.history[-1].auc)


def test_training_goes_on_as_if_unwatched(run):
    _, alone, _ = run()
    _, watched, _ = run(monitoring().callback(), monitoring().callback(on="step", log_name="by_step"))
    for (name, a), b in zip(alone.state_dict().items(), watched.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(("stop", "epochs"), [(True, 2), (False, 4)])
def test_the_trainer_is_stopped(run, stop, epochs):
    trainer, _, _ = run(falling(2.0, patience=2).callback(stop=stop))
    assert trainer.current_epoch == epochs


def test_lightnings_own_early_stopping_reads_what_is_logged(run, lightning):
    def stopping(**options):
        return lightning.callbacks.EarlyStopping(
            "ablation_auc", mode="max", min_delta=1.0, patience=2, check_on_train_epoch_end=True, **options
        )

    trainer, _, _ = run(monitoring().callback(), stopping(), epochs=6)
    assert trainer.current_epoch == 3  # the first is the best, as none is better by 1
    trainer, _, areas = run(monitoring(every=2).callback(), stopping(strict=False), epochs=8)
    assert trainer.current_epoch == 4
    assert areas[0] is None
    assert areas[1] == areas[2]  # between two measurements it finds the last again


def test_a_checkpoint_keeps_the_history(run, tmp_path):
    whole = monitoring()
    run(whole.callback(), epochs=4)
    first, second = monitoring(), monitoring()
    trainer, _, _ = run(first.callback(), epochs=2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    run(second.callback(), epochs=4, checkpoint=tmp_path / "half.ckpt")
    assert [check.step for check in second.history] == [1, 2, 3, 4]
    assert [check.auc for check in second.history[:2]] == [check.auc for check in whole.history[:2]]
    assert second.calls == 4


def test_two_monitors_have_states_of_their_own(lightning):
    keys = {monitoring().callback(log_name=name).state_key for name in ("a", "b")}
    assert len(keys) == 2


def test_a_spawned_process_makes_it_anew(lightning):
    callback = pickle.loads(pickle.dumps(falling(0.5).callback(on="step", log_name="a", stop=True)))
    assert isinstance(callback, lightning.Callback)
    assert (callback.on, callback.log_name, callback.stop) == ("step", "a", True)
    assert callback.monitor.history[0].auc == 0.5


def test_the_package_in_use_is_taken(monkeypatch):
    other = pytest.importorskip("pytorch_lightning", reason="pytorch_lightning is not installed")
    monkeypatch.delitem(sys.modules, "lightning.pytorch", raising=False)
    assert isinstance(monitoring().callback(), other.Callback)


def test_an_unknown_occasion_is_refused():
    with pytest.raises(ValueError, match="on='batch': choose 'epoch' or 'step'"):
        monitoring().callback(on="batch")


def test_missing_lightning_is_named(monkeypatch):
    for package in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r'needs Lightning: `python -m pip install "sdkernels\[lightning\]"`'):
        monitoring().callback()
