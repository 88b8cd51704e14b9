"""What all ablation functions share: they check, find the sites, make their family, and hand it to the engine."""

import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

import sdkernels
from sdkernels.analysis.extras import require
from sdkernels.analysis.sampling import Sampling, Series, each_alone, run_sampled
from sdkernels.analysis.saved import Path_
from sdkernels.analysis.subject import studied
from sdkernels.engine.arguments import flag, is_one_of, number, whole_number
from sdkernels.engine.batches import Batches
from sdkernels.engine.checks import check_default_device
from sdkernels.engine.execute import run, warn_of_no_effect
from sdkernels.engine.families import Family
from sdkernels.engine.job import Job, Outcome
from sdkernels.engine.keeping import Keeping, Workers
from sdkernels.engine.ledger import Ledger
from sdkernels.engine.scores import Metric, Metrics, check_metrics, metric_name
from sdkernels.engine.sites import Layers, Site
from sdkernels.engine.values import Value, Within, describe_value, describe_within, resolve_clamps

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
    store: Path_ | None = None
    workers: Workers | None = None
    value: Value = 0.0
    baselines: Value | None = None
    value_data: Any = None
    value_data_called: str = "value_data"
    within: Within | None = None
    configs_per_batch: int | str = "auto"

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> "Options":
        """Those among a function's ``locals()``.

        Raises:
            ValueError, TypeError: one that is wrong whatever the model and the data; names it.
        """
        check_default_device()
        given = {field.name: arguments[field.name] for field in fields(cls) if field.name in arguments}
        if not is_one_of(given["method"], ("auto", "loop")):
            raise ValueError(f"method={given['method']!r}: choose 'auto' or 'loop'")
        given["outcomes"] = flag("outcomes", given["outcomes"])
        given["seed"] = whole_number("seed", given["seed"], 0)
        given["memory_fraction"] = check_fraction(given["memory_fraction"])
        if not is_one_of(configs := given.get("configs_per_batch", "auto"), ("auto",)):
            given["configs_per_batch"] = whole_number("configs_per_batch", configs, 1, what="a positive int, or 'auto'")
        if given["tolerance"] is not None:
            Sampling(given["tolerance"], given["confidence"], given["seed"])
            if given["outcomes"]:
                raise ValueError("outcomes=True asks for every example, tolerance= for as few as it takes; give one")
        return cls(**given)


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
    *,
    called: str,
) -> Measured[FamilyT]:
    """Score every configuration of the family that ``make_family`` makes of the layers' numbers of units.

    ``change_sites(sites, model, batches)`` says otherwise what the units are, given the data that values come from;
    ``series_of(family)`` what is to be known to a tolerance, if one is given; ``called`` is the public function.

    Raises:
        ValueError, TypeError: as :func:`sdkernels.cumulative_ablation` says.
    """
    value, value_name = options.value, "value"
    if options.baselines is not None:
        if not (isinstance(value, float) and value == 0.0):
            raise ValueError("value and baselines are two words for one thing; give one")
        value, value_name = options.baselines, "baselines"
    way = {name: getattr(options, name) for name in ("precision", "unit_dim", "select", "batch_size")}
    with studied(model, layers, data, **way) as (model, sites, batches, inputs, logits, precision):
        metrics = check_metrics(options.metrics, logits.shape[1])
        if options.tolerance is not None and "class_accuracy" in metrics:
            raise ValueError("'class_accuracy' needs every example; leave out tolerance=")
        averaged = batches if options.value_data is None else batches.of(options.value_data, options.value_data_called)
        sites = change_sites(sites, model, averaged)
        family = make_family(tuple(site.units for site in sites))
        clamps = resolve_clamps(value, options.within, sites, model, averaged, logits.shape[1], called=value_name)
        is_resampled = any(clamp.by == "donor" for clamp in clamps)
        if is_resampled:
            batches = batches.with_donors(None if options.value_data is None else averaged, options.seed)
        probe = next(batches.numbered()).part(slice(len(inputs)))
        probe = probe._replace(inputs=inputs, labels=probe.labels.clamp(0, logits.shape[1] - 1))  # checked when run
        about: dict[str, Any] = {
            "layers": [site.name for site in sites],
            "unit_counts": list(family.unit_counts),
            "metrics": [metric_name(metric) for metric in metrics],
            "value": describe_value(value) + describe_within(options.within),
            "examples": batches.examples,
            "classes": logits.shape[1],
            "seed": options.seed,
            "precision": precision,
            "method": options.method,
            "versions": versions(),
        }
        with (
            keeping(options.store, options.workers, called, about, (options.method, precision)) as kept,
            progress(options.show_progress, batches.examples, family.configurations) as advance,
        ):
            job = Job(model, sites, batches, family, clamps, metrics, probe, logits, advance, options.outcomes)
            job = replace(job, tf32=precision == "tf32")
            run_job = partial(
                run,
                method=options.method,
                configs_per_batch=None if isinstance(options.configs_per_batch, str) else options.configs_per_batch,
                memory_fraction=options.memory_fraction,
                keeping=kept,
            )
            used = bounds = None
            if options.tolerance is None:
                outcome = run_job(job)
            else:
                sampling = Sampling(options.tolerance, options.confidence, options.seed)
                outcome, used, bounds = run_sampled(job, sampling, series_of(family), run_job)
            if kept is not None:
                kept.finish()
        warn_of_no_effect(job, outcome)
    return Measured(
        family=family,
        outcome=outcome,
        layers=tuple(site.name for site in sites),
        value=about["value"],
        precision=precision,
        method=options.method,
        seed=options.seed if is_resampled or used is not None else None,
        used=used,
        bounds=bounds,
    )


@contextmanager
def keeping(
    store: Path_ | None, workers: Workers | None, called: str, about: Mapping[str, Any], determines: tuple[Any, ...]
) -> Iterator[Keeping | None]:
    """Where a call's work is kept, and who does it; None: nowhere, and this process."""
    if workers is not None and not (callable(getattr(workers, "run", None)) and hasattr(workers, "count")):
        raise TypeError(
            f"workers is a {type(workers).__name__}; give what does tasks, as sdkernels.lab.cluster.RayWorkers"
        )
    if store is None:
        yield None if workers is None else Keeping(None, workers, called, about, determines)
        return
    with Ledger(store) as ledger:
        yield Keeping(ledger, workers, called, about, determines)


def versions() -> dict[str, str]:
    """What a result depends on."""
    return {
        "sdkernels": sdkernels.__version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def check_fraction(memory_fraction: Any) -> float:
    """A part of the device's memory.

    Raises:
        ValueError, TypeError: it is no number, or not in (0, 1].
    """
    fraction = number("memory_fraction", memory_fraction)
    if not 0 < fraction <= 1:
        raise ValueError(f"memory_fraction={memory_fraction!r} must be a number in (0, 1], of the device's memory")
    return fraction


class progress:  # noqa: N801 - reads as a function
    """A tqdm bar over examples x configurations, or nothing; gives a function that hears of work done."""

    def __init__(self, show: bool, examples: int | None, configurations: int, doing: str = "ablating") -> None:
        total = None if examples is None else examples * configurations
        tqdm = require("tqdm.auto", "show_progress=True").tqdm if flag("show_progress", show) else None
        self._bar = tqdm(total=total, unit="forward", unit_scale=True, desc=doing) if tqdm else None

    def __enter__(self) -> Any:
        return self._bar.update if self._bar is not None else lambda _done: None

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
