"""Two folders of masks, predicted and true: every metric of every image, as a table."""

import csv
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from kdjax.config import ConfigError
from kdjax.data.images import files, masks
from kdjax.report.metrics import segmentation as metrics
from kdjax.report.metrics.segmentation import NAMES, Scores

SUFFIXES = ("_mask", "_pred")  # of a file name, before the extension; not part of the image's name


def compare_folders(
    predicted_dir: str | os.PathLike,
    truth_dir: str | os.PathLike,
    output_csv: str | os.PathLike,
    num_classes: int = 2,
    empty: str = "original",
) -> dict[str, Any]:
    """Compares masks of the same name, writes a CSV and returns {"images", "metrics", "per_class"} (`summarise`).

    Files pair by their place in their folder and their name without extension and without "_mask" or "_pred"; "x.png"
    beside "x_mask.png" is taken for the image itself, and "*_overlay" is passed over. Pixels are class ids, or values
    that stand for them as in the masks that the reader `folder` takes. The CSV has a line per image (for several
    classes: one per class and one, "all", for their mean) and ends with the mean, the standard deviation and the number
    of values. Raises one ConfigError that lists everything that is wrong, and then writes nothing.
    """
    metrics.check_empty(empty)
    faults: list[str] = []
    predicted, truth = (_mask_files(Path(d), faults) for d in (predicted_dir, truth_dir))
    if predicted and truth:
        faults += [
            f"{predicted[s]}: no true mask of that name in {truth_dir}" for s in sorted(predicted.keys() - truth)
        ]
        faults += [
            f"{truth[s]}: no prediction of that name in {predicted_dir}" for s in sorted(truth.keys() - predicted)
        ]
    read = [
        _reader(folder, own, others, num_classes, faults)
        for folder, own, others in ((predicted_dir, predicted, truth), (truth_dir, truth, predicted))
    ]
    rows: dict[str, Scores] = {}
    for stem in sorted(predicted.keys() & truth.keys()):
        try:
            p, t = read[0](predicted[stem]), read[1](truth[stem])
        except ConfigError as error:
            faults.append(str(error))
            continue
        if p.shape != t.shape:
            sizes = " and ".join(f"{m.shape[1]}x{m.shape[0]}" for m in (p, t))
            faults.append(f"{predicted[stem]} and {truth[stem]}: expected equal sizes, found {sizes}")
            continue
        rows[stem] = metrics.segmentation(p, t, num_classes, empty=empty)
    if faults:
        more = [f"... and {len(faults) - 30} more"] if len(faults) > 30 else []
        raise ConfigError("the folders cannot be compared:\n  " + "\n  ".join(faults[:30] + more))
    results = list(rows.values())
    summary = {
        "images": len(rows),
        "metrics": metrics.summarise(results),
        "per_class": metrics.summarise_classes(results),
    }
    _write_csv(Path(output_csv), rows, summary, several=num_classes > 2)
    return summary


def _mask_files(folder: Path, faults: list[str]) -> dict[str, Path]:
    """Image name -> file of its mask."""
    if not folder.is_dir():
        faults.append(f"{folder}: expected a folder of masks, found {'a file' if folder.exists() else 'nothing'}")
        return {}
    candidates: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in files.SUFFIXES and not path.stem.endswith("_overlay"):
            name = path.relative_to(folder).with_name(_image_name(path)).as_posix()
            candidates.setdefault(name, []).append(path)
    if not candidates:
        faults.append(f"{folder}: expected masks ({', '.join(files.SUFFIXES)}), found none")
    chosen = {}
    for name, paths in candidates.items():
        named = [p for p in paths if _image_name(p) != p.stem] or paths
        if len(named) > 1:
            faults.append(f"{folder}: expected one mask for {name!r}, found {', '.join(p.name for p in named)}")
        chosen[name] = named[0]
    return chosen


def _image_name(path: Path) -> str:
    for suffix in SUFFIXES:
        if path.stem.endswith(suffix) and path.stem != suffix:
            return path.stem.removesuffix(suffix)
    return path.stem


def _reader(
    folder: str | os.PathLike, own: dict[str, Path], others: dict[str, Path], num_classes: int, faults: list[str]
) -> Callable[[Path], UInt8[np.ndarray, "h w"]]:
    """How the masks of a folder are read; a value that stands for a class may be in those of the other folder alone."""
    paths = [str(path) for path in own.values()]
    values, unclear = masks.values_in(paths, files.read_plane, num_classes)
    if unclear and others:
        values, _ = masks.values_in([*paths, *map(str, others.values())], files.read_plane, num_classes)
        unclear = unclear if values is masks.UNCLEAR else []
    faults += [f"{folder}, its masks{fault.removeprefix('the masks')} with num_classes" for fault in unclear]
    return lambda path: masks.numbered(files.read_plane(str(path)), values, str(path))


def _write_csv(output: Path, rows: dict[str, Scores], summary: dict[str, Any], several: bool) -> None:
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
                writer.writerow([*key(stem, "all"), *_cells(metrics.class_mean(scores))])
                for k, of_class in scores.items() if several else ():
                    writer.writerow([*key(stem, k), *_cells(of_class)])
            for statistic in ("mean", "std", "n"):
                for scope, measured in scopes:
                    values = {name: measured[name][statistic] for name in NAMES}
                    writer.writerow([*key(statistic, scope), *_cells(values)])
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)


def _cells(values: dict[str, float | int]) -> list[str]:
    return ["" if math.isnan(values[name]) else f"{values[name]:.6g}" for name in NAMES]
