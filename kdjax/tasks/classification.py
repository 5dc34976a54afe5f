"""Classification: one of several classes for each example, be it an image or a node of a graph."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kdjax.config import ConfigError, Data, Term
from kdjax.report.metrics import classification as metrics
from kdjax.tasks.task import Arrays, Predictions, Tested

SKETCHES, RIGHT, WRONG = 8, (0, 158, 115), (213, 94, 0)  # images that a tracker shows, and the colours of their frames
MIXING = ("mixup", "cutmix")  # the transforms that make a soft target of classes
EMBEDDINGS = ("features", "embedding")  # endpoints with a vector for each example
COUNTED = 100  # classes up to which the summary holds the confusions


@dataclass(frozen=True)
class Classification:
    """Supervised terms, measures and scores of classes; where examples are mixed, soft targets replace classes."""

    num_classes: int
    mixed: bool = False
    primary: ClassVar[str] = "accuracy"
    measures: ClassVar[tuple[str, ...]] = ("accuracy",)
    damages: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def of(cls, data: Data) -> "Classification":
        return cls(data.class_count, any(data.augment.get(name) for name in MIXING))

    def terms(self) -> dict[str, Term]:
        return {"ce": Term("soft_ce", label="target") if self.mixed else Term("ce", label="class")}

    def check(self, outputs: Mapping[str, Any]) -> None:
        """Refuses a model that does not give the logits this task needs."""
        shape = outputs["logits"].shape if "logits" in outputs else "no 'logits'"
        if "logits" not in outputs or shape[-1] != self.num_classes:
            raise ConfigError(
                f"classification of {self.num_classes} classes needs 'logits' [..., {self.num_classes}], the model "
                f"gives {shape}; set num_classes={self.num_classes} in its options"
            )

    def predict(self, outputs: dict[str, Array], batch: dict[str, Any]) -> dict[str, Array]:
        """`logits` of the classes, and `features` where the model has an endpoint of one vector for each example."""
        rank = batch["index"].ndim + 1
        vectors = [outputs[name] for name in EMBEDDINGS if name in outputs and outputs[name].ndim == rank]
        features = {"features": vectors[0].astype(jnp.float32)} if vectors else {}
        return {"logits": outputs["logits"].astype(jnp.float32), **features}

    def measure(self, outputs: dict[str, Array], batch: dict[str, Array]) -> dict[str, tuple[Array, Array]]:
        """NaN where a logit is not finite."""
        known, logits = batch["valid"] & batch["class_known"], outputs["logits"]
        right = ((logits.argmax(axis=-1) == batch["class"]) & known).sum().astype(jnp.float32)
        finite = jnp.isfinite(jnp.where(known[..., None], logits, 0.0)).all()
        return {"accuracy": (jnp.where(finite, right, jnp.nan), known.sum().astype(jnp.float32))}

    def gathered(self, predictions: Arrays, labels: np.ndarray) -> dict[str, float]:
        return {}

    def calibrate(self, predictions: Arrays, dataset: Any) -> dict[str, float]:
        """The largest logit needs no threshold."""
        return {}

    def test(self, predictions: Predictions, dataset: Any, calibrated: dict[str, float]) -> tuple[dict, list[list]]:
        """Accuracy, top-5 accuracy where there are more than five classes, macro F1, calibration error, confusions.

        The accuracies have the standard deviation of a share over examples. The table has a row for each example, with
        class -1 where it is not known.
        """
        logits, labels = predictions("test")["logits"], dataset.labels("test")
        known, predicted = labels >= 0, logits.argmax(axis=-1)
        right = ((predicted == labels) & np.isfinite(logits).all(axis=-1))[known].astype(float)
        statistics = {}
        for name, value in metrics.measure(logits, labels).items():
            share = name in ("accuracy", "top5")
            statistics[name] = {"mean": value, "std": _spread(value) if share else math.nan, "n": int(known.sum())}
        result: dict[str, Any] = {"metrics": statistics, "per_image": {"accuracy": right.tolist()}}
        if len(set(predicted[known])) == 1 < len(set(labels[known])):
            result["remark"] = f"gives every test {dataset.item} the class {self._names(dataset)[predicted[known][0]]}"
        if self.num_classes <= COUNTED:
            result["confusion"] = metrics.confusion(logits, labels, self.num_classes).tolist()
        rows = [[i, int(t), int(p)] for i, (t, p) in enumerate(zip(labels, predicted, strict=True))]
        return result, [[dataset.item, "class", "predicted"], *rows]

    def words(self, dataset: Any) -> dict[str, Any]:
        """How the report calls things."""
        return {"over": f"{int((dataset.labels('test') >= 0).sum())} test {dataset.item}s"}

    def sketches(self, predictions: Arrays, dataset: Any, split: str) -> dict[str, np.ndarray]:
        """The first images, framed in green where they are recognised and in red where not; nodes have none."""
        if "image" not in dataset.fields:
            return {}
        classes, framed = predictions["logits"].argmax(axis=-1), {}
        for i in range(min(SKETCHES, dataset.sizes[split])):
            right = classes[i] == dataset.labels(split)[i]
            framed[f"image_{i}"] = np.array(dataset.resized(split, i)["image"])
            for edge in (np.s_[:1], np.s_[-1:], np.s_[:, :1], np.s_[:, -1:]):
                framed[f"image_{i}"][edge] = RIGHT if right else WRONG
        return framed

    def pictures(self, tested: list[Tested]) -> dict[str, str]:
        """Confusions, calibration and embeddings of all models that were tested on what the last student was."""
        from kdjax.report.figures import classification, embeddings
        from kdjax.report.page import figure

        last = ([stage for stage in tested if stage.role == "student"] or tested)[-1]
        labels = last.dataset.labels("test")
        same = [stage for stage in tested if np.array_equal(stage.dataset.labels("test"), labels)]
        logits = {stage.title: stage.predicted["logits"] for stage in same}
        names = self._names(last.dataset)
        counts = {title: metrics.confusion(rows, labels, self.num_classes) for title, rows in logits.items()}
        beside = [stage for stage in same if "features" in stage.predicted and stage.role != "control"]
        vectors = {stage.title: stage.predicted["features"] for stage in beside}
        drawn = {
            f"confusions, of {int((labels >= 0).sum())} test {last.dataset.item}s": classification.confusions(
                counts, names
            ),
            "how often a model is right when it is so sure": classification.reliability(
                {title: (rows, labels) for title, rows in logits.items()}
            ),
            "t-SNE of the embeddings": embeddings.tsne(vectors, labels, names),
        }
        sections = {"Classification": "".join(figure(heading, svg, wide=True) for heading, svg in drawn.items())}
        shown = self._mistakes(last) if "image" in last.dataset.fields else ""
        return sections | ({f"Most confident mistakes: {escape(last.title)}": shown} if shown else {})

    def _mistakes(self, stage: Tested) -> str:
        from scipy.special import softmax

        from kdjax.report.figures.mistakes import mistakes

        dataset, logits = stage.dataset, stage.predicted["logits"].astype(np.float64)
        sure = softmax(logits / (stage.row.get("calibrated") or {}).get("temperature", 1.0), axis=1)
        labels, (_, called) = dataset.labels("test"), dataset.called("test")
        images = lambda i: np.asarray(dataset.resized("test", i)["image"])  # noqa: E731
        return mistakes(images, labels, logits.argmax(axis=1), sure, self._names(dataset), called)

    def _names(self, dataset: Any) -> list[str]:
        names = list(getattr(dataset, "image_classes", ()))
        return [*names, *map(str, range(len(names), self.num_classes))][: self.num_classes]


def _spread(share: float) -> float:
    """The standard deviation over examples of what is 1 for so many and 0 for the others."""
    return math.sqrt(share * (1 - share)) if share == share else math.nan
