"""What all tasks that end in an alarm have in common: thresholds, test sets, pictures. A higher score is an attack."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kdjax.report import detection
from kdjax.tasks.tested import Tested


def measured(logits: Float[Array, "*b"], batch: dict[str, Array]) -> dict[str, tuple[Array, Array]]:
    """F1 of the alarms at logit 0, as (2 tp, 2 tp + fp + fn), and the mean probability of what was decided."""
    known = batch["valid"] & batch["labelled"]
    attack, alarm = (batch["class"] == 1) & known, (logits > 0) & known
    hits = 2.0 * (attack & alarm).sum()
    hits = jnp.where(jnp.isfinite(jnp.where(known, logits, 0.0)).all(), hits, jnp.nan)
    sure = jnp.where(known, jax.nn.sigmoid(jnp.abs(logits)), 0.0).sum()
    return {
        "f1": (hits, (attack.sum() + alarm.sum()).astype(jnp.float32)),
        "confidence": (sure, known.sum().astype(jnp.float32)),
    }


def threshold(scores: np.ndarray, labels: Int[np.ndarray, " n"]) -> float:
    """Of validation data: that of the best F1, or, where they have no attack, the 99th percentile."""
    known = labels >= 0
    some = (labels == 1).any()
    return detection.calibrate(scores[known], labels[known], "f1" if some else "quantile", quantile=0.99)


def tested(scores: np.ndarray, dataset: Any, limit: float) -> tuple[dict, list[list]]:
    """The measures of each test set and their mean over the sets, and a table with a row for each graph."""
    labels, groups = dataset.labels("test"), np.array(dataset.groups)
    found = {}
    for name in dict.fromkeys(dataset.groups):
        some = (groups == name) & (labels >= 0)
        found[name] = detection.measure(scores[some], labels[some], limit)
    result = {
        "metrics": detection.summarise(found),
        "per_class": {
            name: {k: {"mean": v, "std": float("nan"), "n": int((groups == name).sum())} for k, v in of.items()}
            for name, of in found.items()
        },
        "per_image": {"f1": [of["f1"] for of in found.values()]},
        "threshold": limit,
    }
    lines = zip(groups, dataset.begins("test"), labels, scores, strict=True)
    rows = [[name, f"{begin:.6f}", int(label), float(score), int(score > limit)] for name, begin, label, score in lines]
    return result, [["set", "begin", "label", "score", "alarm"], *rows]


def words(dataset: Any) -> dict[str, Any]:
    count = len(dict.fromkeys(dataset.groups))
    return {"group": "test set", "over": f"{count} test sets" if count > 1 else ""}


def pictures(heading: str, tested: list[Tested]) -> dict[str, str]:
    return {}
