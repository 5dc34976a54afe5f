"""Metrics of segmentation on the host, one image and one foreground class at a time.

With the counts tp, fp, fn, tn of a class against everything else: dice 2tp/(2tp+fp+fn), iou tp/(tp+fp+fn), precision
tp/(tp+fp), recall tp/(tp+fn), specificity tn/(tn+fp), pixel_accuracy (tp+tn)/all, all in [0, 1]; and hd95 in pixels,
the 95th percentile of the distances from each border pixel of one mask to the border of the other, both directions
pooled (Huttenlocher et al. 1993; the pooling is medpy's).

Masks may be empty, and then some of these are 0/0. What counts instead is chosen with `empty`:

| empty      | hd95, both empty | hd95, one empty          | another metric that is 0/0        |
|------------|------------------|--------------------------|-----------------------------------|
| "original" | 0                | larger side of the image | 1 if both masks are empty, else 0 |
| "diagonal" | 0                | diagonal of the image    | 1 if both masks are empty, else 0 |
| "skip"     | nan              | nan                      | nan                               |

A nan is left out of the means; `n` says over how many images a mean was taken. Specificity of a class that fills the
whole image is 0/0 as well; it counts as 1 (no false alarm was possible), or nan under "skip".
"""

import math

import numpy as np
from jaxtyping import Bool, Integer
from scipy.spatial import KDTree

from kdjax.config import ConfigError
from kdjax.report.metrics import statistics
from kdjax.report.metrics.statistics import Statistics

NAMES = ("dice", "iou", "hd95", "precision", "recall", "specificity", "pixel_accuracy")
EMPTY = ("original", "diagonal", "skip")

Scores = dict[int, dict[str, float]]  # class id -> metric -> value


def segmentation(
    predicted: Integer[np.ndarray, "h w"],
    truth: Integer[np.ndarray, "h w"],
    num_classes: int,
    *,
    empty: str = "original",
) -> Scores:
    """Every metric for each foreground class 1 .. num_classes-1 of one image."""
    check_empty(empty)
    return {k: _one_class(predicted == k, truth == k, empty) for k in range(1, num_classes)}


def _one_class(p: Bool[np.ndarray, "h w"], t: Bool[np.ndarray, "h w"], empty: str) -> dict[str, float]:
    tp, claimed, there = (int(np.count_nonzero(m)) for m in (p & t, p, t))
    fp, fn = claimed - tp, there - tp
    tn = p.size - tp - fp - fn
    undefined = math.nan if empty == "skip" else float(claimed == there == 0)
    no_background = math.nan if empty == "skip" else 1.0
    return {
        "dice": _ratio(2 * tp, 2 * tp + fp + fn, undefined),
        "iou": _ratio(tp, tp + fp + fn, undefined),
        "hd95": _hd95(p, t, empty),
        "precision": _ratio(tp, tp + fp, undefined),
        "recall": _ratio(tp, tp + fn, undefined),
        "specificity": _ratio(tn, tn + fp, no_background),
        "pixel_accuracy": (tp + tn) / p.size,
    }


def _ratio(part: int, total: int, undefined: float) -> float:
    return part / total if total else undefined


def _hd95(p: Bool[np.ndarray, "h w"], t: Bool[np.ndarray, "h w"], empty: str) -> float:
    a, b = _border(p), _border(t)
    if len(a) and len(b):
        return float(np.percentile(np.concatenate([KDTree(b).query(a)[0], KDTree(a).query(b)[0]]), 95))
    if empty == "skip":
        return math.nan
    if not len(a) and not len(b):
        return 0.0
    return float(max(p.shape)) if empty == "original" else math.hypot(*p.shape)


def _border(mask: Bool[np.ndarray, "h w"]) -> Integer[np.ndarray, "n 2"]:
    """Pixels of the mask with one of their four neighbours outside it; beyond the image is outside."""
    m = np.pad(mask, 1)
    inner = m[:-2, 1:-1] & m[2:, 1:-1] & m[1:-1, :-2] & m[1:-1, 2:]
    return np.argwhere(mask & ~inner)


def check_empty(empty: str) -> None:
    if empty not in EMPTY:
        raise ConfigError(f"empty: expected one of {', '.join(EMPTY)}, found {empty!r}")


# -- over many images ------------------------------------------------------------------------------------------------


def summarise(rows: list[Scores]) -> Statistics:
    """{"dice": {"mean", "std", "n"}, ...} over images; the value of an image is the mean over its classes."""
    return statistics.over([class_mean(row) for row in rows], NAMES)


def summarise_classes(rows: list[Scores]) -> dict[str, Statistics]:
    """As `summarise`, for each foreground class; the keys are its id as JSON has it, "1"."""
    return {str(k): statistics.over([row[k] for row in rows], NAMES) for k in (rows[0] if rows else ())}


def class_mean(scores: Scores) -> dict[str, float]:
    """The mean of each metric over the classes of an image, nan left out."""
    return {name: statistics.mean([of_class[name] for of_class in scores.values()]) for name in NAMES}
