r"""Mutual information of a discretised activation and the class, from counts.

With :math:`p(l, b)` the fraction of examples of class :math:`l` in bin :math:`b`,

.. math:: I = \sum_{l,b} p(l, b) \log_2 \frac{p(l, b)}{p(l)\, p(b)}

in bits. Estimated from N examples it is too large on average; Miller and Madow's correction of each entropy,
:math:`\hat H + (m - 1) / 2N` nats with :math:`m` bins that are not empty, takes off most of that:

.. math:: I_{\text{MM}} = I + \frac{m_L + m_B - m_{LB} - 1}{2 N \ln 2}

Sources: Miller 1955, "Note on the bias of information estimates"; Panzeri, Treves 1996.
"""

import math
from typing import Literal, get_args

from torch import Tensor

from sdkernels.engine.arguments import is_one_of

Correction = Literal["none", "miller-madow"]


def bits_about_class(counts: Tensor, correction: Correction = "none") -> Tensor:
    """Bits about the class, float64 [U], of counts [L, U, B].

    Raises:
        ValueError: another correction.
    """
    if not is_one_of(correction, get_args(Correction)):
        raise ValueError(f"correction={correction!r}: choose 'none' or 'miller-madow'")
    joint = counts.double()
    of_bin, of_class, total = joint.sum(0), joint.sum(2), joint.sum((0, 2))  # [U, B], [L, U], [U]
    expected = of_class[:, :, None] * of_bin / total[:, None]
    ratio = (joint / expected).where(joint > 0, joint.new_ones(()))
    bits: Tensor = (joint * ratio.log2()).sum((0, 2)) / total
    if correction == "miller-madow":
        occupied = (of_class > 0).sum(0) + (of_bin > 0).sum(1) - (joint > 0).sum((0, 2)) - 1
        bits = bits + occupied / (2 * math.log(2) * total)
    return bits
