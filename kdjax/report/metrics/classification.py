"""Measures of classification on the host: logits [n, k] against labels 0 .. k-1; -1 is not labelled and left out.

accuracy and top5 are shares of the labelled examples whose class has the largest, or one of the five largest, logits;
macro_f1 is the mean over the classes that occur among the labels of 2tp/(2tp+fp+fn), so that every model is measured
on the same classes; ece is the expected calibration error. All are in [0, 1].

Without labelled examples every measure is nan, and likewise where a logit of a labelled one is not finite: a model that
has diverged must not pass for one that guesses. The functions import scikit-learn when they are called: that takes a
second which the first step of training need not wait for.
"""

import math

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, Integer

BINS = 15  # of equal width, over [0, 1]; those of Guo et al.

Logits = Float[np.ndarray, "n k"]
Labels = Integer[np.ndarray, " n"]


def measure(logits: Logits, labels: Labels) -> dict[str, float]:
    """accuracy, top5 where there are more than five classes, macro_f1 and ece."""
    from sklearn.metrics import accuracy_score, f1_score, top_k_accuracy_score

    known, classes = labels >= 0, logits.shape[1]
    names = ("accuracy", *(("top5",) if classes > 5 else ()), "macro_f1", "ece")
    if not known.any() or not np.isfinite(logits[known]).all():
        return dict.fromkeys(names, math.nan)
    logits, labels = logits[known], labels[known]
    predicted = logits.argmax(axis=1)
    measures = {
        "accuracy": accuracy_score(labels, predicted),
        "macro_f1": f1_score(labels, predicted, average="macro", labels=np.unique(labels)),
        "ece": ece(logits, labels),
    }
    if classes > 5:
        measures["top5"] = top_k_accuracy_score(labels, logits, k=5, labels=np.arange(classes))
    return {name: float(measures[name]) for name in names}


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
