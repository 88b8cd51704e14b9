"""Do two numbers a unit go together? Rank correlation, pooled and by layer, with and without dead units."""

from dataclasses import dataclass
from math import isnan
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from sdkernels.analysis.axes import axes
from sdkernels.analysis.extras import require
from sdkernels.analysis.importance import UnitImportance
from sdkernels.analysis.scatter import draw_scatter
from sdkernels.analysis.scored import Scored
from sdkernels.analysis.spearman import Spearman, spearman
from sdkernels.analysis.unit_score import UnitScore
from sdkernels.engine.arguments import dense, is_number, number, whole_number
from sdkernels.engine.checks import check_default_device
from sdkernels.engine.memory import check_room


class Scopes(NamedTuple):
    """Correlations over all units pooled, and within each layer."""

    pooled: Spearman
    by_layer: dict[str, Spearman]


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class RankCorrelation:
    """Spearman's rank correlation of two scores; printing it gives a table.

    Attributes:
        pooled: over all units but dead ones; ``by_layer`` the same within each layer, empty where no layers are known.
        with_dead: the same with dead units counted; None where there are none, or nobody looked (see ``dead``).
        dead: bool ``[U]``, which units are dead; None where nobody looked: then ``pooled`` and ``by_layer`` count
            whatever dead units there may be.
        dead_value: what a dead unit's nan was counted as in ``with_dead``.
        undefined: how many units were left out of everything: those that are not dead and have a nan.
        x, y: what was correlated.
        confidence, seed: of the bootstrap intervals.
    """

    pooled: Spearman
    by_layer: dict[str, Spearman]
    with_dead: Scopes | None
    dead: Tensor | None
    dead_value: float
    undefined: int
    x: UnitScore
    y: UnitScore
    confidence: float
    seed: int

    def to_pandas(self) -> Any:
        """A long table, one row a scope (``"pooled"``, then each layer): rho, its interval, and how many units.

        ``dead units`` says ``"excluded"`` or ``"counted"``; ``"unknown"`` where nobody looked for them.
        """
        pandas = require("pandas", "RankCorrelation.to_pandas()")
        policies = {"unknown" if self.dead is None else "excluded": Scopes(self.pooled, self.by_layer)}
        if self.with_dead is not None:
            policies["counted"] = self.with_dead
        rows = [
            (scope, policy, found.rho, found.low, found.high, found.units)
            for policy, scopes in policies.items()
            for scope, found in [("pooled", scopes.pooled), *scopes.by_layer.items()]
        ]
        return pandas.DataFrame(rows, columns=["scope", "dead units", "rho", "low", "high", "units"])

    def plot(self, ax: Any = None) -> Any:
        """Draw x against y, a colour, a marker and a least-squares line a layer; returns the matplotlib axes.

        ``x`` is the vertical axis, as in "x against y". Dead units, nan and inf are not drawn. The lines are fitted to
        the values, rho to their ranks. The legend stands beside the axes: ``layout="constrained"`` makes a figure leave
        room for it.
        """
        ax = axes(ax, "RankCorrelation.plot()", layout="constrained")
        is_drawn = self.x.values.isfinite() & self.y.values.isfinite()
        if self.dead is not None:
            is_drawn &= ~self.dead
        rhos = {layer: found.rho for layer, found in self.by_layer.items()}
        draw_scatter(ax, self.y, self.x, is_drawn, rhos)
        ax.set_title(rf"pooled $\rho$ = {self.pooled.rho:.2f}")
        return ax

    def __repr__(self) -> str:
        dead = None if self.dead is None else int(self.dead.sum())
        without = [("pooled", self.pooled), *self.by_layer.items()]
        counted = [] if self.with_dead is None else [self.with_dead.pooled, *self.with_dead.by_layer.values()]
        interval = f"{100 * self.confidence:g}% interval"
        head = f"{'rho':>6}  {interval:<16}{'units':>7}"
        width = max(len(scope) for scope, _ in without)
        lines = [f"Spearman's rank correlation of {self.x.name} and {self.y.name}"]
        if counted:
            lines.append(f"{'':{width}}  {'without dead units':<{len(head)}}    with dead units ({dead})")
        lines.append(f"{'':{width}}  {head}" + (f"    {head}" if counted else ""))
        for row, (scope, found) in enumerate(without):
            line = f"{scope:<{width}}  {_cells(found)}"
            lines.append(f"{line}    {_cells(counted[row])}" if counted else line)
        if dead is None:
            lines.append("nobody looked for dead units; if there are any, they are counted")
        elif dead == 0:
            lines.append("no unit is dead")
        else:
            lines.append(f"where a dead unit has no score, it is counted as {self.dead_value:g}")
        if self.undefined:
            lines.append(f"left out: {self.undefined} that {'is' if self.undefined == 1 else 'are'} nan and not dead")
        return "\n".join(line.rstrip() for line in lines)


def _cells(found: Spearman) -> str:
    interval = "" if isnan(found.low) else f"{found.low:5.2f} .. {found.high:5.2f}"
    return f"{found.rho:6.3f}  {interval:<16}{found.units:7}"


def rank_correlation(
    x: UnitScore | Tensor | ArrayLike,
    y: UnitScore | Tensor | ArrayLike,
    *,
    dead: Tensor | ArrayLike | None = None,
    dead_value: float = 0.0,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> RankCorrelation:
    r"""Spearman's rank correlation of two scores over units: pooled, within each layer, with and without dead units.

    .. math:: \rho = \frac{\sum_u (r_u - \bar r)(s_u - \bar s)}
                          {\sqrt{\sum_u (r_u - \bar r)^2 \sum_u (s_u - \bar s)^2}}

    with average ranks :math:`r, s`: equal scores share the mean of their ranks. Pooling may hide opposite trends within
    layers, or make one of the layers' differences: look at both. An interval is the percentile one of the bootstrap:
    the scope's units are drawn with replacement, and ranked anew, ``resamples`` times. It speaks of other units of such
    networks, not of other networks; of a handful of units it is too narrow.

    Args:
        x, y: scores of the same layers, in one order; or numbers ``[U]``, which are taken for the other's units. Of two
            that name no layers there is the pooled correlation alone.
        dead: bool ``[U]``, units to be left out of the main numbers; by default those that ``x.dead`` or ``y.dead``
            marks.
        dead_value: what a dead unit's nan is counted as in ``with_dead``; selectivity, for one, is 0 / 0 there.
        resamples: how many; 0 for no intervals.
        confidence: of the intervals.
        seed: of the drawing, anew for every scope, so that a layer's interval does not depend on the others.

    Returns:
        The correlations, a :class:`RankCorrelation`. A unit with a nan that is not dead is left out, and counted there.

    Raises:
        TypeError: a result is given where a score is asked for; says how to get that.
        ValueError: the two are of different units, or an argument is out of range.

    Source:
        Morcos, Barrett, Rabinowitz, Botvinick 2018, figure 7; pooled and by layer as Amjad et al. (2018) advise.

    Example:
        >>> import torch, sdkernels as sd
        >>> layers = {"layers": ("fc1", "fc2"), "unit_counts": (4, 3)}
        >>> dead = torch.tensor([False, False, False, True, False, False, False])
        >>> importance = torch.tensor([0.1, 0.4, 0.3, 0.0, 0.8, 0.7, 0.9])
        >>> selectivity = torch.tensor([0.1, 0.2, 0.3, torch.nan, 0.6, 0.9, 0.5])
        >>> sd.rank_correlation(
        ...     sd.UnitScore(name="accuracy lost", values=importance, **layers),
        ...     sd.UnitScore(name="selectivity", values=selectivity, **layers, dead=dead),
        ...     resamples=0,
        ... )
        Spearman's rank correlation of accuracy lost and selectivity
                without dead units                 with dead units (1)
                   rho  95% interval      units       rho  95% interval      units
        pooled   0.714                        6     0.821                        7
        fc1      0.500                        3     0.800                        4
        fc2     -1.000                        3    -1.000                        3
        where a dead unit has no score, it is counted as 0
    """
    check_default_device()
    if not 0 < (confidence := number("confidence", confidence)) < 1:
        raise ValueError(f"confidence={confidence:g} must be above 0 and below 1, 0.95 for instance")
    resamples, seed = whole_number("resamples", resamples, 0), whole_number("seed", seed, 0)
    check_room("resamples", resamples, resamples * 8 * 2)
    dead_value = _rankable("dead_value", dead_value)
    has_layers = isinstance(x, UnitScore) or isinstance(y, UnitScore)
    x, y = _of_same_units(x, y)
    is_dead = _dead_units(dead, x, y)

    places = {layer: x.unit_layer == place for place, layer in enumerate(x.layers)} if has_layers else {}

    def correlate(x_values: Tensor, y_values: Tensor, is_counted: Tensor) -> Scopes:
        def within(scope: Tensor) -> Spearman:
            pairs = x_values[scope].numpy(), y_values[scope].numpy()
            return spearman(*pairs, resamples=resamples, confidence=confidence, seed=seed)

        return Scopes(within(is_counted), {layer: within(is_counted & of_layer) for layer, of_layer in places.items()})

    alive = torch.ones(len(x), dtype=torch.bool) if is_dead is None else ~is_dead
    is_defined = ~(x.values.isnan() | y.values.isnan())
    without = correlate(x.values, y.values, alive & is_defined)
    with_dead = None
    if not alive.all():
        x_filled, y_filled = (s.values.masked_fill(s.values.isnan() & ~alive, dead_value) for s in (x, y))
        with_dead = correlate(x_filled, y_filled, is_defined | ~alive)
    return RankCorrelation(
        pooled=without.pooled,
        by_layer=without.by_layer,
        with_dead=with_dead,
        dead=is_dead,
        dead_value=dead_value,
        undefined=int((alive & ~is_defined).sum()),
        x=x,
        y=y,
        confidence=confidence,
        seed=seed,
    )


def _of_same_units(x: Any, y: Any) -> tuple[UnitScore, UnitScore]:
    """Both as scores of the same layers.

    Raises:
        TypeError: one is a result, or no numbers.
        ValueError: they are of different units, or not ``[U]``.
    """
    x, y = (given if isinstance(given, UnitScore) else _numbers(name, given) for name, given in (("x", x), ("y", y)))
    if isinstance(x, UnitScore) and isinstance(y, UnitScore):
        if (x.layers, x.unit_counts) != (y.layers, y.unit_counts):
            common = [layer for layer in x.layers if layer in y.layers]
            raise ValueError(
                f"x, {x.name}, is of layers {_counted(x)}, but y, {y.name}, of {_counted(y)}: they must be of the same "
                "layers, in one order, with as many units. "
                + (f"Take score.of({common}) of both" if common else "They have none in common: score.of([...]) picks")
            )
        return x, y
    units = len(x)
    if len(y) != units:
        of = next((f" of layers {_counted(score)}" for score in (x, y) if isinstance(score, UnitScore)), "")
        raise ValueError(f"x has {units} units and y {len(y)}{of}: give a number for each of the same units")
    named = next((score for score in (x, y) if isinstance(score, UnitScore)), None)
    layers, counts = (named.layers, named.unit_counts) if named is not None else (("all units",), (units,))
    x, y = (
        given if isinstance(given, UnitScore) else UnitScore(name=name, values=given, layers=layers, unit_counts=counts)
        for name, given in (("x", x), ("y", y))
    )
    return x, y


def _counted(score: UnitScore) -> str:
    return ", ".join(f"{layer} [{count}]" for layer, count in zip(score.layers, score.unit_counts, strict=True))


def _numbers(name: str, given: Any) -> Tensor:
    if isinstance(given, Scored):
        kind = type(given).__name__
        fix = 'give .score("loss") of it' if isinstance(given, UnitImportance) else "it has no number a unit"
        raise TypeError(f"{name} is a {kind}; {fix}")
    numbers = dense(name, _tensor(name, given), real=False)
    if numbers.is_complex():
        raise TypeError(f"{name} is complex, which has no order; give its .abs(), for instance")
    if numbers.ndim != 1:
        raise ValueError(f"{name} {list(numbers.shape)} must be [U], a number for each unit, or a UnitScore")
    return numbers


def _tensor(name: str, given: Any) -> Tensor:
    try:
        return given if isinstance(given, Tensor) else torch.as_tensor(np.asarray(given))
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} is a {type(given).__name__}; give a tensor [U], or an array of numbers") from error


def _rankable(name: str, given: Any) -> float:
    """A number, or an infinite one: ranks need an order alone."""
    if not is_number(given):
        raise TypeError(f"{name} is a {type(given).__name__}; give a number")
    if given != given:
        raise ValueError(f"{name}=nan has no rank; dead units are left out of the main numbers already")
    return float(given)


def _dead_units(given: Any, x: UnitScore, y: UnitScore) -> Tensor | None:
    """bool [U]: as given, or else what either score marks; None where neither says."""
    if given is not None:
        mask = dense("dead", _tensor("dead", given)).cpu()
        if mask.dtype != torch.bool:
            raise TypeError(f"dead is {mask.dtype}; give a bool [{len(x)}], True for each dead unit")
        if mask.shape != (len(x),):
            raise ValueError(f"dead {list(mask.shape)} must be [{len(x)}], one a unit of {_counted(x)}")
        return mask
    marked = [score.dead for score in (x, y) if score.dead is not None]
    return torch.stack(marked).any(0) if marked else None
