"""Published claims tested against our numbers: what recipes import.

=============================  =======================================================================================
``claim``                      a claim with its verdict, and tables of them
``comparisons``                means and proportions: greater, at least, at most, near, agrees
``correlations``               ranks: rises, falls, has nothing to do with
``grouped``                    whether groups, as learning rates, explain a number, match its clusters, or are discrete
``intervals``, ``verdicts``    the 95 % intervals, all from scipy but Bonett and Wright's, and what they decide
=============================  =======================================================================================
"""

from sdkernels.paper.claims.claim import FAILS, HOLDS, UNTESTABLE, Claim, claims_table, claims_text, untestable
from sdkernels.paper.claims.comparisons import agrees, at_least, at_most, counted, greater, near, paired_greater
from sdkernels.paper.claims.correlations import correlated, pooled_correlation, uncorrelated

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
