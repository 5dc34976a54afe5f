import math

import numpy as np
import pytest

from kdjax.report.metrics import statistics
from kdjax.report.metrics.mcnemar import mcnemar


def answers(both, b, c, neither):
    """(right by A, right by B), in any order."""
    a = np.repeat([True, True, False, False], [both, b, c, neither])
    other = np.repeat([True, False, True, False], [both, b, c, neither])
    order = np.random.default_rng(0).permutation(len(a))
    return a[order], other[order]


def by_counting(b, c):
    """Two-sided: all splits of b + c examples that are no likelier than this one."""
    n = b + c
    return sum(math.comb(n, i) for i in range(n + 1) if math.comb(n, i) <= math.comb(n, b)) / 2**n


def by_the_normal(b, c):
    """chi-squared of one degree of freedom is a squared normal."""
    return math.erfc((abs(b - c) - 1) / math.sqrt(b + c) / math.sqrt(2))


@pytest.mark.parametrize(("b", "c"), [(1, 0), (0, 5), (3, 9), (10, 2), (12, 12), (13, 11), (24, 0)])
def test_of_few_it_is_exact(b, c):
    found = mcnemar(*answers(7, b, c, 4))
    assert found[:2] == (b, c)
    assert found.p == pytest.approx(by_counting(b, c), rel=1e-12)


@pytest.mark.parametrize(("b", "c"), [(25, 0), (13, 12), (10, 15), (40, 61), (300, 200)])
def test_of_many_it_is_chi_squared_with_the_correction(b, c):
    found = mcnemar(*answers(7, b, c, 4))
    assert found[:2] == (b, c)
    assert found.p == pytest.approx(by_the_normal(b, c), rel=1e-12)
    assert found.p == pytest.approx(by_counting(b, c), abs=0.01), "near the exact one"


def test_no_difference_is_certain_to_be_chance():
    nothing = np.zeros(0, bool)
    for a, b in [(nothing, nothing), answers(9, 0, 0, 3), answers(0, 4, 4, 0), answers(0, 30, 30, 0)]:
        assert mcnemar(a, b).p == 1.0


def test_it_does_not_matter_who_is_called_a():
    a, b = answers(5, 9, 3, 5)
    assert mcnemar(a, b).p == mcnemar(b, a).p


@pytest.mark.parametrize(("right", "of"), [(0, 29), (1, 29), (25, 29), (29, 29), (3, 4), (190, 200)])
def test_wilsons_interval_holds_the_shares_within_two_errors_of_what_was_seen(right, of):
    """Its ends are the shares p for which |right/of - p| = 1.96 sqrt(p (1 - p)/of)."""
    low, high = statistics.wilson(right, of)
    assert 0 <= low < high <= 1
    for p in {low, high} - {0.0, 1.0}:
        assert abs(right / of - p) == pytest.approx(1.959963984540054 * math.sqrt(p * (1 - p) / of), rel=1e-9)
    assert all(map(math.isnan, statistics.wilson(0, 0)))
