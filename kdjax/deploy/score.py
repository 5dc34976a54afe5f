"""Scoring images: which of them were generated, how sure the model is of it, and where it sees it."""

import csv
import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from kdjax.config import Experiment
from kdjax.deploy import pictures, predict
from kdjax.models import statistics
from kdjax.report.figures import heat
from kdjax.train.kept import write
from kdjax.train.setup import task_of

TABLE, COLUMNS = "scores.csv", ("image", "verdict", "logit", "probability")
KINDS = ("class 0", "class 1")


def score(
    experiment: Experiment,
    workdir: str | Path,
    stage: str,
    weights: str,
    images: str | Path,
    output: str | Path,
    threshold: float | None = None,
) -> dict[str, Any]:
    """Writes `scores.csv`, a line for each image, and `NAME_heat.jpg`, what each patch says, where the model tells it.

    The verdict is by `threshold`, else by the one that was calibrated on validation data, else by probability one half.
    Everything wrong with the images is said at once, before anything is written. Returns how many images there were,
    how many of them were taken for class 1, what that is called, the threshold, and a warning or "".
    """
    images, output = Path(images).expanduser(), Path(output).expanduser()
    _, plain, variables, about, _ = predict.opened(experiment, workdir, stage, weights)
    if threshold is None:
        threshold = predict.calibrated(about).get("threshold", 0.0)
    kinds = tuple(json.loads(about.get("image_classes", "null")) or KINDS)
    targets = pictures.plan(images, output, ("heat",), pictures.bits_of(plain), {TABLE: ",".join(COLUMNS)})
    program = pictures.predicted(pictures.network_of(plain, variables), task_of(plain))
    output.mkdir(parents=True, exist_ok=True)
    top, rows, first, drawn = images if images.is_dir() else images.parent, [], [], []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for seen in pictures.going_through(list(targets), plain, experiment, variables, program, pool):
            logit = float(seen.rows["score"])
            first += [seen.small] if len(first) < statistics.MOST else []
            name = seen.path.relative_to(top).as_posix()
            rows.append([name, kinds[int(logit > threshold)], logit, probability(logit)])
            if "patches" in seen.rows:
                drawn.append(pool.submit(draw, targets[seen.path], seen.image, seen.rows["patches"], threshold))
        for picture in drawn:
            picture.result()
    write(output / TABLE, table(rows))
    found = sum(row[1] == kinds[1] for row in rows)
    warning = statistics.mismatch(plain.model, variables, np.stack(first))
    return {"images": len(rows), "found": found, "kind": kinds[1], "threshold": threshold, "warning": warning}


def draw(target: Path, image: UInt8[np.ndarray, "h w 3"], patches: Float[np.ndarray, "r c"], threshold: float) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    pictures.save(pictures.named(target, "heat"), heat.overlay(image, patches, threshold))


def probability(logit: float) -> float:
    return float(1 / (1 + np.exp(-np.clip(logit, -700, 700))))


def table(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    lines = csv.writer(text)
    lines.writerow(COLUMNS)
    lines.writerows([image, verdict, f"{logit:.6g}", f"{p:.6f}"] for image, verdict, logit, p in rows)
    return text.getvalue()
