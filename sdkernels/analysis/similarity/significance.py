r"""Bartlett's sequential test: how many canonical correlations are there, beyond what chance gives?

Unrelated activations, too, have canonical correlations above 0, the more so the fewer examples there are. Whether those
from the (k + 1)-th on are zero in truth is tested by

.. math:: \chi^2_k = -\left(n - 1 - \tfrac{p + q + 1}{2}\right) \sum_{i > k} \ln(1 - \rho_i^2)

which then is about chi-square distributed with :math:`(p - k)(q - k)` degrees of freedom. The multiplier is Bartlett's,
the same for every k. Others put :math:`n - 1 - k - (p + q + 1) / 2 + \sum_{i \le k} \rho_i^{-2}` in its place (Lawley
1959, MATLAB's ``canoncorr``): never less, so that Bartlett's finds, if anything, fewer correlations.
"""

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from sdkernels.analysis.extras import require
from sdkernels.engine.arguments import number, whole_number


@dataclass(frozen=True, eq=False, kw_only=True)
class Significance:
    """How many canonical correlations are significant, and the test of each.

    Attributes:
        count: m; the first m correlations are significant, one after another.
        statistics: float64 ``[c]``; entry k tests whether all correlations but the first k are zero; inf where one of
            them is 1.
        degrees: int64 ``[c]``, the degrees of freedom of each.
        p_values: float64 ``[c]``, how often chance alone gives as large a statistic.
        level: at most what p-value was counted as significant.
    """

    count: int
    statistics: Tensor
    degrees: Tensor
    p_values: Tensor
    level: float

    def to_pandas(self) -> Any:
        """A table, one row a test, by how many correlations come before those that it is of."""
        pandas = require("pandas", "Significance.to_pandas()")
        first = torch.arange(len(self.p_values))
        return pandas.DataFrame(
            {
                "beyond the first": first.numpy(),
                "statistic": self.statistics.numpy(),
                "degrees": self.degrees.numpy(),
                "p value": self.p_values.numpy(),
                "significant": (first < self.count).numpy(),
            }
        )


def bartlett(
    correlations: Tensor | ArrayLike, examples: int, rank_a: int, rank_b: int, level: float = 0.05
) -> Significance:
    r"""How many canonical correlations are significantly above zero, by Bartlett's sequential chi-square test.

    For k = 0, 1, ... it is tested whether all correlations but the first k are zero:

    .. math:: \chi^2_k = -\left(n - 1 - \tfrac{p + q + 1}{2}\right) \sum_{i > k} \ln(1 - \rho_i^2)
              \quad\text{with } (p - k)(q - k) \text{ degrees of freedom}

    and the first k for which nothing speaks against it is the count. Without any relation it is above 0 in a part
    ``level`` of all cases. The test takes examples for independent and about normal: positions of one image, or steps
    of one sequence, are not, and make it find too many.

    Args:
        correlations: ``[c]``, descending, within 0..1, c = min(rank_a, rank_b).
        examples: n, on which they were found.
        rank_a: p, how many directions the first activations vary in.
        rank_b: q, the second.
        level: the largest p-value that is significant.

    Returns:
        A :class:`Significance`: the count, and the test for every k.

    Raises:
        ValueError: no such correlations; too few examples; a level that is no probability.
        TypeError: a number of examples, or a rank, that is no int.

    Source:
        Bartlett 1941, "The statistical significance of canonical correlations"; Mardia, Kent, Bibby 1979,
        *Multivariate analysis*, section 10.2.

    Example:
        Head lengths and breadths of 25 pairs of brothers, as in the book:

        >>> from sdkernels.analysis.similarity.significance import bartlett
        >>> found = bartlett([0.7885, 0.0537], examples=25, rank_a=2, rank_b=2)
        >>> found.count, found.statistics, found.degrees
        (1, tensor([20.9634,  0.0621], dtype=torch.float64), tensor([4, 1]))
    """
    for name, count in (("examples", examples), ("rank_a", rank_a), ("rank_b", rank_b)):
        whole_number(name, count, 1)
    if not 0 < number("level", level) < 1:
        raise ValueError(f"level={level} must be above 0 and below 1, 0.05 for instance")
    level = float(level)
    rho = _checked(correlations, min(rank_a, rank_b), rank_a, rank_b)
    if examples <= rank_a + rank_b:
        raise ValueError(
            f"{examples} examples are too few to test correlations of {rank_a} with {rank_b} directions: it takes at "
            f"least {rank_a + rank_b + 1}, and with fewer some correlations are 1 whatever the data. Give more "
            "examples, or keep fewer directions, as SVCCA does"
        )
    multiplier = examples - 1 - (rank_a + rank_b + 1) / 2
    logs = ((1 - rho) * (1 + rho)).log()  # [c]; 1 - rho**2 would lose digits near 1
    statistics = -multiplier * logs.flip(0).cumsum(0).flip(0)
    before = torch.arange(len(rho))
    degrees = (rank_a - before) * (rank_b - before)
    p_values = torch.special.gammaincc(degrees.double() / 2, statistics / 2)
    is_chance = (p_values > level).nonzero()
    return Significance(
        count=int(is_chance[0]) if len(is_chance) else len(rho),
        statistics=statistics,
        degrees=degrees,
        p_values=p_values,
        level=float(level),
    )


def _checked(correlations: Tensor | ArrayLike, count: int, rank_a: int, rank_b: int) -> Tensor:
    """As float64 ``[c]``.

    Raises:
        ValueError: they cannot be the canonical correlations of such ranks.
    """
    rho = torch.as_tensor(correlations, dtype=torch.float64).detach().cpu()  # of a list too, whose default is float32
    if rho.shape != (count,):
        raise ValueError(
            f"correlations {list(rho.shape)} must be [{count}]: as many have activations of ranks {rank_a} and {rank_b}"
        )
    is_wrong = ~((rho >= 0) & (rho <= 1))  # of nan too
    if is_wrong.any():
        place = int(is_wrong.nonzero()[0])
        raise ValueError(f"correlation {place} is {float(rho[place])}; correlations must be within 0..1")
    if (rises := (rho.diff() > 0).nonzero()).numel():
        place = int(rises[0])
        raise ValueError(
            f"correlations must descend, but correlation {place + 1}, {float(rho[place + 1])}, is above the one before "
            f"it, {float(rho[place])}: sort them"
        )
    return rho
