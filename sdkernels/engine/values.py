"""What a clamped unit becomes: a number, a mean over a data set, another example's activation, a tensor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sdkernels.engine.arguments import dense, is_number, number
from sdkernels.engine.averages import Average, ClassMean, ElementMean, Spread, average
from sdkernels.engine.batches import Batches
from sdkernels.engine.sites import Site

SiteValue = float | str | Tensor
Value = SiteValue | Mapping[str, SiteValue]
Bounds = tuple[float | Tensor, float | Tensor]
Within = float | Bounds | Mapping[str, float | Bounds]

# Of a mean, by which a range of deviations is wider: a unit that never changes is in it, however it is rounded.
SLACK = 1e-6

MEANS = ("mean", "element_mean")
CLASS_MEANS = ("class_mean", "class_element_mean")
WORDS = (*MEANS, *CLASS_MEANS, "resample")


@dataclass(frozen=True)
class Clamp:
    """What a clamped unit of one site becomes.

    Attributes:
        value: broadcasts to one example ``[*example]``; by class ``[L, ...]``; empty where another example gives it.
        by: whether the value is the same for all examples, or goes by their class, or is that of another example.
        low, high: a unit is clamped just where it is no less and no more; they broadcast to one example. None:
            anywhere.
    """

    value: Tensor
    by: Literal["all", "class", "donor"] = "all"
    low: Tensor | None = None
    high: Tensor | None = None

    @property
    def is_ranged(self) -> bool:
        """Whether the activation decides where it is clamped."""
        return self.low is not None

    @property
    def is_fixed(self) -> bool:
        """Whether it is the same for all examples, wherever."""
        return self.by == "all" and not self.is_ranged

    def to(self, like: Tensor) -> "Clamp":
        """On another device, in another dtype."""
        low, high = (None if bound is None else bound.to(like) for bound in (self.low, self.high))
        return replace(self, value=self.value.to(like), low=low, high=high)

    def on(self, device: torch.device) -> "Clamp":
        """On another device."""
        low, high = (None if bound is None else bound.to(device) for bound in (self.low, self.high))
        return replace(self, value=self.value.to(device), low=low, high=high)

    def of(self, labels: Tensor, donated: Tensor | None) -> Tensor:
        """The value for examples of these labels [N], ``[N, ...]`` or ``[1, ...]``; ``donated`` [N, *example]."""
        if self.by == "donor":
            assert donated is not None  # noqa: S101 - whoever resamples gives donors
            return donated
        return self.value[labels] if self.by == "class" else self.value[None]

    def within(self, x: Tensor, value: Tensor) -> Tensor:
        """The value where ``x`` is in the range, ``x`` elsewhere."""
        if self.low is None or self.high is None:
            return value
        return torch.where((x >= self.low) & (x <= self.high), value, x)


@dataclass
class _Wish:
    """What a site's clamp is made of."""

    value: SiteValue
    within: float | Bounds | None
    called: str
    mean: ElementMean = field(default_factory=ElementMean)
    by_class: ClassMean | None = None
    spread: Spread | None = None

    def averages(self) -> list[Average]:
        wanted: list[Average] = [self.mean] if isinstance(self.value, str) and self.value in MEANS else []
        return [*wanted, *(a for a in (self.by_class, self.spread) if a is not None)]


def resolve_clamps(
    value: Value,
    within: Within | None,
    sites: Sequence[Site],
    model: nn.Module,
    batches: Batches,
    classes: int,
    *,
    called: str = "value",
) -> list[Clamp]:
    """For each site what a clamped unit becomes, in float64; means are taken in one pass over ``batches``.

    ``called`` is what the caller's function calls the value.

    Raises:
        ValueError: an unknown word, a tensor that does not fit its site, a dict that misses or invents a layer, a range
            upside down.
        TypeError: something else than numbers, words and tensors.
    """
    wishes = [_wish(value, within, site, sites, classes, called) for site in sites]
    wanted = [wish.averages() for wish in wishes]
    if any(wanted):
        average(model, sites, batches, wanted, batches.called)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
    return [_clamp(wish, site, batches.device, dtype) for wish, site in zip(wishes, sites, strict=True)]


def describe_value(value: Value) -> str:
    """One line for reports: the word, the number, or the shape."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {describe_value(v)}" for name, v in value.items()) + "}"
    return f"tensor {list(value.shape)}" if isinstance(value, Tensor) else str(value)


def describe_within(within: Within | None) -> str:
    """What follows the value in a report."""
    if within is None:
        return ""
    if isinstance(within, Mapping):
        return " within {" + ", ".join(f"{name}:{describe_within(w)[7:]}" for name, w in within.items()) + "}"
    if isinstance(within, tuple):
        return f" within {' to '.join(describe_value(bound) for bound in within)}"
    return f" within {within} standard deviations"


def _wish(value: Value, within: Within | None, site: Site, sites: Sequence[Site], classes: int, called: str) -> _Wish:
    becomes, where = _by_site(called, value, site, sites), _by_site("within", within, site, sites)
    if isinstance(becomes, str) and becomes not in WORDS:
        raise ValueError(f"{called}={becomes!r} for layer {site.name!r}: the words are {', '.join(map(repr, WORDS))}")
    if not isinstance(becomes, (str, Real, Tensor)):
        raise TypeError(
            f"{called} for layer {site.name!r} is a {type(becomes).__name__}; give a number, a word or a tensor"
        )
    is_deviations = is_number(where)
    is_pair = isinstance(where, tuple) and len(where) == 2 and all(isinstance(w, (Real, Tensor)) for w in where)
    if where is not None and not is_deviations and not is_pair:
        raise TypeError(
            f"within for layer {site.name!r} is {where!r}; give a number of standard deviations around the mean, or "
            "(low, high), each a number or a tensor"
        )
    if is_deviations:
        where = number(f"within for layer {site.name!r}", where)
    if is_deviations and where < 0:
        raise ValueError(f"within={where} for layer {site.name!r} must be at least 0: a number of standard deviations")
    by_class = ClassMean(classes) if isinstance(becomes, str) and becomes in CLASS_MEANS else None
    return _Wish(
        becomes if isinstance(becomes, (str, Tensor)) else number(f"{called} for layer {site.name!r}", becomes),
        where,
        by_class=by_class,
        spread=Spread(site) if is_deviations else None,
        called=called,
    )


def _by_site(argument: str, given: Any, site: Site, sites: Sequence[Site]) -> Any:
    if not isinstance(given, Mapping):
        return given
    names = {s.name for s in sites}
    if set(given) != names:
        raise ValueError(f"{argument} is a dict of {sorted(given)}; it must name the layers {sorted(names)}, each once")
    return given[site.name]


def _clamp(wish: _Wish, site: Site, device: torch.device, dtype: torch.dtype) -> Clamp:
    low = high = None
    if wish.spread is not None:
        assert isinstance(wish.within, float)  # noqa: S101 - _wish has seen it
        mean = wish.spread.mean
        reach = wish.within * wish.spread.deviation + SLACK * mean.abs()
        low, high = (_fitted("within", bound, site, device) for bound in (mean - reach, mean + reach))
    elif isinstance(wish.within, tuple):
        low, high = (_fitted("within", bound, site, device) for bound in wish.within)
    if low is not None and high is not None and not (low <= high).all():
        raise ValueError(f"within=(low, high) for layer {site.name!r}: low must be no more than high, everywhere")
    if isinstance(wish.value, str) and wish.value == "resample":
        return Clamp(torch.empty(0, dtype=torch.float64, device=device), "donor", low, high)
    if wish.by_class is not None:
        mean = wish.by_class.mean
        return Clamp(_over_positions(mean, site, 1) if wish.value == "class_mean" else mean, "class", low, high)
    if isinstance(wish.value, str):
        mean = wish.mean.mean
        return Clamp(_over_positions(mean, site, 0) if wish.value == "mean" else mean, "all", low, high)
    fitted = _fitted(wish.called, wish.value, site, device)
    if not fitted.to(dtype).isfinite().all():
        raise ValueError(
            f"{wish.called} for layer {site.name!r} {list(fitted.shape)} must hold finite numbers, also in {dtype}"
        )
    return Clamp(fitted, "all", low, high)


def _over_positions(mean: Tensor, site: Site, first: int) -> Tensor:
    """The mean over all dimensions but the units', from ``first`` on, which stay as ones."""
    positions = [d for d in range(first, mean.ndim) if d - first != site.unit_dim - 1]
    return mean.mean(positions, keepdim=True) if positions else mean


def _fitted(argument: str, given: float | Tensor, site: Site, device: torch.device) -> Tensor:
    """A number, a value a unit, or one an element, as a tensor that broadcasts to one example."""
    number_or_tensor = (
        dense(f"{argument} for layer {site.name!r}", given) if isinstance(given, Tensor) else float(given)
    )
    tensor = torch.as_tensor(number_or_tensor, dtype=torch.float64, device=device)
    if tensor.shape == (site.units,):
        return tensor.view(site.per_unit)
    try:
        tensor.expand(site.example_shape)
    except RuntimeError as error:
        raise ValueError(
            f"{argument} {list(tensor.shape)} for layer {site.name!r} fits neither its units [{site.units}] nor its "
            f"output {list(site.example_shape)}"
        ) from error
    return tensor
