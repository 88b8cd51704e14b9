"""Published claims tested against our numbers: what recipes import.

===================================  ==============================================================================
in :mod:`sdkernels.paper.claim`      a claim with its verdict, and tables of them
``...paper.comparisons``             means and proportions: greater, at least, at most, near, agrees
``...paper.correlations``            ranks: rises, falls, has nothing to do with
``...paper.intervals``, ``verdicts`` the 95 % intervals, all from scipy but Bonett and Wright's, and what they decide
===================================  ==============================================================================
"""

from sdkernels.paper.claim import FAILS, HOLDS, UNTESTABLE, Claim, claims_table, claims_text, untestable
from sdkernels.paper.comparisons import agrees, at_least, at_most, counted, greater, near, paired_greater
from sdkernels.paper.correlations import correlated, pooled_correlation, uncorrelated

__all__ = [
    "FAILS",
    "HOLDS",
    "UNTESTABLE",
    "Claim",
    "agrees",
    "at_least",
    "at_most",
    "claims_table",
    "claims_text",
    "correlated",
    "counted",
    "greater",
    "near",
    "paired_greater",
    "pooled_correlation",
    "uncorrelated",
    "untestable",
]
