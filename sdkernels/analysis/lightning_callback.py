"""A monitor as a callback of Lightning, which is imported when one is asked for."""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from sdkernels.engine.arguments import flag, is_one_of

if TYPE_CHECKING:
    from sdkernels.analysis.monitor import AblationMonitor

PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def make_callback(monitor: "AblationMonitor", on: str, log_name: str, stop: bool) -> Any:
    """A ``Callback`` of the installed Lightning; the arguments as :meth:`AblationMonitor.callback` says.

    Raises:
        ImportError: neither package is installed; says how to get it.
        ValueError, TypeError: ``on`` is unknown, or an argument is none of its kind.
    """
    if not is_one_of(on, ("epoch", "step")):
        raise ValueError(f"on={on!r}: choose 'epoch' or 'step'")
    if not isinstance(log_name, str):
        raise TypeError(f"log_name is a {type(log_name).__name__}; give a string")
    stop = flag("stop", stop)
    base = _lightning().Callback
    return type("AblationCallback", (_Hooks, base), {})(monitor, on, log_name, stop)


def _lightning() -> Any:
    """The package that is in use: the two have classes of their own, which a Trainer of the other may not know."""
    for package in sorted(PACKAGES, key=lambda name: name not in sys.modules):
        try:
            return importlib.import_module(package)
        except ImportError:
            continue
    raise ImportError('AblationMonitor.callback() needs Lightning: `python -m pip install "sdkernels[lightning]"`')


class _Hooks:
    """What Lightning calls; to be joined with its ``Callback``."""

    def __init__(self, monitor: "AblationMonitor", on: str, log_name: str, stop: bool) -> None:
        super().__init__()
        self.monitor, self.on, self.log_name, self.stop = monitor, on, log_name, stop

    def __reduce__(self) -> Any:
        # The class is made when Lightning is there, so processes that are spawned must make it anew.
        return make_callback, (self.monitor, self.on, self.log_name, self.stop)

    @property
    def state_key(self) -> str:
        """The name of the state in a checkpoint, one for each ``log_name``."""
        return f"sdkernels.AblationMonitor({self.log_name!r})"

    def state_dict(self) -> dict[str, Any]:
        return self.monitor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.monitor.load_state_dict(state_dict)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self.on == "epoch":
            self._call(trainer, pl_module, trainer.current_epoch + 1)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.on == "step":
            self._call(trainer, pl_module, trainer.global_step)

    def _call(self, trainer: Any, pl_module: Any, step: int) -> None:
        auc = self.monitor(pl_module, step)
        if auc is None:
            return
        # Every process gets here at the same calls, so none waits for another in vain.
        is_step = self.on == "step"
        pl_module.log(self.log_name, auc, on_step=is_step, on_epoch=not is_step, batch_size=1, sync_dist=True)
        if self.stop and trainer.strategy.reduce_boolean_decision(self.monitor.should_stop, all=False):
            trainer.should_stop = True
