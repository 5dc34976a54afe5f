"""Going through a split with a model."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from kdjax.tasks.task import Arrays
from kdjax.train import sharding
from kdjax.train.setup import Learner


def evaluate(
    learner: Learner,
    variables: dict,
    split: str,
    places: Int[np.ndarray, " m"] | None = None,
    change: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> tuple[dict[str, float], Arrays]:
    """The task's measures over a split, and its predictions for each of its examples, by a model's whole variables.

    With `places` over these examples of the split alone; `change` is done to each batch first.
    """
    sums: dict[str, list[float]] = {}
    predictions: Arrays = {}
    share = {"process": jax.process_index(), "processes": jax.process_count()}
    for local in learner.dataset.evaluate(split, learner.stage.data.batch_size, places=places, **share):
        batch = sharding.global_batch(change(local), learner.mesh)
        measures, predicted, index = jax.device_get(learner.evaluate_fn(variables, batch))
        for name, (total, seen) in measures.items():
            before = sums.setdefault(name, [0.0, 0.0])
            sums[name] = [before[0] + float(total), before[1] + float(seen)]
        for name, rows in predicted.items():
            if name not in predictions:
                predictions[name] = np.zeros((learner.dataset.sizes[split], *rows.shape[1:]), rows.dtype)
            predictions[name][index[index >= 0]] = rows[index >= 0]
    labels = learner.dataset.labels(split)
    if places is not None:
        labels, predictions = labels[places], {name: rows[places] for name, rows in predictions.items()}
    measures = {name: total / max(seen, 1.0) for name, (total, seen) in sums.items()}
    return measures | learner.task.gathered(predictions, labels), predictions
