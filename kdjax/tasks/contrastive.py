"""Contrastive learning: a model learns what belongs together, and is judged by who lies next to whom."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kdjax.config import MIXING, ConfigError, Data, Term
from kdjax.report.metrics import neighbours
from kdjax.tasks.classification import class_names, framed
from kdjax.tasks.task import Arrays, Predictions, Tested


@dataclass(frozen=True)
class Contrastive:
    """SupCon on an embedding. Rows of one class belong together, and the rows of one example; nobody says which class
    is which, so the measures ask neighbours and a linear probe."""

    embedding: str = "features"  # an endpoint [b, d]
    unlabelled: bool = False  # whether examples of no known class take part too, where their own views belong together
    neighbours: int = neighbours.NEIGHBOURS  # that vote
    primary: ClassVar[str] = "knn"
    measures: ClassVar[tuple[str, ...]] = ("knn",)
    damages: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def of(cls, data: Data, **options: Any) -> "Contrastive":
        if data.copies < 2:
            raise ConfigError(
                f"contrastive learning compares views of an example: expected data.copies of at least 2, found "
                f"{data.copies}"
            )
        if data.mixes:
            mixing = ", ".join(name for name in MIXING if data.augment.get(name))
            raise ConfigError(f"contrastive learning takes whole classes, which {mixing} would mix: leave that out")
        return cls(**options)

    def terms(self) -> dict[str, Term]:
        reads = {"labels": "batch:class", "index": "batch:index"}
        reads |= {"known": "batch:class_known"} if self.unlabelled else {}
        return {"supcon": Term("supcon", reads={"student": f"student:{self.embedding}", **reads})}

    def check(self, outputs: Mapping[str, Any]) -> None:
        """Refuses a model without the embedding."""
        if self.embedding not in outputs or len(outputs[self.embedding].shape) != 2:
            shape = outputs[self.embedding].shape if self.embedding in outputs else f"no {self.embedding!r}"
            raise ConfigError(
                f"contrastive learning needs {self.embedding!r} [b, d], the model gives {shape}; name a vector of its "
                f"{', '.join(outputs)} as the task's embedding"
            )

    def predict(self, outputs: dict[str, Array], batch: dict[str, Any]) -> dict[str, Array]:
        return {"features": outputs[self.embedding].astype(jnp.float32)}

    def measure(self, outputs: dict[str, Array], batch: dict[str, Array]) -> dict[str, tuple[Array, Array]]:
        """An example alone has no neighbours."""
        return {}

    def gathered(self, predictions: Arrays, labels: np.ndarray) -> dict[str, float]:
        """The share of examples whose class the nearest others of the split vote for; NaN where one is not finite."""
        return {"knn": share(neighbours.leave_one_out(predictions["features"], labels, self.neighbours), labels)}

    def calibrate(self, predictions: Arrays, dataset: Any) -> dict[str, float]:
        return {}

    def test(self, predictions: Predictions, dataset: Any, calibrated: dict[str, float]) -> tuple[dict, list[list]]:
        """The share of test examples that their neighbours in the labelled training data are right about, and that of
        a linear probe. The table has a row for each example, with class -1 where it is not known."""
        train, test, labels = predictions("train")["features"], predictions("test")["features"], dataset.labels("test")
        taught = np.where(dataset.labelled("train"), dataset.labels("train"), -1)
        voted = neighbours.knn(train, taught, test, self.neighbours)
        measured = {"knn": share(voted, labels), "probe": neighbours.linear_probe(train, taught, test, labels)}
        count = int((labels >= 0).sum())
        metrics = {
            name: {"mean": value, "std": math.sqrt(value * (1 - value)) if value == value else math.nan, "n": count}
            for name, value in measured.items()
        }
        right = (voted == labels)[labels >= 0].astype(float)
        rows = [[i, int(t), int(p)] for i, (t, p) in enumerate(zip(labels, voted, strict=True))]
        return {"metrics": metrics, "per_image": {"knn": right.tolist()}}, [
            [dataset.item, "class", "neighbours"],
            *rows,
        ]

    def words(self, dataset: Any) -> dict[str, Any]:
        return {"over": f"{int((dataset.labels('test') >= 0).sum())} test {dataset.item}s"}

    def sketches(self, predictions: Arrays, dataset: Any, split: str) -> dict[str, np.ndarray]:
        """The first images, framed in green where their neighbours are right about them and in red where not."""
        labels = dataset.labels(split)
        voted = neighbours.leave_one_out(predictions["features"], labels, self.neighbours)
        return framed(voted == labels, dataset, split)

    def pictures(self, tested: list[Tested]) -> dict[str, str]:
        """The embeddings of the stages that were tested on what the last was."""
        from kdjax.report.figures import embeddings
        from kdjax.report.page import figure

        last = tested[-1].dataset
        labels = last.labels("test")
        same = [stage for stage in tested if np.array_equal(stage.dataset.labels("test"), labels)]
        vectors = {stage.title: stage.predicted["features"] for stage in same}
        heading = "t-SNE of what contrastive learning made of the test data"
        drawn = embeddings.tsne(vectors, labels, class_names(last, int(labels.max(initial=0)) + 1))
        shown = figure(heading, drawn, wide=len(vectors) > 1)
        return {"Contrastive learning": shown if len(vectors) > 1 else f'<div class="curves">{shown}</div>'}


def share(answers: np.ndarray, labels: np.ndarray) -> float:
    """Of right answers among the examples whose class is known; NaN where one of them has no answer."""
    known = labels >= 0
    if not known.any() or (answers[known] < 0).any():
        return math.nan
    return float((answers == labels)[known].mean())
