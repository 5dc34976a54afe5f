"""Measures of detection on the host: scores in which higher means attack, against labels 0 (normal) and 1 (attack).

An alarm is a score above the threshold, strictly. With the counts tp, fp, fn, tn of attacks: accuracy (tp+tn)/n,
precision tp/(tp+fp), recall tp/(tp+fn), f1 2tp/(2tp+fp+fn), false_positive_rate fp/(fp+tn); auc is the probability that
an attack scores higher than a normal one, ties counted half (Mann and Whitney 1947); average_precision is the sum over
distinct scores of precision times the recall gained there. All are in [0, 1].

What a set cannot tell is nan, and left out of means over sets: without attacks precision, recall, f1, auc and
average_precision; without normals false_positive_rate and auc; of an empty set everything. With attacks but no alarm
precision is 0. Where a score is nan all measures are: a model that has diverged must not pass for one that finds
nothing.

scikit-learn computes what it defines alike; the functions import it when they are called, since that takes a second
which the first step of training need not wait for.
"""

import math
import warnings
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int64, Integer

from kdjax.config import ConfigError
from kdjax.report.metrics import statistics

NAMES = ("f1", "auc", "accuracy", "precision", "recall", "average_precision", "false_positive_rate")
CALIBRATIONS = ("f1", "accuracy", "quantile", "original")

Scores = Float[np.ndarray, " n"]
Labels = Integer[np.ndarray, " n"]
Measures = dict[str, float]


def measure(scores: Scores, labels: Labels, threshold: float) -> Measures:
    """Every measure in `NAMES`."""
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    _check_labels(labels)
    if not len(scores) or np.isnan(scores).any():
        return dict.fromkeys(NAMES, math.nan)
    alarms, normal = scores > threshold, labels == 0
    attacks = not normal.all()
    undefined: Any = 0.0  # Any, because scikit-learn's default makes a type checker expect text
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, alarms, average="binary", zero_division=undefined
    )
    return {
        "f1": float(f1) if attacks else math.nan,
        "auc": auc(scores, labels),
        "accuracy": float(accuracy_score(labels, alarms)),
        "precision": float(precision) if attacks else math.nan,
        "recall": float(recall) if attacks else math.nan,
        "average_precision": average_precision(scores, labels),
        "false_positive_rate": float(alarms[normal].mean()) if normal.any() else math.nan,
    }


def sides(scores: Scores, labels: Labels, threshold: float, kinds: tuple[str, ...]) -> Measures:
    """The share of each class that is told rightly, and the accuracy of calling all above logit 0, which is probability
    one half, class 1."""
    _check_labels(labels)
    if not len(scores) or np.isnan(scores).any():
        return dict.fromkeys([*(f"{kind}_accuracy" for kind in kinds), "accuracy_at_half"], math.nan)
    right = ((scores > threshold) == labels).astype(float)
    told = {f"{kind}_accuracy": statistics.mean(right[labels == i].tolist()) for i, kind in enumerate(kinds)}
    return {**told, "accuracy_at_half": float(((scores > 0) == labels).mean())}


def per_set(sets: dict[str, tuple[np.ndarray, np.ndarray]], threshold: float) -> dict[str, Measures]:
    """The measures of each test set, given as name -> (scores, labels)."""
    return {name: measure(scores, labels, threshold) for name, (scores, labels) in sets.items()}


def summarise(sets: dict[str, Measures]) -> statistics.Statistics:
    """{"f1": {"mean", "std", "n"}, ...} over the sets of `per_set`, each counted once whatever its size."""
    return statistics.over(list(sets.values()), tuple(next(iter(sets.values()), dict.fromkeys(NAMES))))


def as_statistics(measures: Measures) -> statistics.Statistics:
    """One set's measures in the form of `summarise`: no spread, which one value does not have."""
    return {name: {"mean": value, "std": math.nan, "n": int(not math.isnan(value))} for name, value in measures.items()}


def confusion(scores: Scores, labels: Labels, threshold: float) -> Int64[np.ndarray, "2 2"]:
    """Counts [truth, alarm]: [[tn, fp], [fn, tp]]. A score that is nan is counted nowhere."""
    from sklearn.metrics import confusion_matrix

    _check_labels(labels)
    known = ~np.isnan(scores)
    if not known.any():
        return np.zeros((2, 2), np.int64)
    return confusion_matrix(labels[known], scores[known] > threshold, labels=[0, 1])


def auc(scores: Scores, labels: Labels) -> float:
    """The area under the ROC curve."""
    from sklearn.metrics import roc_auc_score

    if len(np.unique(labels)) < 2 or np.isnan(scores).any():
        return math.nan
    return float(roc_auc_score(labels, _ranks(scores)))


def auc_by_example(sets: list[tuple[np.ndarray, np.ndarray]]) -> list[float]:
    """Jackknife pseudo-values (Tukey 1958) of the mean AUC over sets, set by set, those with one class left out.

    Their mean is the mean AUC, and the differences of two models on the same examples have the standard error of the
    difference of their AUCs, which is that of DeLong et al. 1988 but for terms of 1/n.
    """
    sets = [(scores, labels) for scores, labels in sets if not math.isnan(auc(scores, labels))]
    total = sum(len(scores) for scores, _ in sets)
    whole = statistics.mean([auc(scores, labels) for scores, labels in sets])
    values: list[float] = []
    for scores, labels in sets:
        ranks, own, without = _ranks(scores), auc(scores, labels), np.zeros(len(scores))
        for kind in (0, 1):
            mine, others = ranks[labels == kind], np.sort(ranks[labels != kind])
            below = (np.searchsorted(others, mine, "left") + np.searchsorted(others, mine, "right")) / (2 * len(others))
            placed = below if kind else 1 - below
            # With a single example of its class there is nothing left without it: it then stands for the whole.
            without[labels == kind] = (len(mine) * own - placed) / (len(mine) - 1) if len(mine) > 1 else own
        values += (whole + (total - 1) * (own - without) / len(sets)).tolist()
    return values


def average_precision(scores: Scores, labels: Labels) -> float:
    from sklearn.metrics import average_precision_score

    if not (labels == 1).any() or np.isnan(scores).any():
        return math.nan
    return float(average_precision_score(labels, _ranks(scores)))


def roc(scores: Scores, labels: Labels) -> tuple[Float64[np.ndarray, " m"], Float64[np.ndarray, " m"]]:
    """False-positive rates and recalls at falling thresholds, from (0, 0) to (1, 1); nan for a class that is missing.

    Equal scores are one step, and points inside a straight piece are left out.
    """
    from sklearn.exceptions import UndefinedMetricWarning
    from sklearn.metrics import roc_curve

    if not len(scores):
        return np.full(1, math.nan), np.full(1, math.nan)
    with warnings.catch_warnings(action="ignore", category=UndefinedMetricWarning):
        false_positive_rates, recalls, _ = roc_curve(labels, _ranks(scores), pos_label=1)
    return false_positive_rates, recalls


def _ranks(scores: Scores) -> Int64[np.ndarray, " n"]:
    """0, 1, ... in the order of the scores, equal ones alike: scikit-learn refuses infinite scores."""
    return np.unique(scores, return_inverse=True)[1]


def _check_labels(labels: Labels) -> None:
    strange = np.unique(labels[(labels != 0) & (labels != 1)])
    if len(strange):
        raise ValueError(
            f"labels: expected 0 (normal) and 1 (attack), found {', '.join(map(str, strange[:5]))}; leave out what is "
            "not labelled"
        )


# -- thresholds ------------------------------------------------------------------------------------------------------


def calibrate(scores: Scores, labels: Labels, how: str = "f1", *, quantile: float = 0.95) -> float:
    """A threshold from the scores of validation data.

    - "f1": the largest F1. All thresholds in a gap between two neighbouring scores are the same there; of equally good
      gaps it is the widest, and the threshold its middle, far from either. Where nothing is better than to call all
      attack, it lies just below the lowest score.
    - "accuracy": the largest accuracy, found in the same manner.
    - "quantile": that quantile of the normal scores, so that about 1 - `quantile` of the normal ones raise an alarm.
      Needs no attacks.
    - "original": the median of all scores, which the authors take of the node errors of (normal) training graphs.
    """
    if how not in CALIBRATIONS:
        raise ConfigError(f"calibrate: expected one of {', '.join(CALIBRATIONS)}, found {how!r}")
    _check_labels(labels)
    basis = scores if how == "original" else scores[labels == 0]
    attacks, faults = int((labels == 1).sum()), []
    if not np.isfinite(scores).all():
        faults.append(f"expected finite scores, found {(~np.isfinite(scores)).sum()} that are not; the model diverged")
    if not len(basis):
        faults.append(f"expected {'scores' if how == 'original' else 'scores of normal traffic'}, found none")
    if how in ("f1", "accuracy") and not attacks:
        faults.append("expected attacks to find, found none; how='quantile' needs normal traffic alone")
    if how == "quantile" and not 0 <= quantile <= 1:
        faults.append(f"expected a quantile in [0, 1], found {quantile}")
    if faults:
        raise ConfigError(f"no threshold can be calibrated by {how!r}: " + "; ".join(faults))
    if how in ("f1", "accuracy"):
        return _best(how, scores.astype(np.float64), labels)
    return float(np.quantile(basis.astype(np.float64), 0.5 if how == "original" else quantile))


def _best(how: str, scores: Float64[np.ndarray, " n"], labels: Labels) -> float:
    """The middle of the widest gap between neighbouring scores in which F1, or the accuracy, is largest."""
    # The alarms of entry i are the scores >= distinct[i], those of a threshold between distinct[i + 1] and distinct[i].
    distinct, first = np.unique(-scores, return_inverse=True)
    distinct = -distinct
    hits = np.cumsum(np.bincount(first, labels == 1))
    false = np.cumsum(np.bincount(first, labels == 0))
    attacks, normal = hits[-1], false[-1]
    value = 2 * hits / (hits + false + attacks) if how == "f1" else (hits + normal - false) / len(scores)
    best = np.flatnonzero(np.isclose(value[:-1], value.max(), rtol=1e-12, atol=0))
    if not len(best):
        return float(np.nextafter(distinct[-1], -np.inf))
    widest = best[np.argmax(distinct[best] - distinct[best + 1])]
    high, low = float(distinct[widest]), float(distinct[widest + 1])
    middle = low / 2 + high / 2
    return middle if low <= middle < high else low  # between neighbouring floats there is no middle
