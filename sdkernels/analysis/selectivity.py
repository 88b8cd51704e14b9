r"""The class selectivity index, from class-conditional means.

.. math:: \mathrm{selectivity} = \frac{\mu_{\max} - \mu_{-\max}}{\mu_{\max} + \mu_{-\max}}

with :math:`\mu_{\max}` a unit's largest class-conditional mean activation and :math:`\mu_{-\max}` its mean over the
other classes (Morcos et al. 2018, section 2.3): 0 where all classes are alike, 1 where only one makes the unit active.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from sdkernels.engine.arguments import is_one_of

Kind = Literal["macro", "micro"]
Negative = Literal["raise", "nan", "shift"]


def class_selectivity(
    class_mean: Tensor,  # [L, U]
    class_examples: Tensor,  # [L]
    kind: Kind = "macro",
) -> Tensor:
    """The index of each unit, float64 [U]; nan where no class has a mean above 0.

    Args:
        class_mean: float64 ``[L, U]``, not negative; whatever it is for classes without examples.
        class_examples: int64 ``[L]``.
        kind: what the other classes' mean is: ``"macro"`` of their means, ``"micro"`` of all their examples.

    Raises:
        ValueError: another kind, or fewer than two classes with examples.
    """
    if not is_one_of(kind, get_args(Kind)):
        raise ValueError(f"kind={kind!r}: 'macro' is the mean of the other classes' means, 'micro' of their examples")
    seen = class_examples > 0
    if int(seen.sum()) < 2:
        raise ValueError(
            f"selectivity compares classes, and the data has examples of {int(seen.sum())} of {len(seen)}: give data "
            "with at least two"
        )
    means = class_mean[seen]
    weights = torch.ones_like(class_examples[seen]) if kind == "macro" else class_examples[seen]
    greatest, preferred = means.max(0)
    rest = means.scatter(0, preferred[None], 0.0)
    others = (rest * weights[:, None]).sum(0) / (weights.sum() - weights[preferred])
    return torch.where(greatest > 0, (greatest - others) / (greatest + others), torch.nan)
