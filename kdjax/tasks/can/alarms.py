"""What all tasks that end in an alarm have in common: thresholds, test sets, pictures. A higher score is an attack."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kdjax.report.figures import detection as detection_figures
from kdjax.report.figures import graphs as graph_figures
from kdjax.report.metrics import detection
from kdjax.report.metrics.pca import pca
from kdjax.report.page import figure
from kdjax.tasks.task import Tested

POINTS = 1500  # graphs in the picture of embeddings


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
    labels = labels if (labels >= 0).any() else np.zeros_like(labels)  # where nothing is known all pass for normal
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
        "per_class": {name: detection.as_statistics(of) for name, of in found.items()},
        "per_image": {"f1": [of["f1"] for of in found.values()]},
        "threshold": limit,
    }
    lines = zip(groups, dataset.begins("test"), labels, scores, strict=True)
    rows = [[name, f"{begin:.6f}", int(label), float(score), int(score > limit)] for name, begin, label, score in lines]
    return result, [["set", "begin", "label", "score", "alarm"], *rows]


def words(dataset: Any) -> dict[str, Any]:
    """How the report calls the test sets."""
    count = len(dict.fromkeys(dataset.groups))
    return {"group": "test set", "group_measures": ["auc"], "over": f"{count} test sets" if count > 1 else ""}


def pictures(heading: str, stages: list[Tested], xlabel: str) -> dict[str, str]:
    """Scores with the threshold, what they tell apart, and how the last student (else the last model) knows graphs."""
    of = ([one for one in stages if one.role == "student"] or stages)[-1]
    labels, groups = of.dataset.labels("test"), np.array(of.dataset.groups)
    known, limit = labels >= 0, of.row["threshold"]
    scores = of.predicted[:, 0]
    sets = {name: (groups == name) & known for name in dict.fromkeys(of.dataset.groups)}
    drawn = {
        f"scores of {of.title}": detection_figures.score_histograms(
            {name: (scores[some], labels[some]) for name, some in sets.items()}, limit, xlabel=xlabel
        ),
        f"alarms of {of.title}": detection_figures.confusions(
            {name: detection.confusion(scores[some], labels[some], limit) for name, some in sets.items()}
        ),
        "all test sets together": detection_figures.roc_curves(
            {one.title: (one.predicted[known, 0], labels[known]) for one in stages}
        ),
    }
    for one in stages:
        if alike := one.row.get("likeness"):
            drawn[f"CKA of the layers of {one.title} with its teacher's, on nodes of validation graphs"] = (
                detection_figures.likeness(np.array(alike["cka"], float), alike["teacher"], alike["student"])
            )
    wide = "".join(figure(title, svg, wide=True) for title, svg in drawn.items())
    return {heading: wide + embedding(of, groups, labels)}


def embedding(of: Tested, groups: np.ndarray, labels: np.ndarray) -> str:
    """What the model knows graphs by, where its predictions hold it: a plane of some graphs of every set."""
    if of.predicted.shape[1] < 3:
        return ""
    chosen = np.random.default_rng(0).permutation(len(labels))[:POINTS]
    points, share = pca(of.predicted[chosen, 1:])
    names = [f"{groups[i]}, {'attack' if labels[i] == 1 else 'normal'}" for i in chosen]
    title = f"embeddings of {of.title}, {len(chosen)} test graphs"
    return figure(title, detection_figures.embedding(points, names, share), wide=True)


def graphs(of: Tested) -> dict[str, str]:
    """A normal graph and an attack from the first test set that has both."""
    labels, groups = of.dataset.labels("test"), np.array(of.dataset.groups)
    for name in dict.fromkeys(of.dataset.groups):
        pair = [np.flatnonzero((groups == name) & (labels == label)) for label in (0, 1)]
        if all(map(len, pair)):
            shown = [_graph(of, name, label, int(where[0])) for label, where in enumerate(pair)]
            return {"Example graphs": figure("", graph_figures.example_graphs(shown), wide=True)}
    return {}


def _graph(of: Tested, group: str, label: int, i: int) -> dict[str, Any]:
    found = of.dataset.graph("test", i)
    kind = "attack" if label else "normal"
    links = np.bincount(found["senders"], minlength=len(found["name"]))
    links += np.bincount(found["receivers"], minlength=len(found["name"]))
    told = {"title": f"{group}, {kind}", "names": found["name"], "counts": links}
    return {**told, "senders": found["senders"], "receivers": found["receivers"]}
