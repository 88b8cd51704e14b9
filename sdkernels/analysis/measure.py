"""What all ablation functions share: they check, find the sites, make their family, and hand it to the engine."""

import copy
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

import sdkernels
from sdkernels.analysis.extras import require
from sdkernels.analysis.sampling import Sampling, Series, each_alone, run_sampled
from sdkernels.engine.batches import Batches
from sdkernels.engine.execute import PROBE_EXAMPLES, Job, Outcome, run, warn_of_no_effect
from sdkernels.engine.families import Family
from sdkernels.engine.scores import Metric, Metrics, check_metrics
from sdkernels.engine.sites import Layers, Site, check_eval_mode, find_sites, unwrap
from sdkernels.engine.values import Value, Within, describe_value, describe_within, resolve_clamps

PRECISIONS = {
    "float32": torch.float32,
    "float64": torch.float64,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
}

FamilyT = TypeVar("FamilyT", bound=Family)


@dataclass(frozen=True)
class Options:
    """The keyword arguments that ablation functions share, as :func:`sdkernels.cumulative_ablation` explains them."""

    metrics: Metric | Metrics
    outcomes: bool
    tolerance: float | None
    confidence: float
    seed: int
    method: str
    precision: str | None
    unit_dim: int | Mapping[str, int] | None
    select: int | Mapping[str, int] | None
    batch_size: int
    memory_fraction: float
    show_progress: bool
    value: Value = 0.0
    baselines: Value | None = None
    value_data: Any = None
    within: Within | None = None
    configs_per_batch: int | str = "auto"

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> "Options":
        """Those among a function's ``locals()``."""
        return cls(**{field.name: arguments[field.name] for field in fields(cls) if field.name in arguments})


@dataclass(frozen=True)
class Measured(Generic[FamilyT]):
    """A family, its scores, and what they depend on."""

    family: FamilyT
    outcome: Outcome
    layers: tuple[str, ...]
    value: str
    precision: str
    method: str
    seed: int | None  # None: nothing was drawn
    used: Tensor | None  # int64 [K]
    bounds: Tensor | None  # float64 [J, 2], of the means that were to be known well enough

    def fields(self, *shape: int, seed: int | None = None) -> dict[str, Any]:
        """The fields of a :class:`~sdkernels.analysis.scored.Scored`, its K configurations laid out as ``shape``."""
        sums = {name: total.view(*shape, *total.shape[1:]).cpu() for name, total in self.outcome.sums.items()}
        intact = {name: total[0].cpu() for name, total in self.outcome.intact.items() if name != "ambiguous"}
        packed = self.outcome.outcomes
        return {
            "ambiguous": sums.pop("ambiguous"),
            "sums": sums,
            "outcomes": None if packed is None else packed.view(*shape, -1),
            "used": None if self.used is None else self.used.view(shape),
            "baseline_sums": intact,
            "examples": self.outcome.examples,
            "class_examples": self.outcome.class_examples.cpu(),
            "layers": self.layers,
            "unit_counts": self.family.unit_counts,
            "seed": self.seed if seed is None else seed,
            "value": self.value,
            "precision": self.precision,
            "method": self.method,
            "plan": self.outcome.plan.explain(),
            "versions": versions(),
        }


def measure(
    model: nn.Module,
    layers: Layers,
    data: Any,
    make_family: Callable[[tuple[int, ...]], FamilyT],
    options: Options,
    change_sites: Callable[[list[Site], nn.Module, Batches], list[Site]] = lambda sites, *_: sites,
    series_of: Callable[[FamilyT], list[Series]] = lambda family: each_alone(family.configurations),
) -> Measured[FamilyT]:
    """Score every configuration of the family that ``make_family`` makes of the layers' numbers of units.

    ``change_sites(sites, model, batches)`` says otherwise what the units are, given the data that values come from;
    ``series_of(family)`` what is to be known to a tolerance, if one is given.

    Raises:
        ValueError, TypeError: as :func:`sdkernels.cumulative_ablation` says.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give a torch.nn.Module")
    if options.method not in ("auto", "loop"):
        raise ValueError(f"method={options.method!r}: choose 'auto' or 'loop'")
    if isinstance(options.seed, bool) or not isinstance(options.seed, int):
        raise TypeError(f"seed is a {type(options.seed).__name__}; give an int")
    if not 0 <= options.seed < 2**63:
        raise ValueError(f"seed={options.seed} must be within 0..2**63 - 1")
    if options.tolerance is not None:
        Sampling(options.tolerance, options.confidence, options.seed)
        if options.outcomes:
            raise ValueError("outcomes=True asks for every example, and tolerance= for as few as it takes; give one")
    value = options.value
    if options.baselines is not None:
        if not (isinstance(value, float) and value == 0.0):
            raise ValueError("value and baselines are two words for one thing; give one")
        value = options.baselines
    model = unwrap(model)
    check_eval_mode(model)
    model, layers = as_precision(model, layers, options.precision)
    tensors = [*model.parameters(), *model.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.get_default_dtype())
    if options.precision == "tf32" and device.type != "cuda":
        raise ValueError(f"precision='tf32' is arithmetic of NVIDIA GPUs; the model is on {device}")
    with undisturbed(device, tf32=options.precision == "tf32"):
        batches = Batches(
            data, batch_size=options.batch_size, device=device, dtype=dtype if options.precision else None
        )
        inputs = batches.first()[0][:PROBE_EXAMPLES]
        sites, logits = find_sites(model, layers, inputs, options.unit_dim, options.select)
        metrics = check_metrics(options.metrics, logits.shape[1])
        if options.tolerance is not None and "class_accuracy" in metrics:
            raise ValueError("'class_accuracy' needs every example; leave out tolerance=")
        averaged = batches if options.value_data is None else batches.of(options.value_data)
        sites = change_sites(sites, model, averaged)
        family = make_family(tuple(site.units for site in sites))
        clamps = resolve_clamps(value, options.within, sites, model, averaged, logits.shape[1])
        is_resampled = any(clamp.by == "donor" for clamp in clamps)
        if is_resampled:
            batches = batches.with_donors(options.value_data, options.seed)
        probe = next(batches.numbered()).part(slice(len(inputs)))
        probe = probe._replace(inputs=inputs, labels=probe.labels.clamp(0, logits.shape[1] - 1))  # checked when run
        configs_per_batch = _check_configs_per_batch(options.configs_per_batch)
        with progress(options.show_progress, batches.examples, family.configurations) as advance:
            job = Job(model, sites, batches, family, clamps, metrics, probe, logits, advance, options.outcomes)
            run_job = partial(
                run,
                method=options.method,
                configs_per_batch=configs_per_batch,
                memory_fraction=check_fraction(options.memory_fraction),
            )
            used = bounds = None
            if options.tolerance is None:
                outcome = run_job(job)
            else:
                sampling = Sampling(options.tolerance, options.confidence, options.seed)
                outcome, used, bounds = run_sampled(job, sampling, series_of(family), run_job)
        warn_of_no_effect(job, outcome)
    return Measured(
        family=family,
        outcome=outcome,
        layers=tuple(site.name for site in sites),
        value=describe_value(value) + describe_within(options.within),
        precision="tf32" if options.precision == "tf32" else str(dtype).removeprefix("torch."),
        method=options.method,
        seed=options.seed if is_resampled or used is not None else None,
        used=used,
        bounds=bounds,
    )


@contextmanager
def undisturbed(device: torch.device, tf32: bool) -> Iterator[None]:
    """Without the caller's autocast, and with TF32 only if asked for, as the precision is the model's; random draws, as
    a loader's, are undone; what is compiled runs eagerly, as compiled code may not see hooks."""
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        if device.type == "cuda":
            backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
            for backend in backends:
                stack.callback(setattr, backend, "allow_tf32", backend.allow_tf32)
                backend.allow_tf32 = tf32
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


def as_precision(model: nn.Module, layers: Layers, precision: str | None) -> tuple[nn.Module, Layers]:
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


def check_fraction(memory_fraction: float) -> float:
    if (
        isinstance(memory_fraction, bool)
        or not isinstance(memory_fraction, (int, float))
        or not 0 < memory_fraction <= 1
    ):
        raise ValueError(
            f"memory_fraction={memory_fraction!r} must be a number in (0, 1]: a part of the device's memory"
        )
    return float(memory_fraction)


def _check_configs_per_batch(configs_per_batch: int | str) -> int | None:
    if configs_per_batch == "auto":
        return None
    if isinstance(configs_per_batch, bool) or not isinstance(configs_per_batch, int) or configs_per_batch < 1:
        raise ValueError(f"configs_per_batch={configs_per_batch!r} must be 'auto' or a positive int")
    return configs_per_batch


class progress:  # noqa: N801 - reads as a function
    """A tqdm bar over examples x configurations, or nothing; gives a function that hears of work done."""

    def __init__(self, show: bool, examples: int | None, configurations: int, doing: str = "ablating") -> None:
        total = None if examples is None else examples * configurations
        tqdm = require("tqdm.auto", "show_progress=True").tqdm if show else None
        self._bar = tqdm(total=total, unit="forward", unit_scale=True, desc=doing) if tqdm else None

    def __enter__(self) -> Any:
        return self._bar.update if self._bar is not None else lambda _done: None

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
