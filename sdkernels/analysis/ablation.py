"""The public ablation functions: they check, find the sites, make the family, and hand it to the engine."""

import copy
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

import sdkernels
from sdkernels.analysis.curves import AblationCurve
from sdkernels.analysis.extras import require
from sdkernels.engine.batches import Batches
from sdkernels.engine.execute import PROBE_EXAMPLES, Job, run
from sdkernels.engine.families import Cumulative, Orders, Points, make_orders, make_points
from sdkernels.engine.scores import Metric, Metrics, check_metrics
from sdkernels.engine.sites import Layers, check_eval_mode, find_sites, unwrap
from sdkernels.engine.values import Value, describe_value, resolve_values

PRECISIONS = {"float32": torch.float32, "float64": torch.float64}


def cumulative_ablation(
    model: nn.Module,
    layers: Layers,
    data: Any,
    *,
    orders: Orders = 10,
    points: Points = 33,
    value: Value = 0.0,
    baselines: Value | None = None,
    value_data: Any = None,
    metrics: Metric | Metrics = ("accuracy", "loss"),
    seed: int = 0,
    method: Literal["auto", "loop"] = "auto",
    precision: Literal["float32", "float64"] | None = None,
    unit_dim: int | Mapping[str, int] | None = None,
    batch_size: int = 256,
    configs_per_batch: int | Literal["auto"] = "auto",
    show_progress: bool = False,
) -> AblationCurve:
    r"""Clamp more and more units, in fixed orders, and score the network at each point.

    The units of all ``layers`` are pooled. At point :math:`t` of order :math:`r` the first :math:`p_t` units of
    permutation :math:`\pi_r` are clamped to their value, for every example of the data set:

    .. math:: a_u \leftarrow v_u \quad\text{for}\quad u \in \{\pi_r(1), \dots, \pi_r(p_t)\}

    Clamping happens at the layer's output: name the ReLU, not the convolution, to clamp after the nonlinearity.

    Args:
        model: any module that gives logits ``[N, L]`` for inputs ``[N, ...]``, in evaluation mode. It is not changed.
        layers: a dotted name, a module of ``model``, or a list of them. ``"relu@2"`` picks one call of a layer that
            fires several times. Units are dimension 1 of outputs of four or more dimensions and of 1-d
            convolutions, else the last; ``unit_dim`` says otherwise.
        data: a ``DataLoader``, a ``Dataset``, or a pair of tensors: inputs and integer labels ``[N]``.
        orders: a number of random orders, an int64 tensor ``[R, U]`` of permutations of the pooled units (numbered
            layer after layer), or ``(score, "ascending")`` or ``(score, "descending")`` with a score ``[U]``.
        points: a number of evenly spaced counts of clamped units including 0 and U, increasing counts, or ``"all"``.
        value: what a clamped unit becomes: a number, ``"mean"`` (per unit), ``"element_mean"`` (per element of its
            map), a tensor (``[C]``, or like one example of the layer's output), or a dict of these by layer.
        baselines: captum's word for ``value``.
        value_data: the data set that means are taken over, by default ``data``.
        metrics: any of ``"accuracy"``, ``"loss"``, ``"top5"``, ``"class_accuracy"``, ``"agreement"`` (with the intact
            prediction), and functions (logits ``[N, L]``, labels ``[N]``) -> ``[N]``. Accuracy is always measured.
        seed: of the random orders. The global random state is left as it was.
        method: ``"auto"``, or ``"loop"``: one whole forward pass a configuration and batch, to check any result.
        precision: ``"float32"`` or ``"float64"`` runs a converted copy of the model; None the model as it is.
        unit_dim: the units' dimension, for every layer or by layer.
        batch_size: examples a batch where ``data`` is no ``DataLoader``.
        configs_per_batch: how many configurations a forward pass holds where the engine runs the network below the
            first layer as it stands (captum's ``perturbations_per_eval``). ``"auto"`` is 1: on a CPU more is no gain.
        show_progress: a tqdm bar over examples x configurations.

    Returns:
        An :class:`AblationCurve`: int64 counts of correct predictions and float64 sums of losses, ``[R, T]``.

    Raises:
        ValueError, TypeError: a layer that does not exist, a model in train mode, empty data, labels out of range,
            orders that are no permutations, non-finite intact activations, and the like; each says what, where and the
            fix.

    Source:
        Morcos, Barrett, Rabinowitz, Botvinick 2018, "On the importance of single directions for generalization",
        section 2.2 and figure 1.

    Example:
        >>> import torch, sdkernels as sd
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
        >>> inputs = torch.randn(50, 4)
        >>> curve = sd.cumulative_ablation(model, "1", (inputs, model(inputs).argmax(1)), orders=2, points=5)
        >>> curve.points.tolist(), curve.correct[:, 0].tolist()
        ([0, 2, 4, 6, 8], [50, 50])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give a torch.nn.Module")
    if method not in ("auto", "loop"):
        raise ValueError(f"method={method!r}: choose 'auto' or 'loop'")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed is a {type(seed).__name__}; give an int")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed} must be within 0..2**63 - 1")
    if baselines is not None:
        if not (isinstance(value, float) and value == 0.0):
            raise ValueError("value and baselines are two words for one thing; give one")
        value = baselines
    model = unwrap(model)
    check_eval_mode(model)
    model, layers = _as_precision(model, layers, precision)
    tensors = [*model.parameters(), *model.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.get_default_dtype())
    with _undisturbed(device):
        batches = Batches(data, batch_size=batch_size, device=device, dtype=dtype if precision else None)
        sites, logits = find_sites(model, layers, batches.first()[0][:PROBE_EXAMPLES], unit_dim)
        classes = logits.shape[1]
        checked_metrics = check_metrics(metrics, classes)
        unit_counts = tuple(site.units for site in sites)
        units = sum(unit_counts)
        family = Cumulative(make_orders(orders, units, seed), make_points(points, units), unit_counts)
        averaged = batches if value_data is None else batches.of(value_data)
        values = resolve_values(value, sites, model, averaged)
        with _progress(show_progress, batches.examples, family.configurations) as advance:
            job = Job(model, sites, batches, family, values, checked_metrics, classes, advance)
            outcome = run(job, method=method, configs_per_batch=_check_configs_per_batch(configs_per_batch))
    shape = (len(family.orders), len(family.points))
    sums = {name: total.view(*shape, *total.shape[1:]).cpu() for name, total in outcome.sums.items()}
    intact = {name: total[0].cpu() for name, total in outcome.intact.items() if name != "ambiguous"}
    return AblationCurve(
        orders=family.orders,
        points=family.points,
        ambiguous=sums.pop("ambiguous"),
        sums=sums,
        baseline_sums=intact,
        examples=outcome.examples,
        class_examples=outcome.class_examples.cpu(),
        layers=tuple(site.name for site in sites),
        unit_counts=unit_counts,
        seed=seed,
        value=describe_value(value),
        precision=str(dtype).removeprefix("torch."),
        method=method,
        plan=outcome.plan.explain(),
        versions=versions(),
    )


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Without the caller's autocast, as the precision is the model's; random draws, as a loader's, are undone; what is
    compiled runs eagerly, as compiled code may not see hooks."""
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and importing it takes a second
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def versions() -> dict[str, str]:
    """What a result depends on."""
    return {
        "sdkernels": sdkernels.__version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _as_precision(model: nn.Module, layers: Layers, precision: str | None) -> tuple[nn.Module, Layers]:
    """The model, or a converted copy, and the layers by name in it."""
    if precision is None:
        return model, layers
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: choose one of {', '.join(PRECISIONS)}, or None for the model's own")
    dtype = PRECISIONS[precision]
    if all(t.dtype == dtype for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()):
        return model, layers
    names = {id(module): name for name, module in model.named_modules()}
    if isinstance(layers, nn.Module):
        layers = [layers]
    if not isinstance(layers, str):
        layers = [names.get(id(layer), layer) if isinstance(layer, nn.Module) else layer for layer in layers]
    return copy.deepcopy(model).to(dtype), layers


def _check_configs_per_batch(configs_per_batch: int | str) -> int:
    if configs_per_batch == "auto":
        return 1
    if isinstance(configs_per_batch, bool) or not isinstance(configs_per_batch, int) or configs_per_batch < 1:
        raise ValueError(f"configs_per_batch={configs_per_batch!r} must be 'auto' or a positive int")
    return configs_per_batch


class _progress:  # noqa: N801 - reads as a function
    """A tqdm bar over examples x configurations, or nothing; gives a function that hears of work done."""

    def __init__(self, show: bool, examples: int | None, configurations: int) -> None:
        total = None if examples is None else examples * configurations
        tqdm = require("tqdm.auto", "show_progress=True").tqdm if show else None
        self._bar = tqdm(total=total, unit="forward", unit_scale=True, desc="ablating") if tqdm else None

    def __enter__(self) -> Any:
        return self._bar.update if self._bar is not None else lambda _done: None

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
