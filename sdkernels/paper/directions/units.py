"""What figures 5b, 6, 7 and A1 to A4 share: the ConvNets whose units are studied, and the statistics of those units.

Each of these figures asks for the same networks and, by the same arguments, the same statistics: whichever is run first
trains and measures them, and the others find them in the store.
"""

from collections.abc import Sequence
from typing import Any

from sdkernels.lab.sweep import Condition, NetworkSettings
from sdkernels.paper.measures import named
from sdkernels.paper.recipe import Family

CONVOLUTIONS = named("conv", range(1, 12))

STATISTICS = "statistics"


def convnets(family: Family, seed: int, batch_norm: Sequence[bool] = (True, False)) -> tuple[NetworkSettings, ...]:
    """One ConvNet a repeat, first those with batch norm, then those without.

    ``batch_norm`` always stands in the settings, ``(True,)`` alone too: a network that leaves it to the model's default
    would be trained again.

    Example:
        >>> from sdkernels.paper.networks import CONVNETS
        >>> networks = convnets(CONVNETS["quick"], 0)
        >>> [(network.options["batch_norm"], network.seed) for network in networks[3:5]]
        [(True, 3), (False, 0)]
    """
    return tuple(
        family.network(seed, repeat, batch_norm=norm) for norm in batch_norm for repeat in range(family.repeats)
    )


def statistics_condition(
    layers: Sequence[str], measured: int | None = None, *, on: str = "test", name: str = STATISTICS, **arguments: Any
) -> Condition:
    """Statistics of the layers' units over the test set, from which selectivity, mutual information and who is dead
    follow.

    Args:
        layers: as people name them; units are studied after their nonlinearity.
        measured: the first so many examples, or all.
        on: ``"test"``, as published, or ``"train"``.
        name: under which :meth:`sdkernels.lab.sweep.Networks.result` has them.
        arguments: further ones of :func:`sdkernels.unit_statistics`.
    """
    return Condition(name, "unit_statistics", tuple(layers), on, measured, arguments)
