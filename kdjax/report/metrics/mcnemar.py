"""Whether one of two models is right more often than the other, on the same examples."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

FEW = 25  # examples below which the test is exact


class McNemar(NamedTuple):
    """On how many examples A alone is right, and B alone; p, how likely a difference like this is among equals."""

    b: int
    c: int
    p: float


def mcnemar(right_a: Bool[np.ndarray, " n"], right_b: Bool[np.ndarray, " n"]) -> McNemar:
    """McNemar 1947: where exactly one of two equally good models is right, it is either with probability one half.

    Below `FEW` such examples p is that of the two-sided binomial test, exact; else that of (|b - c| - 1)² / (b + c)
    under chi-squared with one degree of freedom, with Edwards' continuity correction (1948). Without such examples, or
    with as many of either kind, p is 1. Examples whose truth is not known are left out before.
    """
    from scipy.stats import binomtest, chi2

    b, c = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    if b == c:
        return McNemar(b, c, 1.0)
    if b + c < FEW:
        return McNemar(b, c, float(binomtest(b, b + c).pvalue))
    return McNemar(b, c, float(chi2.sf((abs(b - c) - 1) ** 2 / (b + c), 1)))
