r"""A confidence sequence for the mean of a finite population sampled without replacement: stop whenever you like.

Maths
-----
:math:`X_1, \dots, X_N \in [0, 1]` are N numbers in random order, :math:`\mu` is their mean, :math:`S_i` the sum of the
first i. Given the first i - 1, the next one's mean is that of the numbers still to come,

.. math:: m_i = \frac{N \mu - S_{i-1}}{N - i + 1}

Let :math:`\lambda_i \in [0, 1)` and a guess :math:`g_i \in [0, 1]` be predictable: functions of what came before i.
Fan, Grama, Liu 2015 (lemma 4.1) show

.. math:: e^{\lambda y - y^2 \psi(\lambda)} \le 1 + \lambda y \quad (y \ge -1)
          \qquad \psi(\lambda) = -\log(1 - \lambda) - \lambda

With :math:`y = X_i - g_i` the right-hand side has the mean :math:`1 + \lambda (m_i - g_i) \le e^{\lambda (m_i - g_i)}`,
so that

.. math:: \prod_{i \le n} \exp\bigl(\lambda_i (X_i - m_i) - (X_i - g_i)^2 \psi(\lambda_i)\bigr)

is a supermartingale that starts from 1; so is the same product for :math:`1 - X`. By Ville's inequality each of them
ever reaches :math:`2 / \alpha` with a probability of at most :math:`\alpha / 2`. Solved for :math:`\mu`: with
probability :math:`1 - \alpha`, for all n at once,

.. math::

   \left| \mu - \frac{\sum_i \lambda_i \bigl(X_i + \frac{S_{i-1}}{N - i + 1}\bigr)}{W_n} \right|
   \le \frac{\log(2 / \alpha) + \sum_i (X_i - g_i)^2 \psi(\lambda_i)}{W_n}
   \qquad W_n = \sum_{i \le n} \lambda_i \frac{N}{N - i + 1}

(Waudby-Smith & Ramdas 2020, the empirical Bernstein theorem). The intersection over all n so far holds as well, and so
does what is surely known, :math:`S_n / N \le \mu \le (S_n + N - n) / N`, which leaves a point at n = N.

The choice
----------
:math:`g_i` and :math:`\sigma_i^2` are the mean, and the mean of :math:`(X_j - g_j)^2`, of what came before, as though a
0 and a 1 had been seen to begin with. A half width of :math:`\epsilon`, the tolerance, is reached when
:math:`\sum_i \lambda_i \epsilon N / (N - i + 1) - (X_i - g_i)^2 \psi(\lambda_i)` reaches :math:`\log(2 / \alpha)`. Each
term is expected to be greatest where :math:`\psi'(\lambda) = \lambda / (1 - \lambda)` is
:math:`\epsilon N / (\sigma^2 (N - i + 1))`. Hence

.. math:: \lambda_i = \min\Bigl(\tfrac34, \frac{\epsilon}{\epsilon + \sigma_i^2 (1 - i / N)}\Bigr)

where N - i stands for N - i + 1, because weights of :math:`1 / (N - i)` put the centre on the sample mean. To first
order in :math:`\epsilon / \sigma^2` this stops at

.. math:: n = \frac{N A}{N + A} \qquad A = \frac{2 \log(2 / \alpha) \sigma^2}{\epsilon^2}

which is the central limit theorem's n, the finite population accounted for, with :math:`2 \log(2 / \alpha)` for the
square of the normal quantile: the price of looking at every n.
"""

from math import isfinite, log

import torch
from torch import Tensor

_LARGEST_RATE = 0.75  # psi is infinite at 1, which is what the last of a population would get


class ConfidenceSequence:
    r"""Intervals for the means of K finite populations of N numbers in [0, 1], sampled without replacement.

    For each series by itself: with probability ``confidence`` at least, its mean is within :attr:`bounds` after every
    example, from the first to the last. So the data may say when to stop. The order must be random, each as likely as
    any other; series may share it. How the examples are cut into updates makes no difference.

    Args:
        series: K.
        population: N, at least 1.
        confidence: of each series' intervals, all together; between 0 and 1.
        tolerance: the half width at which one means to stop, positive. Intervals hold whatever it is, and are made to
            be narrow early at this one.

    Raises:
        ValueError: a number out of its range.

    Source: Waudby-Smith & Ramdas 2020, *Confidence sequences for sampling without replacement*; the module's docstring
    derives it.

    Example:
        >>> order = torch.randperm(2000, generator=torch.Generator().manual_seed(0))
        >>> correct = (torch.arange(2000) % 10 > 0)[order]  # of 2000 examples, 90 % are classified correctly
        >>> sequence = ConfidenceSequence(1, 2000, confidence=0.95, tolerance=0.04)
        >>> for batch in correct.split(50):
        ...     sequence.update(batch[None])
        ...     if sequence.is_narrow.all():
        ...         break
        >>> sequence.count, sequence.bounds
        (tensor([500]), tensor([[0.8559, 0.9185]], dtype=torch.float64))
    """

    def __init__(self, series: int, population: int, *, confidence: float, tolerance: float) -> None:
        if series < 1:
            raise ValueError(f"ConfidenceSequence: series must be at least 1, got {series}")
        if population < 1:
            raise ValueError(f"ConfidenceSequence: population must be at least 1, got {population}")
        if not 0 < confidence < 1:
            raise ValueError(f"ConfidenceSequence: confidence must be between 0 and 1, like 0.95; got {confidence}")
        if not (tolerance > 0 and isfinite(tolerance)):
            raise ValueError(f"ConfidenceSequence: tolerance must be positive, like 0.01; got {tolerance}")
        self.population = population
        self.confidence = confidence
        self.tolerance = tolerance

        def zeros() -> Tensor:
            return torch.zeros(series, dtype=torch.float64)

        self._count = torch.zeros(series, dtype=torch.int64)
        self._total = zeros()  # of X
        self._spread = zeros()  # of (X - g)^2
        self._penalty = zeros() + log(2 / (1 - confidence))  # and of (X - g)^2 psi
        self._pull = zeros()  # of lambda (X + S / (N - i + 1))
        self._weight = zeros()  # W
        whole = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat(series, 1)  # [K, 2]
        self._intersection = whole  # its lower bound may come to be above its upper one: it is empty then
        self._last_interval = whole.clone()  # the intersection, while there was one

    def update(
        self,
        values: Tensor,  # [k, n]
        series: Tensor | None = None,  # [k]
    ) -> None:
        """Add the next n examples of some series.

        Args:
            values: ``[k, n]`` in the order in which they were drawn, 0 to 1; bool or floating.
            series: int64 ``[k]``, whose they are, each once; all K if None. Series need not keep up with each other.

        Raises:
            TypeError: a dtype that is not listed.
            ValueError: shapes that do not fit, values that are not within 0 to 1, more than the population has. Nothing
                is added then.
        """
        rows = self._rows(series)
        x = self._checked(values, rows)
        if x.numel() == 0:
            return
        N = self.population
        i = self._count[rows, None] + torch.arange(1, x.shape[1] + 1, dtype=torch.float64)  # [k, n]
        left = N - i + 1

        total = _running(self._total[rows], x)  # [k, n + 1]
        guess = (total[:, :-1] + 1) / (i + 1)
        squares = (x - guess) ** 2
        spread = _running(self._spread[rows], squares)
        variance = (spread[:, :-1] + 0.5) / (i + 1)
        rate = self.tolerance / (self.tolerance + variance * (1 - i / N))
        rate = rate.clamp(max=_LARGEST_RATE)

        psi = -torch.log1p(-rate) - rate
        penalty = _running(self._penalty[rows], squares * psi)
        pull = _running(self._pull[rows], rate * (x + total[:, :-1] / left))
        weight = _running(self._weight[rows], rate * N / left)
        centre, half = pull[:, 1:] / weight[:, 1:], penalty[:, 1:] / weight[:, 1:]
        self._intersect(rows, centre - half, centre + half)

        self._count[rows] += x.shape[1]
        sums = (self._total, total), (self._spread, spread), (self._penalty, penalty), (self._pull, pull)
        for kept, running in (*sums, (self._weight, weight)):
            kept[rows] = running[:, -1]

    @property
    def count(self) -> Tensor:
        """int64 ``[K]``: how many examples each series has seen."""
        return self._count.clone()

    @property
    def estimate(self) -> Tensor:
        """float64 ``[K]``: the mean of the examples seen; nan before the first."""
        return self._total / self._count

    @property
    def bounds(self) -> Tensor:
        """float64 ``[K, 2]``: the lower and the upper bound of each mean; the mean itself once all have been seen.

        Never empty: where the examples contradict each other, which has a probability below 1 - confidence, this is the
        last interval before they did, moved to what is still possible.
        """
        least = self._total / self.population
        most = (self._total + (self.population - self._count)) / self.population
        return torch.clamp(self._last_interval, least[:, None], most[:, None])

    @property
    def is_narrow(self) -> Tensor:
        """bool ``[K]``: is all of the interval within the tolerance of the estimate? False before the first example."""
        lower, upper = self.bounds.unbind(1)
        return torch.maximum(upper - self.estimate, self.estimate - lower) <= self.tolerance

    def _intersect(self, rows: Tensor, lower: Tensor, upper: Tensor) -> None:
        """Intersect with intervals ``[k, n]`` in turn, and keep the last intersection that is not empty."""
        before = self._intersection[rows]
        lowers = torch.cat([before[:, :1], lower], 1).cummax(1).values  # [k, n + 1]
        uppers = torch.cat([before[:, 1:], upper], 1).cummin(1).values
        self._intersection[rows] = torch.stack([lowers[:, -1], uppers[:, -1]], 1)
        last = (lowers <= uppers).sum(1, keepdim=True) - 1  # nested, so the ones that are not empty come first
        found = torch.cat([lowers.gather(1, last.clamp(min=0)), uppers.gather(1, last.clamp(min=0))], 1)
        self._last_interval[rows] = torch.where(last >= 0, found, self._last_interval[rows])

    def _rows(self, series: Tensor | None) -> Tensor:
        """The rows of the series given, int64 ``[k]``."""
        K = len(self._count)
        if series is None:
            return torch.arange(K)
        if series.dtype != torch.int64 or series.ndim != 1:
            raise ValueError(f"ConfidenceSequence.update: series is int64 [k], got {series.dtype} {list(series.shape)}")
        rows = series.cpu()
        if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= K):
            raise ValueError(
                f"ConfidenceSequence.update: series are numbered 0 to {K - 1}, got {int(rows.min())} to "
                f"{int(rows.max())}"
            )
        numbers, times = rows.unique(return_counts=True)
        if (times > 1).any():
            raise ValueError(
                f"ConfidenceSequence.update: series {int(numbers[times > 1][0])} is given {int(times.max())} times; "
                "give each once, with all its values in one row"
            )
        return rows

    def _checked(self, values: Tensor, rows: Tensor) -> Tensor:
        """The values as float64 ``[k, n]``, if they can be the next ones of these series."""
        if not (values.dtype == torch.bool or values.is_floating_point()):
            raise TypeError(f"ConfidenceSequence.update: values are bool or floating, got {values.dtype}")
        if values.ndim != 2 or len(values) != len(rows):
            raise ValueError(
                f"ConfidenceSequence.update: values for {len(rows)} series are [{len(rows)}, n], got "
                f"{list(values.shape)}"
            )
        x = values.detach().to("cpu", torch.float64)
        wrong = ~((x >= 0) & (x <= 1))  # nan too
        if wrong.any():
            row, column = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"ConfidenceSequence.update: values must be finite and within 0 to 1; series {int(rows[row])} has "
                f"{x[row, column].item()} at {column}; scale what has other bounds"
            )
        many = self._count[rows] + x.shape[1] > self.population
        if many.any():
            first = int(rows[many][0])
            raise ValueError(
                f"ConfidenceSequence.update: series {first} has seen {int(self._count[first])} of its population of "
                f"{self.population}, and {x.shape[1]} more are given; draw without replacement"
            )
        return x


def _running(start: Tensor, terms: Tensor) -> Tensor:
    """``start`` ``[k]`` and the sums after each term ``[k, n]``, as ``[k, n + 1]``, added one by one in this order."""
    return torch.cat([start[:, None], terms], 1).cumsum(1)
