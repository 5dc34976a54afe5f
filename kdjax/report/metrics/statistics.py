"""Statistics of many values: mean, standard deviation, number; the interval of a share."""

import math

import numpy as np

Statistics = dict[str, dict[str, float | int]]  # measure -> mean, std, n -> value


def over(values: list[dict[str, float]], names: tuple[str, ...]) -> Statistics:
    """The statistics of each measure in `names` without nan; the standard deviation divides by n."""
    result: Statistics = {}
    for name in names:
        defined = [v[name] for v in values if not math.isnan(v[name])]
        spread = float(np.std(defined)) if defined else math.nan
        result[name] = {"mean": mean(defined), "std": spread, "n": len(defined)}
    return result


def mean(values: list[float]) -> float:
    """The mean of the values that are not nan; nan where there are none."""
    defined = [v for v in values if not math.isnan(v)]
    return float(np.mean(defined)) if defined else math.nan


def wilson(right: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share, `right` of so many (Wilson 1927): inside [0, 1], honest for few, nan of none."""
    from scipy.stats import binomtest

    if not of:
        return math.nan, math.nan
    low, high = binomtest(right, of).proportion_ci(method="wilson")
    return float(low), float(high)
