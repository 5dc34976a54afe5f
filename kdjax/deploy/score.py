"""Scoring images: which of them were generated, how sure the model is of it, and where it sees it."""

import csv
import io
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from kdjax.config import ConfigError, Experiment, Stage
from kdjax.data.images import files
from kdjax.data.images.resize import resize
from kdjax.deploy import predict
from kdjax.distill.taps import Network
from kdjax.distill.teachers import build_model
from kdjax.experiment import checks
from kdjax.models import statistics
from kdjax.report.figures import heat
from kdjax.train import sharding
from kdjax.train.kept import write
from kdjax.train.setup import task_of

TABLE = "scores.csv"
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
    checks.validate(experiment)
    if jax.process_count() > 1:
        raise ConfigError("--mode=predict runs in one process; leave --coordinator out, or share out the images")
    images, output = Path(images).expanduser(), Path(output).expanduser()
    name, plain = predict.chosen(experiment, stage)
    _, plain, variables, about, _ = predict.load(plain, Path(workdir), name, weights)
    if threshold is None:
        threshold = predict.calibrated(about).get("threshold", 0.0)
    kinds = tuple(json.loads(about.get("image_classes", "null")) or KINDS)
    targets = predict.plan(images, output, ("heat",), predict.bits_of(plain))
    output.mkdir(parents=True, exist_ok=True)
    top, rows, seen = images if images.is_dir() else images.parent, [], []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        drawn = []
        for path, image, small, scored in scores_of(list(targets), plain, experiment, variables, pool):
            logit = float(scored["score"])
            seen += [small] if len(seen) < statistics.MOST else []
            rows.append([path.relative_to(top).as_posix(), kinds[int(logit > threshold)], logit, probability(logit)])
            if "patches" in scored:
                drawn.append(pool.submit(draw, targets[path], image, scored["patches"], threshold))
        for picture in drawn:
            picture.result()
    write(output / TABLE, table(rows))
    found = sum(row[1] == kinds[1] for row in rows)
    warning = statistics.mismatch(plain.model, variables, np.stack(seen))
    return {"images": len(rows), "found": found, "kind": kinds[1], "threshold": threshold, "warning": warning}


def scores_of(
    paths: list[Path], stage: Stage, experiment: Experiment, variables: dict, pool: ThreadPoolExecutor
) -> Iterator[tuple[Path, UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "s s 3"], dict[str, Any]]]:
    """Each image, the same as the model sees it, and what the task predicts of it. While a batch is scored the next is
    read."""
    mesh, side, bits = sharding.make_mesh(experiment.mesh), stage.data.image_size, predict.bits_of(stage)
    shares = sharding.shares(mesh)
    size = -(-min(stage.data.batch_size, len(paths)) // shares) * shares
    network, task = Network(build_model(stage.model, stage.dtype), names=tuple(stage.inputs.items())), task_of(stage)
    task.check(network.shapes(variables, {"image": jax.ShapeDtypeStruct((1, side, side, 3), np.float32)}))
    variables = sharding.place(variables, sharding.shardings(variables, mesh, experiment.mesh.rules))

    def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
        image = files.read_image(str(path), bits=bits)
        return image, resize(image, (side, side))

    def batch(chunk: list[Path]) -> list[Any]:
        return [pool.submit(read, path) for path in chunk]

    chunks = [paths[begin : begin + size] for begin in range(0, len(paths), size)]
    waiting = batch(chunks[0])
    for chunk, following in pairwise([*chunks, []]):
        pictures = [reading.result() for reading in waiting]
        image = np.zeros((size, side, side, 3), np.uint8)
        image[: len(chunk)] = np.stack([small for _, small in pictures])
        index = {"index": np.arange(size, dtype=np.int32)}
        scored = compiled(network, task)(variables, sharding.global_batch({"image": image, **index}, mesh))
        waiting = batch(following)
        scored = jax.device_get(scored)
        for i, path in enumerate(chunk):
            yield path, *pictures[i], {name: rows[i] for name, rows in scored.items()}


@cache
def compiled(network: Network, task: Any) -> Any:
    """(variables, a batch of images as files have them) -> what the task predicts of each."""

    def run(variables: dict, batch: dict[str, Any]) -> dict[str, jax.Array]:
        batch = {**batch, "image": batch["image"].astype(np.float32) / 255}
        return task.predict(network(variables, batch)[0], batch)

    return jax.jit(run)


def draw(target: Path, image: UInt8[np.ndarray, "h w 3"], patches: Float[np.ndarray, "r c"], threshold: float) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    predict.save(predict.named(target, "heat"), heat.overlay(image, patches, threshold))


def probability(logit: float) -> float:
    return float(1 / (1 + np.exp(-np.clip(logit, -700, 700))))


def table(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    lines = csv.writer(text)
    lines.writerow(["image", "verdict", "logit", "probability"])
    lines.writerows([image, verdict, f"{logit:.6g}", f"{p:.6f}"] for image, verdict, logit, p in rows)
    return text.getvalue()
