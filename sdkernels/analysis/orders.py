"""Orders as users give them, scores that know their layers included."""

from collections.abc import Sequence
from typing import Any

import torch

from sdkernels.analysis.importance import UnitImportance
from sdkernels.analysis.unit_score import UnitScore
from sdkernels.engine import choices
from sdkernels.engine.choices import Direction, Spread
from sdkernels.engine.sites import Site

ByScore = choices.ByScore | tuple[UnitScore, Direction] | tuple[UnitScore, Direction, Spread]
Orders = choices.Orders | ByScore | Sequence[ByScore]


def for_sites(orders: Orders, sites: Sequence[Site]) -> choices.Orders:
    """The same, every :class:`UnitScore` as a tensor; dead units that have no score come last in both directions.

    Raises:
        ValueError: a score of other layers, or without a value for a unit that is alive.
        TypeError: a whole result where one of its scores is meant.
    """
    if isinstance(orders, tuple):
        by_score: choices.ByScore = _with_values(orders, sites)
        return by_score
    if isinstance(orders, list):
        return [_with_values(one, sites) if isinstance(one, tuple) else one for one in orders]
    return orders  # type: ignore[return-value]  # no score


def _with_values(given: Any, sites: Sequence[Site]) -> Any:
    score, *rest = given or (None,)
    if isinstance(score, UnitImportance):
        raise TypeError("orders=(importance, ...): say which, as importance.score('loss')")
    if not isinstance(score, UnitScore):
        return given
    names, counts = tuple(site.name for site in sites), tuple(site.units for site in sites)
    if score.layers != names or score.unit_counts != counts:
        raise ValueError(
            f"orders=({score.name}, ...): it is of layers {list(score.layers)} with {list(score.unit_counts)} units, "
            f"and the call of {list(names)} with {list(counts)}; score.of([...]) picks layers, in their order"
        )
    values, dead = score.values, score.dead
    undefined = values.isnan() if dead is None else values.isnan() & ~dead
    if undefined.any():
        raise ValueError(
            f"orders=({score.name}, ...): it is nan for {int(undefined.sum())} of {len(values)} units, the first being "
            f"{score.named(int(undefined.nonzero()[0]))}; nan has no order: "
            "give values for them: (score.values.nan_to_num(0), ...)"
        )
    last = torch.inf if "ascending" in rest else -torch.inf
    return (values.nan_to_num(last, posinf=torch.inf, neginf=-torch.inf), *rest)
