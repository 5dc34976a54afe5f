"""Segmentation: a class for every pixel. Two classes use one logit, more use one each, background first."""

import json
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from kdjax.config import ConfigError, Data, Term
from kdjax.report.figures.examples import examples_html
from kdjax.report.metrics import segmentation as metrics
from kdjax.tasks.task import Predictions, Tested

EXAMPLES = 2  # pictures of each kind in the report: best, median, worst


@dataclass(frozen=True)
class Segmentation:
    """Supervised terms, measures and scores of masks."""

    num_classes: int
    primary: ClassVar[str] = "dice"  # the measure that says which epoch is best

    @classmethod
    def of(cls, data: Data) -> "Segmentation":
        return cls(data.num_classes)

    def terms(self) -> dict[str, Term]:
        pixel = "bce" if self.num_classes == 2 else "ce"
        return {pixel: Term(pixel, label="mask", weight=0.5), "dice": Term("dice", label="mask", weight=0.5)}

    def check(self, outputs: dict[str, Any]) -> None:
        """Refuses a model that does not give the logits this task needs."""
        channels = 1 if self.num_classes == 2 else self.num_classes
        found = outputs["logits"].shape if "logits" in outputs else "no 'logits'"
        if "logits" not in outputs or len(found) != 4 or found[-1] != channels:
            raise ConfigError(
                f"segmentation of {self.num_classes} classes needs 'logits' [b, h, w, {channels}], the model gives "
                f"{found}; set num_classes={self.num_classes} in its options"
            )

    def predict(self, outputs: dict[str, Array], batch: dict[str, Array]) -> UInt8[Array, "b h w"]:
        """The class of every pixel, at the size of the batch's masks."""
        _, height, width = batch["mask"].shape
        return classes(outputs["logits"], (height, width))

    def measure(self, outputs: dict[str, Array], batch: dict[str, Array]) -> dict[str, tuple[Array, Array]]:
        """Dice of the predicted classes: per image the mean over the foreground classes, 1 where both are empty.

        NaN where the logits are not finite: such a model must not pass for one that finds nothing.
        """
        predicted, valid = self.predict(outputs, batch), batch["valid"]
        ids = jnp.arange(1, self.num_classes)[None, None, None, :]
        ours, truth = predicted[..., None] == ids, batch["mask"][..., None] == ids
        both, either = (ours & truth).sum((1, 2)), ours.sum((1, 2)) + truth.sum((1, 2))
        dice = jnp.where(either > 0, 2 * both / jnp.maximum(either, 1), 1.0).mean(axis=1)
        dice = jnp.where(jnp.isfinite(outputs["logits"]).all((1, 2, 3)), dice, jnp.nan)
        return {"dice": (jnp.where(valid, dice, 0.0).sum(), valid.sum().astype(jnp.float32))}

    def calibrate(self, predicted: np.ndarray, dataset: Any) -> dict[str, float]:
        """Nothing of a mask depends on a number that the validation data would set."""
        return {}

    def test(self, predictions: Predictions, dataset: Any, calibrated: dict[str, float]) -> tuple[dict, list[list]]:
        """The scores of the test images, and a table with a row for each of them and each of its classes."""
        names, scores = [], []
        for i, predicted in enumerate(predictions("test")):
            one = dataset.resized("test", i)
            names.append(one["name"])
            scores.append(metrics.segmentation(predicted.astype(np.int32), one["mask"], self.num_classes))
        rows = [[n, k, *row.values()] for n, of in zip(names, scores, strict=True) for k, row in of.items()]
        result = {
            "metrics": metrics.summarise(scores),
            "per_class": metrics.summarise_classes(scores),
            "per_image": {"dice": [_dice(of) for of in scores]},
        }
        return result, [["image", "class", *next(iter(scores[0].values()))], *rows]

    def words(self, dataset: Any) -> dict[str, Any]:
        """How the report calls things."""
        return {"class_names": list(dataset.image_classes)}

    def pictures(self, tested: list[Tested]) -> dict[str, str]:
        """The test images that the last student did best, middling and worst on, with what every model made of them."""
        students = [one for one in tested if one.role in ("student", "other")]
        of = (students or tested)[-1]
        same = [one for one in tested if _images(one.dataset) == _images(of.dataset)]
        shown = [of.dataset.resized("test", i) for i in range(len(of.predicted))]
        dice = {one.title: one.row["per_image"]["dice"] for one in same}
        order = np.argsort(dice[of.title], kind="stable")
        order = order[np.array([shown[i]["mask"].any() for i in order], bool)]  # an empty mask shows nothing
        middle = len(order) // 2
        ranked = {"best": order[::-1], "median": order[middle:], "worst": order}
        examples = [
            {
                "name": shown[i]["name"],
                "image": shown[i]["image"],
                "truth": shown[i]["mask"],
                "predictions": {one.title: one.predicted[i].astype(np.int32) for one in same},
                "dice": {title: of_stage[i] for title, of_stage in dice.items()},
                "rank": rank,
            }
            for rank, chosen in ranked.items()
            for i in map(int, chosen[:EXAMPLES])
        ]
        student = students[-1].title if students and students[-1].role == "student" else ""
        return {"Test images": examples_html(examples, student)} if examples else {}


def _dice(scores: metrics.Scores) -> float:
    return float(np.nanmean([of_class["dice"] for of_class in scores.values()]))


def _images(dataset: Any) -> tuple:
    """What decides which test images a stage sees, and how large."""
    data = dataset.data
    return data.source, json.dumps(data.options), data.split, data.split_seed, data.image_size, data.num_classes


def classes(logits: Float[Array, "b h w k"], size: tuple[int, int]) -> UInt8[Array, "b s t"]:
    """Logits, bilinearly resized to `size`, as class ids."""
    logits = logits.astype(jnp.float32)
    if logits.shape[1:3] != size:
        logits = jax.image.resize(logits, (logits.shape[0], *size, logits.shape[3]), "bilinear", antialias=False)
    chosen = logits[..., 0] > 0 if logits.shape[-1] == 1 else logits.argmax(axis=-1)
    return chosen.astype(jnp.uint8)
