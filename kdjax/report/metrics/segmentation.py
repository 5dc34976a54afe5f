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

import csv
import math
import os
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer
from scipy.spatial import KDTree

from kdjax.config import ConfigError
from kdjax.report.metrics import statistics
from kdjax.report.metrics.statistics import Statistics

NAMES = ("dice", "iou", "hd95", "precision", "recall", "specificity", "pixel_accuracy")
EMPTY = ("original", "diagonal", "skip")
SUFFIXES = ("_mask", "_pred")  # of a file name, before the extension; not part of the image's name
MASK_FILES = (".png", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".jpg", ".jpeg")

Scores = dict[int, dict[str, float]]  # class id -> metric -> value


def segmentation(
    predicted: Integer[np.ndarray, "h w"],
    truth: Integer[np.ndarray, "h w"],
    num_classes: int,
    *,
    empty: str = "original",
) -> Scores:
    """Every metric for each foreground class 1 .. num_classes-1 of one image."""
    _check_empty(empty)
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


def _check_empty(empty: str) -> None:
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


# -- two folders of masks --------------------------------------------------------------------------------------------


def compare_folders(
    predicted_dir: str | os.PathLike,
    truth_dir: str | os.PathLike,
    output_csv: str | os.PathLike,
    num_classes: int = 2,
    empty: str = "original",
) -> dict[str, Any]:
    """Compares masks of the same name, writes a CSV and returns {"images", "metrics", "per_class"} (`summarise`).

    Files pair by their place in their folder and their name without extension and without "_mask" or "_pred"; "x.png"
    beside "x_mask.png" is taken for the image itself, and "*_overlay" is passed over. Pixels are class ids, or 0 and
    255 for two classes. The CSV has a line per image (for several classes: one per class and one, "all", for their
    mean) and ends with the mean, the standard deviation and the number of values. Raises one ConfigError that lists
    everything that is wrong, and then writes nothing.
    """
    _check_empty(empty)
    faults: list[str] = []
    predicted, truth = (_mask_files(pathlib.Path(d), faults) for d in (predicted_dir, truth_dir))
    if predicted and truth:
        faults += [
            f"{predicted[s]}: no true mask of that name in {truth_dir}" for s in sorted(predicted.keys() - truth)
        ]
        faults += [
            f"{truth[s]}: no prediction of that name in {predicted_dir}" for s in sorted(truth.keys() - predicted)
        ]
    rows: dict[str, Scores] = {}
    for stem in sorted(predicted.keys() & truth.keys()):
        p, t = (_read_mask(path, num_classes, faults) for path in (predicted[stem], truth[stem]))
        if p is None or t is None:
            continue
        if p.shape != t.shape:
            sizes = " and ".join(f"{m.shape[1]}x{m.shape[0]}" for m in (p, t))
            faults.append(f"{predicted[stem]} and {truth[stem]}: expected equal sizes, found {sizes}")
            continue
        rows[stem] = segmentation(p, t, num_classes, empty=empty)
    if faults:
        more = [f"... and {len(faults) - 30} more"] if len(faults) > 30 else []
        raise ConfigError("the folders cannot be compared:\n  " + "\n  ".join(faults[:30] + more))
    results = list(rows.values())
    summary = {"images": len(rows), "metrics": summarise(results), "per_class": summarise_classes(results)}
    _write_csv(pathlib.Path(output_csv), rows, summary, several=num_classes > 2)
    return summary


def _mask_files(folder: pathlib.Path, faults: list[str]) -> dict[str, pathlib.Path]:
    """Image name -> file of its mask."""
    if not folder.is_dir():
        faults.append(f"{folder}: expected a folder of masks, found {'a file' if folder.exists() else 'nothing'}")
        return {}
    candidates: dict[str, list[pathlib.Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in MASK_FILES and not path.stem.endswith("_overlay"):
            name = path.relative_to(folder).with_name(_image_name(path)).as_posix()
            candidates.setdefault(name, []).append(path)
    if not candidates:
        faults.append(f"{folder}: expected masks ({', '.join(MASK_FILES)}), found none")
    chosen = {}
    for name, paths in candidates.items():
        named = [p for p in paths if _image_name(p) != p.stem] or paths
        if len(named) > 1:
            faults.append(f"{folder}: expected one mask for {name!r}, found {', '.join(p.name for p in named)}")
        chosen[name] = named[0]
    return chosen


def _image_name(path: pathlib.Path) -> str:
    for suffix in SUFFIXES:
        if path.stem.endswith(suffix) and path.stem != suffix:
            return path.stem.removesuffix(suffix)
    return path.stem


def _read_mask(path: pathlib.Path, num_classes: int, faults: list[str]) -> np.ndarray | None:
    """Class ids [h, w], or None with a line added to `faults`."""
    from PIL import Image

    try:
        with Image.open(path) as file:
            stored = np.asarray(file)
    except (OSError, ValueError, SyntaxError) as error:
        faults.append(f"{path}: cannot be read as an image: {error}")
        return None
    if stored.dtype.kind == "f":
        faults.append(f"{path}: expected whole numbers, one for each class, found floats; convert it first")
        return None
    mask = stored.astype(np.int64)
    if mask.ndim == 3:
        colours = mask[..., : 1 if mask.shape[-1] == 2 else 3]  # without alpha
        if (colours != colours[..., :1]).any():
            faults.append(f"{path}: expected class ids in one channel, found colours; convert it first")
            return None
        mask = colours[..., 0]
    ids = np.unique(mask)
    if num_classes == 2 and np.isin(ids, (0, 255)).all():
        return mask // 255
    if ids[0] < 0 or ids[-1] >= num_classes:
        allowed = f"0..{num_classes - 1}" + (" (or 0 and 255)" if num_classes == 2 else "")
        strange = [int(i) for i in ids if not 0 <= i < num_classes]
        listed = ", ".join(map(str, strange[:5])) + (", ..." if len(strange) > 5 else "")
        remedy = "JPEG does not keep ids, use PNG" if path.suffix.lower() in (".jpg", ".jpeg") else "or more classes"
        faults.append(f"{path}: expected ids {allowed}, found {listed}; mend the mask, {remedy}")
        return None
    return mask


def _write_csv(output: pathlib.Path, rows: dict[str, Scores], summary: dict[str, Any], several: bool) -> None:
    """Under another name first, so that a full disk leaves an older file as it was."""
    scopes = [("all", summary["metrics"]), *(summary["per_class"].items() if several else ())]
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_name(output.name + ".part")
    try:
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            key = lambda image, scope: [image, scope] if several else [image]  # noqa: E731
            writer.writerow([*key("image", "class"), *NAMES])
            for stem, scores in rows.items():
                writer.writerow([*key(stem, "all"), *_cells(class_mean(scores))])
                for k, of_class in scores.items() if several else ():
                    writer.writerow([*key(stem, k), *_cells(of_class)])
            for statistic in ("mean", "std", "n"):
                for scope, metrics in scopes:
                    values = {name: metrics[name][statistic] for name in NAMES}
                    writer.writerow([*key(statistic, scope), *_cells(values)])
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)


def _cells(values: dict[str, float | int]) -> list[str]:
    return ["" if math.isnan(values[name]) else f"{values[name]:.6g}" for name in NAMES]
