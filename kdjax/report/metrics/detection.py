"""Measures of detection on the host: scores in which higher means attack, against labels 0 (normal) and 1 (attack).

An alarm is a score above the threshold, strictly. With the counts tp, fp, fn, tn of attacks: accuracy (tp+tn)/n,
precision tp/(tp+fp), recall tp/(tp+fn), f1 2tp/(2tp+fp+fn), false_positive_rate fp/(fp+tn); auc is the probability that
an attack scores higher than a normal one, ties counted half (Mann and Whitney 1947); average_precision is the sum over
distinct scores of precision times the recall gained there. All are in [0, 1].

What a set cannot tell is nan, and left out of means over sets: without attacks precision, recall, f1, auc and
average_precision; without normals false_positive_rate and auc; of an empty set everything. With attacks but no alarm
precision is 0. Where a score is nan all measures are: a model that has diverged must not pass for one that finds
nothing.
"""

import math

import numpy as np
from jaxtyping import Float, Float64, Int64, Integer
from scipy.stats import rankdata

from kdjax.config import ConfigError
from kdjax.report.metrics import statistics

NAMES = ("f1", "auc", "accuracy", "precision", "recall", "average_precision", "false_positive_rate")
CALIBRATIONS = ("f1", "quantile", "original")

Scores = Float[np.ndarray, " n"]
Labels = Integer[np.ndarray, " n"]
Measures = dict[str, float]


def measure(scores: Scores, labels: Labels, threshold: float) -> Measures:
    """Every measure in `NAMES`."""
    _check_labels(labels)
    if not len(scores) or np.isnan(scores).any():
        return dict.fromkeys(NAMES, math.nan)
    (tn, fp), (fn, tp) = confusion(scores, labels, threshold).tolist()
    some = tp + fn > 0
    return {
        "f1": 2 * tp / (2 * tp + fp + fn) if some else math.nan,
        "auc": auc(scores, labels),
        "accuracy": (tp + tn) / len(scores),
        "precision": (tp / (tp + fp) if tp + fp else 0.0) if some else math.nan,
        "recall": tp / (tp + fn) if some else math.nan,
        "average_precision": average_precision(scores, labels),
        "false_positive_rate": fp / (fp + tn) if fp + tn else math.nan,
    }


def per_set(sets: dict[str, tuple[np.ndarray, np.ndarray]], threshold: float) -> dict[str, Measures]:
    """The measures of each test set, given as name -> (scores, labels)."""
    return {name: measure(scores, labels, threshold) for name, (scores, labels) in sets.items()}


def summarise(sets: dict[str, Measures]) -> statistics.Statistics:
    """{"f1": {"mean", "std", "n"}, ...} over the sets of `per_set`, each counted once whatever its size."""
    return statistics.over(list(sets.values()), NAMES)


def as_statistics(measures: Measures) -> statistics.Statistics:
    """One set's measures in the form of `summarise`: no spread, which one value does not have."""
    return {name: {"mean": value, "std": math.nan, "n": int(not math.isnan(value))} for name, value in measures.items()}


def confusion(scores: Scores, labels: Labels, threshold: float) -> Int64[np.ndarray, "2 2"]:
    """Counts [truth, alarm]: [[tn, fp], [fn, tp]]. A score that is nan is counted nowhere."""
    _check_labels(labels)
    known = ~np.isnan(scores)
    cell = 2 * labels[known].astype(np.int64) + (scores[known] > threshold)
    return np.bincount(cell, minlength=4).reshape(2, 2).astype(np.int64)


def auc(scores: Scores, labels: Labels) -> float:
    """The area under the ROC curve, from the ranks of the scores."""
    attacks, normals = int((labels == 1).sum()), int((labels == 0).sum())
    if not attacks or not normals or np.isnan(scores).any():
        return math.nan
    ranks = rankdata(scores)[labels == 1].sum()
    return float((ranks - attacks * (attacks + 1) / 2) / (attacks * normals))


def average_precision(scores: Scores, labels: Labels) -> float:
    tp, fp = _alarms(scores, labels)
    if not tp[-1] or np.isnan(scores).any():
        return math.nan
    return float(np.sum(np.diff(tp) / tp[-1] * (tp[1:] / (tp[1:] + fp[1:]))))


def roc(scores: Scores, labels: Labels) -> tuple[Float64[np.ndarray, " m"], Float64[np.ndarray, " m"]]:
    """False-positive rates and recalls at falling thresholds, from (0, 0) to (1, 1); nan for a class that is missing.

    Equal scores are one step, and points inside a straight piece are left out.
    """
    tp, fp = _alarms(scores, labels)
    bend = np.ones(len(tp), bool)
    bend[1:-1] = np.diff(tp)[:-1] * np.diff(fp)[1:] != np.diff(tp)[1:] * np.diff(fp)[:-1]
    rates = (x[bend] / x[-1] if x[-1] else np.full(bend.sum(), math.nan) for x in (fp, tp))
    return next(rates), next(rates)


def _alarms(scores: Scores, labels: Labels) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
    """True and false alarms with the threshold just below each distinct score, highest first, after none at all."""
    _check_labels(labels)
    order = np.argsort(scores, kind="stable")[::-1]
    falling = scores[order]
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], len(falling) > 0))  # of each run of equal scores
    tp = np.cumsum(labels[order] == 1)[last]
    return np.append(0, tp).astype(np.int64), np.append(0, last + 1 - tp).astype(np.int64)


def _check_labels(labels: Labels) -> None:
    strange = np.unique(labels[(labels != 0) & (labels != 1)])
    if len(strange):
        raise ValueError(
            f"labels: expected 0 (normal) and 1 (attack), found {', '.join(map(str, strange[:5]))}; leave out what is "
            "not labelled"
        )


def accuracy(predicted: Labels, truth: Labels) -> float:
    """The share of right classes among those whose truth is known (not negative); nan where there are none."""
    known = truth >= 0
    return float((predicted == truth)[known].mean()) if known.any() else math.nan


# -- thresholds ------------------------------------------------------------------------------------------------------


def calibrate(scores: Scores, labels: Labels, how: str = "f1", *, quantile: float = 0.95) -> float:
    """A threshold from the scores of validation data.

    - "f1": the largest F1. All thresholds in a gap between two neighbouring scores are the same there; of equally good
      gaps it is the widest, and the threshold its middle, far from either. Where nothing is better than to call all
      attack, it lies just below the lowest score.
    - "quantile": that quantile of the normal scores, so that about 1 - `quantile` of the normal ones raise an alarm.
      Needs no attacks.
    - "original": the median of all scores, which the authors take of the node errors of (normal) training graphs.
    """
    if how not in CALIBRATIONS:
        raise ConfigError(f"calibrate: expected one of {', '.join(CALIBRATIONS)}, found {how!r}")
    _check_labels(labels)
    kept = scores if how == "original" else scores[labels == 0]
    attacks, wrong = int((labels == 1).sum()), []
    if not np.isfinite(scores).all():
        wrong.append(f"expected finite scores, found {(~np.isfinite(scores)).sum()} that are not; the model diverged")
    if not len(kept):
        wrong.append(f"expected {'scores' if how == 'original' else 'scores of normal traffic'}, found none")
    if how == "f1" and not attacks:
        wrong.append("expected attacks to find, found none; how='quantile' needs normal traffic alone")
    if how == "quantile" and not 0 <= quantile <= 1:
        wrong.append(f"expected a quantile in [0, 1], found {quantile}")
    if wrong:
        raise ConfigError(f"no threshold can be calibrated by {how!r}: " + "; ".join(wrong))
    if how == "f1":
        return _best_f1(scores.astype(np.float64), labels)
    return float(np.quantile(kept.astype(np.float64), 0.5 if how == "original" else quantile))


def _best_f1(scores: Float64[np.ndarray, " n"], labels: Labels) -> float:
    tp, fp = _alarms(scores, labels)
    f1 = 2 * tp / (tp + fp + tp[-1])
    distinct = np.unique(scores)[::-1]  # alarms i + 1 are those of a threshold between distinct[i] and distinct[i + 1]
    best = np.flatnonzero(f1[1:-1] == f1.max())
    if not len(best):
        return float(np.nextafter(distinct[-1], -np.inf))
    widest = best[np.argmax(distinct[best] - distinct[best + 1])]
    high, low = float(distinct[widest]), float(distinct[widest + 1])
    middle = low / 2 + high / 2
    return middle if low <= middle < high else low  # between neighbouring floats there is no middle
