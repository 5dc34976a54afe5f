"""What is told of many values: mean, standard deviation, number."""

import math

import numpy as np

Statistics = dict[str, dict[str, float | int]]  # measure -> mean, std, n -> value


def over(values: list[dict[str, float]], names: tuple[str, ...]) -> Statistics:
    """Of each measure in `names`, nan left out; the standard deviation is that of these values (divided by n)."""
    found: Statistics = {}
    for name in names:
        kept = [v[name] for v in values if not math.isnan(v[name])]
        spread = float(np.std(kept)) if kept else math.nan
        found[name] = {"mean": mean(kept), "std": spread, "n": len(kept)}
    return found


def mean(values: list[float]) -> float:
    """Of those that are not nan; nan where there are none."""
    kept = [v for v in values if not math.isnan(v)]
    return float(np.mean(kept)) if kept else math.nan
