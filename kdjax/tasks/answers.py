"""Answers: several labels of an example, each with classes of its own, and each known or not."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from kdjax.config import ConfigError, Data, Term
from kdjax.report.metrics import classification as metrics
from kdjax.tasks.classification import (
    Judged,
    accuracy,
    all_scaled,
    classes_drawn,
    completed,
    framed,
    judged,
    reliability_drawn,
    scaled_logits,
    statistic,
)
from kdjax.tasks.task import Arrays, Predictions, Tested

SHARES = "shares"  # of the parts of the input in what a fusion makes of them


@dataclass(frozen=True)
class Answers:
    """Supervised terms, measures and scores of several labels, each read from its `logits_LABEL`.

    An example counts for every label that it has. What counts is the mean over the labels of their macro F1.
    """

    labels: tuple[str, ...]
    primary: ClassVar[str] = "macro_f1"
    damages: ClassVar[tuple[str, ...]] = ("one_part",)

    @classmethod
    def of(cls, data: Data, labels: tuple[str, ...] | list[str] = ()) -> "Answers":
        if not labels or len(set(labels)) < len(labels):
            raise ConfigError(
                f"the task 'answers' needs the names of the labels to learn, each once: expected "
                f'labels=("modality", "location"), say, found {tuple(labels)}'
            )
        if data.mixes:
            raise ConfigError(
                "the task 'answers' takes whole classes, which the mixing in data.augment would mix: leave that out"
            )
        return cls(tuple(labels))

    @property
    def measures(self) -> tuple[str, ...]:
        return (self.primary, *(f"{label}_{name}" for name in ("accuracy", "macro_f1") for label in self.labels))

    def terms(self) -> dict[str, Term]:
        return {f"ce_{label}": Term("ce", logits_of(label), label=label) for label in self.labels}

    def check(self, outputs: Mapping[str, Any]) -> None:
        """Refuses a model that does not give logits of every label."""
        shapes = {label: outputs[logits_of(label)].shape for label in self.labels if logits_of(label) in outputs}
        missing = [logits_of(label) for label in self.labels if len(shapes.get(label, ())) != 2]
        if missing:
            raise ConfigError(
                f"the task 'answers' needs {', '.join(missing)} [examples, classes], the model gives "
                f"{', '.join(outputs)}; give the model a head for each label, or the task fewer labels"
            )

    def predict(self, outputs: dict[str, Array], batch: dict[str, Any]) -> dict[str, Array]:
        """`logits_LABEL`, `LABEL` where the batch has it (-1 where it is not known), and the `shares` [b, parts] that
        the parts of the input have in what the model makes of them, where it tells."""
        logits = {logits_of(label): outputs[logits_of(label)].astype(jnp.float32) for label in self.labels}
        there = [label for label in self.labels if label in batch]
        labels = {label: jnp.where(batch[f"{label}_known"], batch[label], -1) for label in there}
        return {**logits, **labels, **({SHARES: outputs[SHARES].astype(jnp.float32)} if SHARES in outputs else {})}

    def measure(self, outputs: dict[str, Array], batch: dict[str, Any]) -> dict[str, tuple[Array, Array]]:
        return {
            f"{label}_accuracy": accuracy(
                outputs[logits_of(label)], batch[label], batch["valid"] & batch[f"{label}_known"]
            )
            for label in self.labels
        }

    def gathered(self, predictions: Arrays, labels: np.ndarray) -> dict[str, float]:
        """Macro F1 of each label, and its mean over those that any example has; 0 without any, as an accuracy is."""
        scores = macro_f1(self.labels, predictions)
        each = {f"{label}_macro_f1": scores.get(label, 0.0) for label in self.labels}
        return {self.primary: float(np.mean([*scores.values()])) if scores else 0.0, **each}

    def calibrate(self, predictions: Arrays, dataset: Any) -> dict[str, float]:
        """The temperature of each label by which its logits are divided before they are probabilities."""
        return {
            temperature_of(label): metrics.temperature(predictions[logits_of(label)], predictions[label])
            for label in self.labels
        }

    def test(self, predictions: Predictions, dataset: Any, calibrated: dict[str, float]) -> tuple[dict, list[list]]:
        """The mean over the labels of their macro F1, and of each label what `Classification` measures of its class.

        `per_image` has the accuracy of each label over the examples that have it, and for macro F1 values whose mean it
        is. The table has a row for each example, with the names of the classes.
        """
        predicted = predictions("test")
        if not calibrated and dataset.sizes["val"]:
            calibrated = self.calibrate(predictions("val"), dataset)
        answers = {label: self.judged(label, predicted, calibrated) for label in self.labels}
        result: dict[str, Any] = {
            "metrics": together(answers),
            "per_image": {self.primary: by_example(self.labels, predicted)}
            | {f"{label}_accuracy": one.right for label, one in answers.items()},
            "unlabelled": {label: int((predicted[label] < 0).sum()) for label in self.labels},
            "confusions": {label: one.confusion for label, one in answers.items() if one.confusion},
            **calibrated,
        }
        names = {label: self.class_names(label, dataset, predicted) for label in self.labels}
        always = [f"the {label} {names[label][one.always]}" for label, one in answers.items() if one.always is not None]
        if always:
            result["remark"] = f"gives every test {dataset.item} {' and '.join(always)}"
        return result, table(names, dataset, predicted)

    def judged(self, label: str, predicted: Arrays, calibrated: Mapping[str, Any]) -> Judged:
        logits, labels = predicted[logits_of(label)], predicted[label]
        one = judged(logits, labels, scaled_logits(logits, calibrated, temperature_of(label)))
        more = {name: statistic(value, labels) for name, value in metrics.macro(logits, labels).items()}
        first = ("accuracy", "macro_f1")
        return one._replace(metrics={**{name: one.metrics[name] for name in first}, **more, **one.metrics})

    def class_names(self, label: str, dataset: Any, predicted: Arrays) -> list[str]:
        """Those that the data tell, or numbers."""
        named = getattr(dataset, "label_classes", {}).get(label, ())
        return completed(named, predicted[logits_of(label)].shape[-1])

    def words(self, dataset: Any) -> dict[str, Any]:
        shown = [self.primary, *(f"{label}_accuracy" for label in self.labels)]
        return {"over": f"{dataset.sizes['test']} test {dataset.item}s", "shown": shown}

    def sketches(self, predictions: Arrays, dataset: Any, split: str) -> dict[str, np.ndarray]:
        """The first images, framed in green where every label that is known is told rightly, else in red."""
        if "image" not in dataset.fields:
            return {}
        right = [right_of(label, predictions) | (predictions[label] < 0) for label in self.labels]
        return framed(np.all(right, axis=0), dataset, split)

    def pictures(self, tested: list[Tested]) -> dict[str, str]:
        """A section for each label, what models make of one part of the input alone, how they weigh the parts, and
        examples, of all models that were tested on what the last student was."""
        from kdjax.report import answers

        last = ([stage for stage in tested if stage.role == "student"] or tested)[-1]
        same = [stage for stage in tested if all(alike(stage, last, label) for label in self.labels)]
        truth = {label: last.predicted[label] for label in self.labels}
        names = {label: self.class_names(label, last.dataset, last.predicted) for label in self.labels}
        sections = {escape(label.capitalize()): self.section(label, same, last, names[label]) for label in self.labels}
        sections["One part of the input alone"] = answers.parts([stage.row for stage in tested])
        shares = {stage.title: stage.predicted[SHARES] for stage in same if SHARES in stage.predicted}
        sections["How image and text are weighed"] = answers.shares(shares, truth, names)
        chosen = {stage.title: {label: answer_of(label, stage.predicted) for label in self.labels} for stage in same}
        sections["Examples"] = answers.examples(last.dataset, truth, chosen, names)
        return {heading: html for heading, html in sections.items() if html}

    def section(self, label: str, stages: list[Tested], last: Tested, names: list[str]) -> str:
        """The measures of all models, their confusions, each class, and how sure they may be."""
        from kdjax.report import answers

        labels, item = last.predicted[label], last.dataset.item
        logits = {stage.title: stage.predicted[logits_of(label)] for stage in stages}
        scaled = all_scaled(logits, stages, temperature_of(label))
        over = f"{int((labels >= 0).sum())} test {item}s"
        return (
            answers.measures(label, [stage.row for stage in stages], len(labels), item)
            + classes_drawn(logits, labels, names, last.title, over)
            + reliability_drawn(logits, scaled, labels)
        )


def logits_of(label: str) -> str:
    return f"logits_{label}"


def temperature_of(label: str) -> str:
    return f"temperature_{label}"


def answer_of(label: str, predicted: Arrays) -> np.ndarray:
    """The class that each example is given; -1 where a logit is not finite, which is no answer."""
    logits = predicted[logits_of(label)]
    return np.where(np.isfinite(logits).all(axis=-1), logits.argmax(axis=-1), -1)


def right_of(label: str, predicted: Arrays) -> Bool[np.ndarray, " n"]:
    return (predicted[label] >= 0) & (answer_of(label, predicted) == predicted[label])


def alike(stage: Tested, last: Tested, label: str) -> bool:
    return label in stage.predicted and np.array_equal(stage.predicted[label], last.predicted[label])


def macro_f1(labels: tuple[str, ...], predicted: Arrays) -> dict[str, float]:
    """Of each label that any example has."""
    return {
        label: metrics.measure(predicted[logits_of(label)], predicted[label])["macro_f1"]
        for label in labels
        if (predicted[label] >= 0).any()
    }


def together(answers: Mapping[str, Judged]) -> dict[str, dict[str, Any]]:
    """The mean macro F1 over the labels that any example has, then each measure of each label, accuracies first."""
    known = [one.metrics["macro_f1"]["mean"] for one in answers.values() if one.metrics["macro_f1"]["n"]]
    n = max((one.metrics["macro_f1"]["n"] for one in answers.values()), default=0)
    mean = {"mean": float(np.mean(known)) if known else math.nan, "std": math.nan, "n": n}
    first = {f"{label}_accuracy": one.metrics["accuracy"] for label, one in answers.items()}
    each = {f"{label}_{name}": value for label, one in answers.items() for name, value in one.metrics.items()}
    return {Answers.primary: mean, **first, **each}


def by_example(labels: tuple[str, ...], predicted: Arrays) -> list[float]:
    """A value for each example that has a label, whose mean is the mean macro F1: it, and how much the example moves it
    (`metrics.influence`). Differences of two models have the standard error of the difference of their macro F1."""
    some = np.any([predicted[label] >= 0 for label in labels], axis=0)
    scores = macro_f1(labels, predicted)
    if not scores:
        return []
    moved = np.mean([metrics.influence(predicted[logits_of(label)], predicted[label]) for label in scores], axis=0)
    return (np.mean([*scores.values()]) + some.sum() * moved[some]).tolist()


def table(names: Mapping[str, list[str]], dataset: Any, predicted: Arrays) -> list[list]:
    """Each test example with the class of each label, "" where it is not known, and the one that was predicted."""
    heading, called = dataset.called("test")
    columns = []
    for label, of in names.items():
        columns.append([of[k] if k >= 0 else "" for k in predicted[label]])
        columns.append([of[k] if k >= 0 else "" for k in answer_of(label, predicted)])
    header = [heading, *(column for label in names for column in (label, f"{label}_predicted"))]
    return [header, *map(list, zip(called, *columns, strict=True))]
