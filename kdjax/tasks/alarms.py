"""What all tasks that end in an alarm have in common: thresholds, test sets, pictures.

A higher score speaks for class 1: an attack, an image that was generated.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kdjax.config import ConfigError
from kdjax.report.figures import detection as detection_figures
from kdjax.report.figures import graphs as graph_figures
from kdjax.report.metrics import detection
from kdjax.report.page import figure
from kdjax.tasks.task import Arrays, Predictions, Tested

POINTS = 1500  # examples in the picture of embeddings
FIRST = {"f1": ("f1", "auc", "accuracy"), "auc": ("auc", "accuracy", "average_precision")}  # by the measure that counts


def measured(logits: Float[Array, "*b"], batch: dict[str, Any]) -> dict[str, tuple[Array, Array]]:
    """F1 of the alarms at logit 0, as (2 tp, 2 tp + fp + fn), and the mean probability of what was decided."""
    known = batch["valid"] & batch["class_known"]
    attack, alarm = (batch["class"] == 1) & known, (logits > 0) & known
    hits = 2.0 * (attack & alarm).sum()
    hits = jnp.where(jnp.isfinite(jnp.where(known, logits, 0.0)).all(), hits, jnp.nan)
    sure = jnp.where(known, jax.nn.sigmoid(jnp.abs(logits)), 0.0).sum()
    return {
        "f1": (hits, (attack.sum() + alarm.sum()).astype(jnp.float32)),
        "confidence": (sure, known.sum().astype(jnp.float32)),
    }


def area(scores: np.ndarray, labels: Int[np.ndarray, " n"]) -> float:
    """The AUC of what is known; refused where one of the two classes is missing, for it then means nothing."""
    known = labels >= 0
    if len(set(labels[known])) < 2:
        there = f"class {labels[known][0]} alone" if known.any() else "no label at all"
        raise ConfigError(
            f"the validation data have {there}, and an AUC needs both classes; give them examples of both"
        )
    return detection.auc(scores[known], labels[known])


def embedded(outputs: dict[str, Array]) -> dict[str, Array]:
    """The model's embedding of each graph, where it gives one."""
    return {"embedding": outputs["embedding"]} if "embedding" in outputs else {}


def threshold(scores: np.ndarray, labels: Int[np.ndarray, " n"], of: str = "f1") -> float:
    """The threshold of the best F1 on validation data (or of the best of `detection.CALIBRATIONS`), or the 99th
    percentile where they have no attack."""
    labels = labels if (labels >= 0).any() else np.zeros_like(labels)  # where nothing is known all pass for normal
    known = labels >= 0
    has_attacks = (labels == 1).any()
    return detection.calibrate(scores[known], labels[known], of if has_attacks else "quantile", quantile=0.99)


def tested(scores: np.ndarray, dataset: Any, limit: float, by: str) -> tuple[dict, list[list]]:
    """The measures of each test set and their mean over the sets, the one that counts first, and a table with a row for
    each example."""
    labels, groups = dataset.labels("test"), np.array(dataset.groups)
    sets = {name: (groups == name) & (labels >= 0) for name in dict.fromkeys(dataset.groups)}
    measures = {}
    for name, chosen in sets.items():
        known = scores[chosen], labels[chosen]
        sides = detection.sides(*known, limit, dataset.kinds) if by == "auc" else {}
        measures[name] = dict.fromkeys(FIRST[by], 0.0) | detection.measure(*known, limit) | sides
    result: dict[str, Any] = {
        "metrics": detection.summarise(measures),
        "per_class": {name: detection.as_statistics(values) for name, values in measures.items()},
        "per_image": {"f1": [values["f1"] for values in measures.values()]},
        "threshold": limit,
    }
    if by == "auc":
        result["per_image"] = {"auc": detection.auc_by_example([(scores[at], labels[at]) for at in sets.values()])}
    alarms = scores[labels >= 0] > limit
    if len(alarms) and alarms.all() == alarms.any():
        which = dataset.kinds[int(alarms.any())]
        result["remark"] = f"takes every test {dataset.item} for {which!r}"
    heading, names = dataset.called("test")
    lines = zip(groups, names, labels, scores, strict=True)
    rows = [[group, name, int(label), float(score), int(score > limit)] for group, name, label, score in lines]
    return result, [["set", heading, "label", "score", "alarm"], *rows]


class Scored:
    """What all tasks share whose prediction has a `score`, from whose threshold on an example is of class 1."""

    by: str = "f1"  # the measure that counts
    damages: tuple[str, ...] = ()

    def calibrate(self, predictions: Arrays, dataset: Any) -> dict[str, float]:
        return {"threshold": threshold(predictions["score"], dataset.labels("val"))}

    def gathered(self, predictions: Arrays, labels: Int[np.ndarray, " n"]) -> dict[str, float]:
        return {}

    def test(self, predictions: Predictions, dataset: Any, calibrated: dict[str, float]) -> tuple[dict, list[list]]:
        calibrated = calibrated or self.calibrate(predictions("val"), dataset)
        return tested(predictions("test")["score"], dataset, calibrated["threshold"], self.by)

    def sketches(self, predictions: Arrays, dataset: Any, split: str) -> dict[str, np.ndarray]:
        """A graph is no picture."""
        return {}

    def words(self, dataset: Any) -> dict[str, Any]:
        """How the report calls the test sets."""
        count = len(dict.fromkeys(dataset.groups))
        sets = f"{count} test sets" if count > 1 else ""
        if self.by != "auc":
            return {"group": "test set", "group_measures": ["auc"], "over": sets}
        told = f"{int((dataset.labels('test') >= 0).sum())} test {dataset.item}s"  # which its interval is over
        return {"group": "test set", "group_measures": ["accuracy"], "over": f"{sets}, {told}" if sets else told}


def pictures(heading: str, stages: list[Tested], xlabel: str) -> dict[str, str]:
    """Scores with the threshold, ROC curves, and embeddings of graphs by the last student (else the last model)."""
    last = ([stage for stage in stages if stage.role == "student"] or stages)[-1]
    labels, groups = last.dataset.labels("test"), np.array(last.dataset.groups)
    known, limit = labels >= 0, last.row["threshold"]
    scores = last.predicted["score"]
    sets = {name: (groups == name) & known for name in dict.fromkeys(last.dataset.groups)}
    drawn = {
        f"scores of {last.title}": detection_figures.score_histograms(
            {name: (scores[chosen], labels[chosen]) for name, chosen in sets.items()},
            limit,
            xlabel=xlabel,
            kinds=last.dataset.kinds,
        ),
        f"verdicts of {last.title}": detection_figures.confusions(
            {name: detection.confusion(scores[chosen], labels[chosen], limit) for name, chosen in sets.items()},
            last.dataset.kinds,
        ),
        "all test sets together": detection_figures.roc_curves(
            {stage.title: (stage.predicted["score"][known], labels[known]) for stage in stages}
        ),
    }
    for stage in stages:
        if alike := stage.row.get("likeness"):
            drawn[f"CKA of the layers of {stage.title} with its teacher's, on nodes of validation graphs"] = (
                detection_figures.likeness(np.array(alike["cka"], float), alike["teacher"], alike["student"])
            )
    wide = "".join(figure(title, svg, wide=True) for title, svg in drawn.items())
    return {heading: wide + embedding(last, groups, labels)}


def embedding(stage: Tested, groups: np.ndarray, labels: np.ndarray) -> str:
    """The embeddings of some examples of every set on a plane, where the model's predictions hold embeddings."""
    from sklearn.decomposition import PCA  # takes a second to import, and training needs none of it

    known = stage.predicted.get("embedding", np.zeros((0, 0)))
    if known.shape[1] < 2 or len(labels) < 2:
        return ""
    chosen = np.random.default_rng(0).permutation(len(labels))[:POINTS]
    features = known[chosen].astype(np.float64)
    if not 0 < np.ptp(features, axis=0).max() < np.inf:  # a model that collapsed or diverged spans no plane
        return ""
    plane = PCA(2, svd_solver="full")
    points, share = plane.fit_transform(features), plane.explained_variance_ratio_
    names = [f"{groups[i]}, {stage.dataset.kinds[int(labels[i] == 1)]}" for i in chosen]
    title = f"embeddings of {stage.title}, {len(chosen)} test {stage.dataset.item}s"
    return figure(title, detection_figures.embedding(points, names, share), wide=True)


def graphs(stage: Tested) -> dict[str, str]:
    """A normal graph and an attack from the first test set that has both."""
    labels, groups = stage.dataset.labels("test"), np.array(stage.dataset.groups)
    for name in dict.fromkeys(stage.dataset.groups):
        pair = [np.flatnonzero((groups == name) & (labels == label)) for label in (0, 1)]
        if all(map(len, pair)):
            shown = [_graph(stage, name, label, int(where[0])) for label, where in enumerate(pair)]
            return {"Example graphs": figure("", graph_figures.example_graphs(shown), wide=True)}
    return {}


def _graph(stage: Tested, group: str, label: int, i: int) -> dict[str, Any]:
    example = stage.dataset.graph("test", i)
    kind = "attack" if label else "normal"
    links = np.bincount(example["senders"], minlength=len(example["name"]))
    links += np.bincount(example["receivers"], minlength=len(example["name"]))
    drawn = {"title": f"{group}, {kind}", "names": example["name"], "counts": links}
    return {**drawn, "senders": example["senders"], "receivers": example["receivers"]}
