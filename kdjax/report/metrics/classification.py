"""Measures of classification on the host: logits [n, k] against labels 0 .. k-1; -1 is not labelled and left out.

accuracy and topN are shares of the labelled examples whose class has the largest, or one of the N largest, logits;
macro_f1 is the mean over the classes that occur among the labels of 2tp/(2tp+fp+fn), so that every model is measured
on the same classes; ece is the expected calibration error. All these are in [0, 1]. nll is the mean of -log p of the
true class, in nats, at least 0. macro_precision and macro_recall are means over the same classes of tp/(tp+fp), 0 for a
class that is never said, and of tp/(tp+fn); auc is the mean over them of the probability that an example of the class
has a larger probability of it than one of another class, ties counted half: with two classes the usual AUC.

Without labelled examples every measure is nan, and likewise where a logit of a labelled one is not finite: a model that
has diverged must not pass for one that guesses. The functions import scikit-learn when they are called: that takes a
second which the first step of training need not wait for.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, Integer

from kdjax.report.metrics import detection

BINS = 15  # of equal width, over [0, 1]; those of Guo et al.
TEMPERATURES = (0.01, 100.0)  # the least and the greatest

Logits = Float[np.ndarray, "n k"]
Labels = Integer[np.ndarray, " n"]


def measure(logits: Logits, labels: Labels, top: Sequence[int] = (5,)) -> dict[str, float]:
    """accuracy, topN for each N in `top` that is below the number of classes, macro_f1, ece and nll."""
    from sklearn.metrics import accuracy_score, f1_score, top_k_accuracy_score

    known, classes = labels >= 0, logits.shape[1]
    fewer = {f"top{n}": n for n in top if n < classes}
    names = ("accuracy", *fewer, "macro_f1", "ece", "nll")
    if not known.any() or not np.isfinite(logits[known]).all():
        return dict.fromkeys(names, math.nan)
    logits, labels = logits[known], labels[known]
    predicted, every = logits.argmax(axis=1), np.arange(classes)
    measures = {
        "accuracy": accuracy_score(labels, predicted),
        "macro_f1": f1_score(labels, predicted, average="macro", labels=np.unique(labels)),
        **certainty(logits, labels),
        **{name: top_k_accuracy_score(labels, logits, k=n, labels=every) for name, n in fewer.items()},
    }
    return {name: float(measures[name]) for name in names}


def macro(logits: Logits, labels: Labels) -> dict[str, float]:
    """macro_precision, macro_recall and auc; auc is nan where fewer than two classes occur."""
    known, names = labels >= 0, ("macro_precision", "macro_recall", "auc")
    if not known.any() or not np.isfinite(logits[known]).all():
        return dict.fromkeys(names, math.nan)
    logits, labels = logits[known].astype(np.float64), labels[known]
    each, occurring = per_class(confusion(logits, labels, logits.shape[1])), np.unique(labels)
    areas = [detection.auc(_odds(logits, c), (labels == c).astype(int)) for c in occurring.tolist()]
    means = each.precision[occurring].mean(), each.recall[occurring].mean(), np.mean(areas)
    return {name: float(value) for name, value in zip(names, means, strict=True)}


def _odds(logits: Float64[np.ndarray, "n k"], c: int) -> Float64[np.ndarray, " n"]:
    """log p_c/(1 - p_c): it orders examples as p_c does, and goes on to where p_c itself rounds to 1."""
    from scipy.special import logsumexp

    return logits[:, c] - logsumexp(np.delete(logits, c, axis=1), axis=1)


def certainty(logits: Logits, labels: Labels) -> dict[str, float]:
    """ece and nll: the measures that a temperature changes."""
    known = labels >= 0
    if not known.any() or not np.isfinite(logits[known]).all():
        return {"ece": math.nan, "nll": math.nan}
    return {"ece": ece(logits, labels), "nll": nll(logits, labels)}


def nll(logits: Logits, labels: Labels) -> float:
    """The mean of -log p of the true class, in nats."""
    from scipy.special import log_softmax

    logits, labels = logits[labels >= 0].astype(np.float64), labels[labels >= 0]
    return float(-log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean()) if len(labels) else math.nan


def temperature(logits: Logits, labels: Labels) -> float:
    """The T > 0 for which softmax(logits / T) has the least nll, in `TEMPERATURES`; Guo et al. 2017, section 4.2.

    It is 1 where no T is the best: without labels, where a logit is not finite, and where every example is told
    rightly, of which a smaller T is always surer.
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    counted = _counted(logits, labels)
    logits, labels = logits[counted].astype(np.float64), labels[counted]
    rows = np.arange(len(labels))
    margins = logits - logits[rows, labels][:, None]  # to the true class
    if not len(labels) or (margins.max(axis=1) <= 0).all():
        return 1.0
    scale = np.abs(margins).max()  # nll in 1/T is convex, and of one order of magnitude whatever that of the logits is

    def at(inverse: np.ndarray) -> tuple[float, np.ndarray]:
        log_p = log_softmax(inverse / scale * margins, axis=1)
        return -log_p[rows, labels].mean(), (np.exp(log_p) * margins).sum(axis=1).mean(keepdims=True) / scale

    bounds = [(scale / TEMPERATURES[1], scale / TEMPERATURES[0])]
    found = minimize(
        at, np.array([scale]), jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 0.0, "gtol": 1e-9}
    )
    return float(np.clip(scale / found.x[0], *TEMPERATURES))


class PerClass(NamedTuple):
    """Measures of each class in [0, 1], and how many labelled examples it has.

    nan is what cannot be told: recall and f1 of a class without examples, its precision where it is never said either.
    """

    precision: Float64[np.ndarray, " k"]
    recall: Float64[np.ndarray, " k"]
    f1: Float64[np.ndarray, " k"]
    support: Int64[np.ndarray, " k"]


def per_class(counts: Integer[np.ndarray, "k k"]) -> PerClass:
    """Precision tp/(tp+fp), recall tp/(tp+fn) and f1 of each class, from a table of `confusion`."""
    hits, said, there = counts.diagonal(), counts.sum(axis=0), counts.sum(axis=1)
    precision = np.where(said + there, hits / np.maximum(said, 1), math.nan)
    recall = np.where(there, hits / np.maximum(there, 1), math.nan)
    f1 = np.where(there, 2 * hits / np.maximum(said + there, 1), math.nan)
    return PerClass(precision, recall, f1, there.astype(np.int64))


def influence(logits: Logits, labels: Labels) -> Float64[np.ndarray, " n"]:
    """How fast macro_f1 grows with the weight of each example (the infinitesimal jackknife, Jaeckel 1972); they add up
    to 0. The variance of n examples' values, times n², over n is that of macro_f1 by the delta method.

    0 for an example without a label; nan for all where a logit of a labelled one is not finite.
    """
    known = labels >= 0
    if not np.isfinite(logits[known]).all():
        return np.full(len(labels), math.nan)
    counts = confusion(logits, labels, logits.shape[1])
    f1, size = per_class(counts).f1, counts.sum(axis=0) + counts.sum(axis=1)
    classes = np.flatnonzero(counts.sum(axis=1))
    there, said = (values[:, None] == classes for values in (labels, logits.argmax(axis=1)))
    moved = (2.0 * (there & said) - f1[classes] * (there.astype(float) + said)) / size[classes]
    return np.where(known, moved.sum(axis=1) / max(len(classes), 1), 0.0)


def ece(logits: Logits, labels: Labels) -> float:
    """Expected calibration error: Σ share |accuracy - confidence| over the bins of `calibration`.

    Guo et al. 2017, arXiv 1706.04599, equation 3; in [0, 1].
    """
    confidence, accuracy, share = calibration(logits, labels)
    return float(np.sum(share * np.abs(accuracy - confidence))) if len(share) else math.nan


def confusion(logits: Logits, labels: Labels, k: int) -> Int64[np.ndarray, "{k} {k}"]:
    """Counts [truth, prediction]. An example without a label or with a logit that is not finite is counted nowhere."""
    from sklearn.metrics import confusion_matrix

    counted = _counted(logits, labels)
    if not counted.any():
        return np.zeros((k, k), np.int64)
    return confusion_matrix(labels[counted], logits[counted].argmax(axis=1), labels=np.arange(k))


def calibration(
    logits: Logits, labels: Labels
) -> tuple[Float64[np.ndarray, " m"], Float64[np.ndarray, " m"], Float64[np.ndarray, " m"]]:
    """Mean confidence, accuracy and share of the examples in each bin of confidence that is not empty, rising.

    The confidence is the probability of the predicted class; bin i of `BINS` holds (i/BINS, (i+1)/BINS].
    """
    from sklearn.calibration import calibration_curve

    counted = _counted(logits, labels)
    if not counted.any():
        return np.zeros(0), np.zeros(0), np.zeros(0)
    logits, labels = logits[counted].astype(np.float64), labels[counted]
    top = 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)  # the largest entry of the softmax
    right = logits.argmax(axis=1) == labels
    accuracy, confidence = calibration_curve(right, top, n_bins=BINS)
    inner_edges = np.linspace(0, 1, BINS + 1)[1:-1]  # as calibration_curve has them; it does not tell the counts
    _, counts = np.unique(np.searchsorted(inner_edges, top), return_counts=True)
    return confidence, accuracy, counts / counts.sum()


def _counted(logits: Logits, labels: Labels) -> Bool[np.ndarray, " n"]:
    return (labels >= 0) & np.isfinite(logits).all(axis=1)
