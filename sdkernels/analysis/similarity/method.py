"""By which method two layers are compared, with all its settings: checked in one place, done in one place."""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from torch import Tensor

from sdkernels.analysis.similarity.canonical import Side, canonical, canonical_with_weights
from sdkernels.analysis.similarity.kernel_alignment import linear_cka
from sdkernels.analysis.similarity.moments import Moments
from sdkernels.analysis.similarity.whitening import TOLERANCE, Solver, Whitening, whiten
from sdkernels.engine.arguments import flag, is_one_of, number, whole_number

MethodWord = Literal["cca", "svcca", "pwcca", "cka"]
SideWord = Literal["smaller", "first", "second"]

# With fewer examples than this for each direction, correlations are much larger than they truly are.
EXAMPLES_A_DIRECTION = 5


_OTHER: dict[Side, Side] = {"first": "second", "second": "first"}


class Comparison(NamedTuple):
    """What comparing two layers gives."""

    distance: float  # 1 - similarity
    correlations: Tensor | None  # float64 [c], descending; None for cka
    weights: Tensor | None  # float64 [c]; for pwcca alone
    side: Side | None  # whose neurons weigh; for pwcca alone


@dataclass(frozen=True, kw_only=True)
class Method:
    r"""How alike two layers are, as a distance d = 1 - similarity.

    With canonical correlations :math:`\rho_1 \ge \rho_2 \ge \dots \ge \rho_c`, c being the smaller rank,

    ``"cca"``: :math:`d = 1 - \frac{1}{c} \sum_i \rho_i`. ``"svcca"``: the same after each layer was reduced to the
    principal directions that hold the part ``variance`` of its variance. ``"pwcca"``: :math:`d = 1 - \sum_i \alpha_i
    \rho_i / \sum_i \alpha_i` with weights as :func:`canonical` explains them. ``"cka"``: linear CKA.

    Args:
        method: one of these.
        side: of pwcca, whose neurons weigh: ``"first"``, ``"second"``, or those of the layer of fewer live units, the
            first of equals (``"smaller"``).
        compat: of pwcca, ``"svcca"`` for the weights of a widely used program; None: the paper's.
        variance: of svcca, which part of the variance to keep, within (0, 1].
        reduce: keep at most so many principal directions of each layer first; not for cka.
        debiased: of cka.
        tolerance: which part of the largest eigenvalue of a correlation matrix counts as 0; None: 1e-12.
        solver: ``"auto"``, ``"cholesky"``, ``"eigh"``, ``"svd"``.

    Raises:
        ValueError, TypeError: a value out of range, or one that the method does not use; says which use it.

    Example:
        >>> import torch
        >>> from sdkernels.analysis.similarity.method import Method
        >>> from sdkernels.analysis.similarity.moments import Moments
        >>> moments, method = Moments([2, 1], [(0, 1)]), Method(method="pwcca", side="first")
        >>> x = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> moments.add([x, x[:, :1]])
        >>> white = [method.whiten(moments, i, name) for i, name in enumerate("ab")]
        >>> method.compare(moments, 0, 1, *white).distance
        0.0
    """

    method: MethodWord = "cca"
    side: SideWord = "smaller"
    compat: Literal["svcca"] | None = None
    variance: float = 0.99
    reduce: int | None = None
    debiased: bool = False
    tolerance: float | None = None
    solver: Solver = "auto"

    def __post_init__(self) -> None:
        for name, words in (
            ("method", get_args(MethodWord)),
            ("side", get_args(SideWord)),
            ("compat", (None, "svcca")),
            ("solver", get_args(Solver)),
        ):
            given = getattr(self, name)
            if not is_one_of(given, words):
                raise ValueError(f"{name}={given!r}: choose one of {', '.join(map(repr, words))}")
        flag("debiased", self.debiased)
        object.__setattr__(self, "variance", number("variance", self.variance))
        if not 0 < self.variance <= 1:
            raise ValueError(
                f"variance={self.variance:g} must be within (0, 1]: a part of the variance, 0.99 for instance"
            )
        if self.tolerance is not None:
            object.__setattr__(self, "tolerance", number("tolerance", self.tolerance))
            if not 0 <= self.tolerance < 1:
                raise ValueError(f"tolerance={self.tolerance} must be within [0, 1): a part of the largest eigenvalue")
        if self.reduce is not None:
            what = "an int, a number of principal directions, or None"
            object.__setattr__(self, "reduce", whole_number("reduce", self.reduce, 1, what=what))
        for name, default, used_by in (
            ("side", "smaller", ("pwcca",)),
            ("compat", None, ("pwcca",)),
            ("variance", 0.99, ("svcca",)),
            ("debiased", False, ("cka",)),
            ("reduce", None, ("cca", "svcca", "pwcca")),
            ("solver", "auto", ("cca", "svcca", "pwcca")),
        ):
            given = getattr(self, name)
            if given != default and self.method not in used_by:
                raise ValueError(
                    f"{name}={given!r} says nothing to method={self.method!r}; it is for "
                    f"{' and '.join(map(repr, used_by))}. Leave it out, or choose the method that you mean"
                )

    @property
    def is_whitened(self) -> bool:
        """Whether layers are whitened: for all but cka."""
        return self.method != "cka"

    @property
    def is_weighted(self) -> bool:
        """Whether correlations count by the neurons of one layer: for pwcca alone."""
        return self.method == "pwcca"

    @property
    def is_symmetric(self) -> bool:
        """Whether exchanging the two layers changes nothing: for all but pwcca."""
        return not self.is_weighted

    @property
    def settings(self) -> dict[str, Any]:
        """Those that count for this method, for results; all but the method, ``side`` and ``compat``."""
        if self.method == "cka":
            return {"debiased": self.debiased}
        own = {"variance": self.variance} if self.method == "svcca" else {}
        return own | {"reduce": self.reduce, "tolerance": self.whitening["tolerance"], "solver": self.solver}

    @property
    def whitening(self) -> dict[str, Any]:
        """What is kept of each layer, as :func:`~sdkernels.analysis.similarity.whitening.whiten` takes it."""
        return {
            "tolerance": TOLERANCE if self.tolerance is None else self.tolerance,
            "variance": self.variance if self.method == "svcca" else None,
            "reduce": self.reduce,
        }

    def moments(self, widths: list[int], pairs: list[tuple[int, int]], **options: Any) -> Moments:
        """What is to be summed of blocks of columns; ``options`` as :class:`Moments` takes them."""
        return Moments(widths, pairs, row_norms=self.debiased, **options)

    def whiten(self, moments: Moments, i: int, name: str = "a") -> Whitening:
        """Block i whitened, once for all comparisons.

        Raises:
            ValueError: as :func:`~sdkernels.analysis.similarity.whitening.whiten` does.
        """
        return whiten(
            moments.scatter(i),
            moments.count,
            rounding=moments.rounding(i),
            solver=self.solver,
            name=name,
            **self.whitening,
        )

    def compare(
        self,
        moments: Moments,
        i: int,
        j: int,
        white_i: Whitening | None = None,
        white_j: Whitening | None = None,
        *,
        names: tuple[str, str] = ("a", "b"),
    ) -> Comparison:
        """Compare block i, the first, with block j, whose scatter with i was summed.

        Args:
            moments: of both; for debiased CKA with ``row_norms=True``.
            white_i, white_j: of :meth:`whiten`; not used by cka.
            names: for messages.

        Raises:
            ValueError: too few examples for the two ranks.
        """
        return self._both(moments, i, j, white_i, white_j, names, backwards=False)[0]

    def compare_both(
        self,
        moments: Moments,
        i: int,
        j: int,
        white_i: Whitening | None = None,
        white_j: Whitening | None = None,
        *,
        names: tuple[str, str] = ("a", "b"),
    ) -> tuple[Comparison, Comparison]:
        """Compare block i with block j, and block j with block i, by one decomposition; as :meth:`compare` does."""
        return self._both(moments, i, j, white_i, white_j, names, backwards=True)

    def _both(
        self,
        moments: Moments,
        i: int,
        j: int,
        white_i: Whitening | None,
        white_j: Whitening | None,
        names: tuple[str, str],
        *,
        backwards: bool,
    ) -> tuple[Comparison, Comparison]:
        """Of i with j, and of j with i if that is asked for: else twice the first."""
        if not self.is_whitened:
            distance = 1 - float(linear_cka(moments, i, j, debiased=self.debiased, names=names))
            return (Comparison(distance, None, None, None),) * 2
        if white_i is None or white_j is None:
            raise ValueError(
                f"method={self.method!r} takes both whitenings: whiten() each of {names[0]} and {names[1]}"
            )
        check_examples(white_i, white_j, names)
        between = None if white_i.variates is not None and white_j.variates is not None else moments.scatter(i, j)
        if not self.is_weighted:
            correlations, _ = canonical(white_i, white_j, between)
            return (Comparison(1 - min(float(correlations.mean()), 1.0), correlations, None, None),) * 2
        side, other = self._side(white_i, white_j), _OTHER[self._side(white_j, white_i)]  # both as seen from i
        sides = (side, other) if backwards and other != side else (side,)
        correlations, weights = canonical_with_weights(white_i, white_j, between, sides=sides, compat=self.compat)
        found = [1 - min(float(own @ correlations), 1.0) for own in weights]
        return (
            Comparison(found[0], correlations, weights[0], side),
            Comparison(found[-1], correlations, weights[-1], _OTHER[sides[-1]]),
        )

    def _side(self, white_i: Whitening, white_j: Whitening) -> Side:
        if self.side != "smaller":
            return self.side
        return "first" if white_i.live <= white_j.live else "second"


def check_examples(white_a: Whitening, white_b: Whitening, names: tuple[str, str] = ("a", "b")) -> None:
    """Refuse ranks that make correlations 1 whatever the activations are.

    N centred examples span N - 1 dimensions. Subspaces of ranks p and q of these have p + q - (N - 1) directions in
    common, if that is above 0, of whatever kind they are.

    Raises:
        ValueError: there are such; names ranks, N, and what to do.
    """
    count, ranks = white_a.examples, (white_a.rank, white_b.rank)
    common = min(sum(ranks) - (count - 1), *ranks)
    if common <= 0:
        return
    raise ValueError(
        f"{names[0]} varies in {ranks[0]} directions and {names[1]} in {ranks[1]}, of only {count - 1} that {count} "
        f"examples leave: at least {common} of {min(ranks)} canonical correlations are 1 whatever the "
        f"activations are. Give more than {sum(ranks) + 1} examples (at least {EXAMPLES_A_DIRECTION} times the larger "
        "rank; for maps, positions='each' makes every position one), reduce=K, which keeps K principal directions of "
        "each, method='svcca', which keeps those that hold most variance, or method='cka'"
    )


def few_examples(white_a: Whitening, white_b: Whitening, names: tuple[str, str] = ("a", "b")) -> str | None:
    """What a user should be told where examples are few beside the ranks; None where they are not."""
    count, rank = white_a.examples, max(white_a.rank, white_b.rank)
    if count >= EXAMPLES_A_DIRECTION * rank:
        return None
    chance = math.sqrt(rank / (count - 1))
    return (
        f"{count} examples are few for the {white_a.rank} and {white_b.rank} directions of {names[0]} and {names[1]}: "
        f"unrelated activations would have correlations of about {chance:.2f} (root mean square). Give at least "
        f"{EXAMPLES_A_DIRECTION} times the larger rank, or keep fewer directions by reduce= or method='svcca'"
    )
