"""Watch the area under the ablation curve while a network trains, as a sign of when to stop."""

import difflib
import inspect
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.nn.parameter import is_lazy

from sdkernels.analysis.ablation import cumulative_ablation
from sdkernels.analysis.axes import axes, look
from sdkernels.analysis.curves import AblationCurve
from sdkernels.analysis.extras import require
from sdkernels.analysis.lightning_callback import make_callback
from sdkernels.analysis.literal import LITERAL
from sdkernels.analysis.orders import Orders
from sdkernels.analysis.preserve import preserved
from sdkernels.analysis.scored import PER_CLASS, axis_label
from sdkernels.engine.choices import Points
from sdkernels.engine.scores import METRICS, metric_name
from sdkernels.engine.sites import Layers, unwrap
from sdkernels.engine.turns import one_at_a_time


@dataclass(frozen=True, eq=False)
class Check:
    """One measurement.

    Attributes:
        step: when it was made.
        auc: the area under the ablation curve, the mean over R orders.
        auc_sd: its standard deviation over orders; nan for one order.
        curve: what was measured; None where the history was loaded.
        seconds: what it took.
    """

    step: int
    auc: float
    auc_sd: float
    curve: AblationCurve | None
    seconds: float


class AblationMonitor:
    r"""Measure the area under the ablation curve (AUC) every few epochs, and say when it has fallen.

    .. math:: \text{AUC} = \frac1R \sum_r \sum_t \tfrac12 (m_{r,t} + m_{r,t+1}) (f_{t+1} - f_t)

    with :math:`m_{r,t}` the metric at fraction :math:`f_t` of units ablated in order :math:`r`. It begins to drop where
    training and test loss part, so it says when to stop with no test set: ``data`` may be training examples.

    A check switches the network to evaluation mode and leaves it, the gradients, the optimiser's state and all random
    states bit for bit as they were, also by an exception: training goes on as if it had not been watched. Wrapped
    models (``DataParallel``, DDP, ``torch.compile``) are measured inside their wrappers.

    Args:
        layers: dotted names, as for :func:`sdkernels.cumulative_ablation`; or modules of the network that is checked.
        data: a ``DataLoader``, a ``Dataset``, or a pair of tensors: inputs and integer labels ``[N]``. The same
            examples at every check, some hundreds to thousands of them, make the AUCs comparable.
        every: every how many calls the network is measured: at calls ``every``, ``2 * every``, ...
        orders, points, seed: as there. The seed gives the same orders at every check.
        metric: which area: ``"accuracy"``, ``"loss"`` (better when small), ``"top5"``, ``"agreement"``, or the name of
            a function among ``metrics``, which is taken for a score, better when large.
        patience: after how many checks in a row below the best ``should_stop`` becomes True.
        min_delta: how far below the best, at least; in units of the metric.
        options: further keyword arguments of :func:`sdkernels.cumulative_ablation`.

    Attributes:
        history: every :class:`Check`, the first first.
        calls: how often the monitor was called.

    Raises:
        ValueError, TypeError: an unknown option (close matches are listed), a metric that would not be measured,
            counts that are not positive; each says what and the fix. A check raises as
            :func:`sdkernels.cumulative_ablation`, as on a network that has diverged.

    Source:
        Morcos, Barrett, Rabinowitz, Botvinick 2018, "On the importance of single directions for generalization",
        section 3.2 and figure 4a.

    Example:
        >>> import torch
        >>> from sdkernels.lab.models import mlp
        >>> inputs = torch.linspace(-1, 1, 60).view(20, 3)
        >>> labels = (inputs[:, 0] > 0).long()
        >>> model = mlp(3, (8,), 2, seed=0)
        >>> monitor = AblationMonitor("relu1", (inputs, labels), every=2, points=5)
        >>> for epoch in range(4):
        ...     torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        ...     for parameter in model.parameters():
        ...         parameter.data -= parameter.grad
        ...         parameter.grad = None
        ...     auc = monitor(model)  # at every second call a float, else None
        ...     if monitor.should_stop:
        ...         break
        >>> [check.step for check in monitor.history], auc == monitor.history[-1].auc, model.training
        ([2, 4], True, True)
    """

    def __init__(
        self,
        layers: Layers,
        data: Any,
        *,
        every: int = 1,
        orders: Orders = 3,
        points: Points = 17,
        metric: str = "accuracy",
        seed: int = 0,
        patience: int = 3,
        min_delta: float = 0.01,
        **options: Any,
    ) -> None:
        if isinstance(data, Iterator):
            raise TypeError(
                "data is an iterator, which can be read only once; give a DataLoader, a Dataset or two tensors"
            )
        for name, count in (("every", every), ("patience", patience)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"{name}={count!r} must be a positive int")
        if isinstance(min_delta, bool) or not isinstance(min_delta, (int, float)) or not 0 <= min_delta < math.inf:
            raise ValueError(f"min_delta={min_delta!r} must be a finite number, 0 or more: a difference of two AUCs")
        self._layers, self._data, self._metric = layers, data, metric
        self._every, self._patience, self._min_delta = every, patience, min_delta
        self._options = {**_check_options(options, metric), "orders": orders, "points": points, "seed": seed}
        self.history: list[Check] = []
        self.calls = 0

    def __call__(self, model: nn.Module, step: int | None = None) -> float | None:
        """Measure at every ``every``-th call.

        Args:
            model: in any mode; it is left as it is.
            step: what to note; by default the number of calls so far, 1 for the first.

        Returns:
            The AUC, or None at the calls between.
        """
        self.calls += 1
        if self.calls % self._every:
            return None
        self.check(model, step)
        return self.history[-1].auc

    def check(self, model: nn.Module, step: int | None = None) -> AblationCurve:
        """Measure now, note the result in ``history``, and give the curve; this is not counted as a call."""
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}; give a torch.nn.Module")
        model = unwrap(model)
        if any(is_lazy(parameter) for parameter in model.parameters()):
            raise ValueError(
                f"{type(model).__name__} has lazy parameters, which have no shape yet; call the model once"
            )
        start = time.perf_counter()
        with one_at_a_time(), preserved(model, self._data, self._options.get("value_data")):
            for module in model.modules():
                module.training = False  # and not eval(): a network's own train() may do more, as merging weights
            curve = cumulative_ablation(model, self._layers, self._data, **self._options)
        areas = curve.auc(self._metric)
        self.history.append(
            Check(
                step=self.calls if step is None else step,
                auc=float(areas.mean()),
                auc_sd=float(areas.std()) if len(areas) > 1 else math.nan,
                curve=curve,
                seconds=time.perf_counter() - start,
            )
        )
        return curve

    @property
    def best(self) -> Check | None:
        """The check of the best AUC, the first of equals; None before any."""
        return max(self.history, key=self._score, default=None)

    @property
    def should_stop(self) -> bool:
        """Whether each of the last ``patience`` checks lay more than ``min_delta`` below the best before it."""
        best, below = -math.inf, 0
        for score in map(self._score, self.history):
            best = max(best, score)
            below = below + 1 if score < best - self._min_delta else 0
        return below >= self._patience

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers: ``calls``, and the history without its curves. Training resumed with them goes on alike."""
        numbers = ("step", "auc", "auc_sd", "seconds")
        return {
            "calls": self.calls,
            "history": [{name: getattr(check, name) for name in numbers} for check in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave; replaces calls and history.

        Raises:
            ValueError: it is no such state.
        """
        if not isinstance(state, Mapping):
            raise ValueError(
                f"state is a {type(state).__name__}, not that of an AblationMonitor; give what state_dict() gave"
            )
        try:
            calls, history = int(state["calls"]), [Check(**numbers, curve=None) for numbers in state["history"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a state of an AblationMonitor ({error!r}); give what state_dict() gave") from error
        self.calls, self.history = calls, history

    def to_pandas(self) -> Any:
        """A table, one row a check: ``step``, ``auc``, ``auc_sd``, ``seconds``."""
        pandas = require("pandas", "AblationMonitor.to_pandas()")
        return pandas.DataFrame(self.state_dict()["history"], columns=["step", "auc", "auc_sd", "seconds"])

    def plot(self, ax: Any = None, *, label: str | None = None, color: Any = None) -> Any:
        """Draw the AUC over steps and a band of one standard deviation; returns the matplotlib axes."""
        ax = axes(ax, "AblationMonitor.plot()")
        steps, areas = [check.step for check in self.history], [check.auc for check in self.history]
        (line,) = ax.plot(steps, areas, marker=".", **look(label, color))
        low, high = ([check.auc + sign * check.auc_sd for check in self.history] for sign in (-1, 1))
        ax.fill_between(steps, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        ax.set_xlabel("step")
        ax.set_ylabel(f"area under the ablation curve, {axis_label(self._metric)}", **LITERAL)
        return ax

    def callback(
        self, on: Literal["epoch", "step"] = "epoch", log_name: str = "ablation_auc", stop: bool = False
    ) -> Any:
        """A Lightning callback that calls this monitor on the ``LightningModule`` and logs the AUC.

        The ``LightningModule``'s ``forward`` must give logits; layers are named from it, as ``"net.relu1"``. What is
        logged can be read by ``EarlyStopping(monitor=log_name, mode="max", check_on_train_epoch_end=True)``. Where
        ``every`` leaves epochs out, it finds the last AUC again, and none before the first: it needs ``strict=False``
        and a patience in epochs; or ``stop=True`` takes its place. The monitor's state is kept in checkpoints.

        In distributed training every process measures for itself, on the same data and orders, and the mean over
        processes is logged: they differ only where batch norm statistics do, and none waits while another measures.

        Args:
            on: call at the end of every training ``"epoch"``, or after every batch, a ``"step"``.
            log_name: what the AUC is logged as; of several monitors each needs its own.
            stop: also end training when ``should_stop`` is True in any process.

        Raises:
            ImportError: Lightning is not installed; says how to get it.
            ValueError: ``on`` is neither.
        """
        return make_callback(self, on, log_name, stop)

    def _score(self, check: Check) -> float:
        return -check.auc if self._metric == "loss" else check.auc


def _check_options(options: dict[str, Any], metric: str) -> dict[str, Any]:
    """The further arguments of ``cumulative_ablation``, with the metric among those measured."""
    parameters = inspect.signature(cumulative_ablation).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for name in options.keys() - set(known):
        own = set(inspect.signature(AblationMonitor).parameters) - {"layers", "data", "options"}
        close = difflib.get_close_matches(name, sorted({*known, *own}), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"cumulative_ablation has {', '.join(known)}"
        raise TypeError(f"AblationMonitor: unknown option {name}; {hint}")
    if not isinstance(metric, str):
        raise TypeError(f"metric is a {type(metric).__name__}; give a name, and a function by metrics=")
    if metric in PER_CLASS:
        raise ValueError(f"metric={metric!r} is a score a class; choose one that is a score")
    if "metrics" not in options:
        if metric not in METRICS:
            raise ValueError(f"metric={metric!r}: choose one of {', '.join(METRICS)}, or give a function by metrics=")
        return {**options, "metrics": tuple(dict.fromkeys(("accuracy", "loss", metric)))}
    metrics = options["metrics"]
    listed = [metrics] if isinstance(metrics, str) or callable(metrics) else list(metrics)
    measured = ["accuracy", *map(metric_name, listed)]
    if metric not in measured:
        raise ValueError(f"metric={metric!r} would not be measured; metrics= gives {', '.join(measured)}")
    return options
