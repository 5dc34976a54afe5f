"""Classification: one of several classes for each example, be it an image or a node of a graph."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kdjax.config import ConfigError, Data, Term
from kdjax.report.metrics import classification as metrics
from kdjax.tasks.task import Arrays, Predictions, Tested

SKETCHES, RIGHT, WRONG = 8, (0, 158, 115), (213, 94, 0)  # images that a tracker shows, and the colours of their frames
EMBEDDINGS = ("features", "embedding")  # endpoints with a vector for each example
COUNTED = 100  # classes up to which the summary holds the confusions


@dataclass(frozen=True)
class Classification:
    """Supervised terms, measures and scores of classes; where examples are mixed, soft targets replace classes."""

    num_classes: int
    mixed: bool = False
    top: tuple[int, ...] = (
        5,
    )  # how many of the largest logits may hold the class, for accuracies beside the plain one
    primary: ClassVar[str] = "accuracy"
    measures: ClassVar[tuple[str, ...]] = ("accuracy",)
    damages: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def of(cls, data: Data, top: tuple[int, ...] | list[int] = (5,)) -> "Classification":
        if small := [n for n in top if n < 2]:
            raise ConfigError(
                f"top: expected whole numbers above 1, the accuracy is that of 1 already, found {small[0]}"
            )
        return cls(data.class_count, data.mixes, tuple(top))

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
        return {"accuracy": accuracy(outputs["logits"], batch["class"], batch["valid"] & batch["class_known"])}

    def gathered(self, predictions: Arrays, labels: np.ndarray) -> dict[str, float]:
        return {}

    def calibrate(self, predictions: Arrays, dataset: Any) -> dict[str, float]:
        """The temperature by which logits are divided before they are probabilities."""
        return {"temperature": metrics.temperature(predictions["logits"], dataset.labels("val"))}

    def test(self, predictions: Predictions, dataset: Any, calibrated: dict[str, float]) -> tuple[dict, list[list]]:
        """Accuracy, top-N accuracy where there are more than N classes, macro F1, calibration error and negative log-
        likelihood, these two once more after temperature scaling, and confusions.

        The accuracies have the standard deviation of a share over examples. The table has a row for each example, with
        class -1 where it is not known.
        """
        predicted, labels = predictions("test"), dataset.labels("test")
        if not calibrated and dataset.sizes["val"]:
            calibrated = self.calibrate(predictions("val"), dataset)
        logits = predicted["logits"]
        answers = judged(logits, labels, scaled_logits(logits, calibrated), self.top)
        result: dict[str, Any] = {"metrics": answers.metrics, "per_image": {"accuracy": answers.right}, **calibrated}
        if answers.always is not None:
            name = class_names(dataset, self.num_classes)[answers.always]
            result["remark"] = f"gives every test {dataset.item} the class {name}"
        if answers.confusion:
            result["confusion"] = answers.confusion
        rows = [[i, int(t), int(p)] for i, (t, p) in enumerate(zip(labels, logits.argmax(axis=-1), strict=True))]
        return result, [[dataset.item, "class", "predicted"], *rows]

    def words(self, dataset: Any) -> dict[str, Any]:
        """How the report calls things."""
        return {"over": f"{int((dataset.labels('test') >= 0).sum())} test {dataset.item}s"}

    def sketches(self, predictions: Arrays, dataset: Any, split: str) -> dict[str, np.ndarray]:
        """The first images, framed in green where they are recognised and in red where not; nodes have none."""
        if "image" not in dataset.fields:
            return {}
        return framed(predictions["logits"].argmax(axis=-1) == dataset.labels(split), dataset, split)

    def pictures(self, tested: list[Tested]) -> dict[str, str]:
        """Classes, certainty and embeddings of all models that were tested on what the last student was."""
        from kdjax.report.figures import classification
        from kdjax.report.page import figure

        last = ([stage for stage in tested if stage.role == "student"] or tested)[-1]
        labels = last.dataset.labels("test")
        same = [stage for stage in tested if np.array_equal(stage.dataset.labels("test"), labels)]
        names = class_names(last.dataset, self.num_classes)
        logits = {stage.title: stage.predicted["logits"] for stage in same}
        scaled = all_scaled(logits, same)
        beside = [stage for stage in same if "features" in stage.predicted and stage.role != "control"]
        vectors = {stage.title: stage.predicted["features"] for stage in beside}
        over = f"{int((labels >= 0).sum())} test {last.dataset.item}s"
        sure = scaled.get(last.title, logits[last.title])
        energies = classification.energies({title: (rows, labels) for title, rows in logits.items()})
        drawn = {
            "Classes": classes_drawn(logits, labels, names, last.title, over, vectors),
            "Certainty": reliability_drawn(logits, scaled, labels) + figure(f"energies of {over}", energies, wide=True),
            f"Most confident mistakes: {escape(last.title)}": mistakes(last.dataset, sure, names),
        }
        return {heading: html for heading, html in drawn.items() if html}


# -- one question: which class? --------------------------------------------------------------------------------------


def accuracy(logits: Array, labels: Array, known: Array) -> tuple[Array, Array]:
    """(right answers, known labels); NaN where a logit of a known example is not finite."""
    right = ((logits.argmax(axis=-1) == labels) & known).sum().astype(jnp.float32)
    finite = jnp.isfinite(jnp.where(known[..., None], logits, 0.0)).all()
    return jnp.where(finite, right, jnp.nan), known.sum().astype(jnp.float32)


class Judged(NamedTuple):
    """What a test shows of the answers to one question."""

    metrics: dict[str, dict[str, Any]]  # by name "mean", "std" and "n"; shares of examples alone have a spread
    right: list[float]  # 1 or 0 of each example whose class is known
    always: int | None  # the class that all are given, where they are of several
    confusion: list[list[int]]  # [truth][prediction]; empty of more classes than `COUNTED`


def judged(logits: np.ndarray, labels: np.ndarray, scaled: np.ndarray | None, top: Sequence[int] = ()) -> Judged:
    """Logits [n, k] against classes, of which -1 is not known; `scaled` are the logits after temperature scaling."""
    known, chosen, k = labels >= 0, logits.argmax(axis=-1), logits.shape[-1]
    right = ((chosen == labels) & np.isfinite(logits).all(axis=-1))[known].astype(float)
    measures = metrics.measure(logits, labels, top)
    if scaled is not None:
        measures |= {f"{name}_scaled": value for name, value in metrics.certainty(scaled, labels).items()}
    shares = ("accuracy", *(f"top{n}" for n in top))
    statistics = {name: statistic(value, labels, share=name in shares) for name, value in measures.items()}
    alike = len(set(chosen[known])) == 1 < len(set(labels[known]))
    counts = metrics.confusion(logits, labels, k).tolist() if k <= COUNTED else []
    return Judged(statistics, right.tolist(), int(chosen[known][0]) if alike else None, counts)


Logits = Mapping[str, np.ndarray]  # [n, k] by the title of their model


def classes_drawn(
    logits: Logits, labels: np.ndarray, names: list[str], title: str, over: str, vectors: Logits | None = None
) -> str:
    """Confusions of all models, a plane of their `vectors`, and what the model `title` makes of each class."""
    from kdjax.report import classes
    from kdjax.report.figures import classification, embeddings
    from kdjax.report.page import figure

    counts = {name: metrics.confusion(rows, labels, len(names)) for name, rows in logits.items()}
    figures = {
        f"confusions, of {over}": classification.confusions(counts, names),
        "t-SNE of the embeddings": embeddings.tsne(dict(vectors or {}), labels, names),
    }
    wide = "".join(figure(caption, svg, wide=True) for caption, svg in figures.items())
    return wide + classes.table(counts, names, title)


def reliability_drawn(logits: Logits, scaled: Logits, labels: np.ndarray) -> str:
    """How sure the models may be, as they are and after temperature scaling."""
    from kdjax.report.figures import classification
    from kdjax.report.page import figure

    plain, calm = ({title: (rows, labels) for title, rows in of.items()} for of in (logits, scaled))
    return figure("how often a model is right when it is so sure", classification.reliability(plain, calm), wide=True)


def framed(right: np.ndarray, dataset: Any, split: str) -> dict[str, np.ndarray]:
    """The first images of a split, framed by whether the answer to each is right."""
    pictures: dict[str, np.ndarray] = {}
    for i in range(min(SKETCHES, dataset.sizes[split])):
        pictures[f"image_{i}"] = np.array(dataset.resized(split, i)["image"])
        for edge in (np.s_[:1], np.s_[-1:], np.s_[:, :1], np.s_[:, -1:]):
            pictures[f"image_{i}"][edge] = RIGHT if right[i] else WRONG
    return pictures


def class_names(dataset: Any, k: int) -> list[str]:
    """The names of k classes; their numbers where the data do not tell them."""
    return completed(getattr(dataset, "image_classes", ()), k)


def completed(names: Sequence[str], k: int) -> list[str]:
    return [*names, *map(str, range(len(names), k))][:k]


def scaled_logits(
    logits: np.ndarray, calibrated: Mapping[str, Any], temperature: str = "temperature"
) -> np.ndarray | None:
    """The logits after temperature scaling; None where no temperature is known."""
    return logits / calibrated[temperature] if temperature in calibrated else None


def all_scaled(logits: Logits, stages: list[Tested], temperature: str = "temperature") -> dict[str, np.ndarray]:
    """Of the stages that know their temperature."""
    scaled = {stage.title: scaled_logits(logits[stage.title], stage.row, temperature) for stage in stages}
    return {title: rows for title, rows in scaled.items() if rows is not None}


def mistakes(dataset: Any, logits: np.ndarray, names: list[str]) -> str:
    """The test images of the surest wrong answers; "" of what are no images."""
    from scipy.special import softmax

    from kdjax.report.figures import mistakes as figures

    if "image" not in dataset.fields:
        return ""
    sure, (_, called) = softmax(logits.astype(np.float64), axis=1), dataset.called("test")

    def image(i: int) -> np.ndarray:
        return np.asarray(dataset.resized("test", i)["image"])

    return figures.mistakes(image, dataset.labels("test"), logits.argmax(axis=1), sure, names, called)


def statistic(value: float, labels: np.ndarray, share: bool = False) -> dict[str, Any]:
    """A measure over the examples whose class is known. A share of them has the standard deviation of what is 1 for so
    many and 0 for the others."""
    std = math.sqrt(value * (1 - value)) if share and value == value else math.nan
    return {"mean": value, "std": std, "n": int((labels >= 0).sum())}
