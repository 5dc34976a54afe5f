"""Segmentation: a class for every pixel. Two classes use one logit, more use one each, background first."""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from kdjax.config import ConfigError, Data, Term, nearest
from kdjax.models.layers.resize import resize
from kdjax.report.figures.curves import overlay
from kdjax.report.figures.examples import examples_html
from kdjax.report.metrics import segmentation as metrics
from kdjax.tasks.task import Arrays, Predictions, Tested

EXAMPLES = 2  # pictures of each kind in the report: best, median, worst
SKETCHES = 3  # images that a tracker shows


@dataclass(frozen=True)
class Segmentation:
    """Supervised terms, measures and scores of masks.

    `weight` is that of each of the two supervised terms, cross-entropy and soft Dice. `smooth` is of the Dice: 1 asks
    for an empty mask where there is nothing. `balanced` weighs the classes of the cross-entropy by how rare they are.
    """

    num_classes: int
    weight: float = 0.5
    smooth: float = 1e-5
    balanced: bool = False
    primary: ClassVar[str] = "dice"
    measures: ClassVar[tuple[str, ...]] = ("dice",)
    damages: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def of(cls, data: Data, **options: Any) -> "Segmentation":
        known = [f.name for f in dataclasses.fields(cls) if f.name != "num_classes"]
        if unknown := [name for name in options if name not in known]:
            raise ConfigError(f"segmentation has no option {unknown[0]!r}; {nearest(unknown[0], known)}")
        return cls(data.class_count, **options)

    def terms(self) -> dict[str, Term]:
        pixel = "bce" if self.num_classes == 2 else "ce"
        weights: dict[str, Any] = {"class_weights": None} if self.balanced else {}
        return {
            pixel: Term(pixel, label="mask", weight=self.weight, args=weights),
            "dice": Term("dice", label="mask", weight=self.weight, args={"smooth": self.smooth}),
        }

    def check(self, outputs: dict[str, Any]) -> None:
        """Refuses a model that does not give the logits this task needs."""
        channels = 1 if self.num_classes == 2 else self.num_classes
        shape = outputs["logits"].shape if "logits" in outputs else "no 'logits'"
        if "logits" not in outputs or len(shape) != 4 or shape[-1] != channels:
            raise ConfigError(
                f"segmentation of {self.num_classes} classes needs 'logits' [b, h, w, {channels}], the model gives "
                f"{shape}; set num_classes={self.num_classes} in its options"
            )

    def predict(self, outputs: dict[str, Array], batch: dict[str, Any]) -> dict[str, UInt8[Array, "b h w"]]:
        """`classes`, of every pixel, at the size of the batch's masks."""
        _, height, width = batch["mask"].shape
        return {"classes": classes(outputs["logits"], (height, width))}

    def measure(self, outputs: dict[str, Array], batch: dict[str, Array]) -> dict[str, tuple[Array, Array]]:
        """Dice of the predicted classes: per image the mean over the foreground classes, 1 where both are empty.

        NaN where the logits are not finite: such a model must not pass for one that finds nothing.
        """
        predicted, known = self.predict(outputs, batch)["classes"], batch["valid"] & batch["mask_known"]
        ids = jnp.arange(1, self.num_classes)[None, None, None, :]
        ours, truth = predicted[..., None] == ids, batch["mask"][..., None] == ids
        both, either = (ours & truth).sum((1, 2)), ours.sum((1, 2)) + truth.sum((1, 2))
        dice = jnp.where(either > 0, 2 * both / jnp.maximum(either, 1), 1.0).mean(axis=1)
        dice = jnp.where(jnp.isfinite(outputs["logits"]).all((1, 2, 3)), dice, jnp.nan)
        return {"dice": (jnp.where(known, dice, 0.0).sum(), known.sum().astype(jnp.float32))}

    def gathered(self, predictions: Arrays, labels: np.ndarray) -> dict[str, float]:
        return {}

    def calibrate(self, predictions: Arrays, dataset: Any) -> dict[str, float]:
        """Nothing of a mask depends on a number that the validation data would set."""
        return {}

    def test(self, predictions: Predictions, dataset: Any, calibrated: dict[str, float]) -> tuple[dict, list[list]]:
        """The scores of the test images that have a mask, and a table with a row for each of them and each of its
        classes."""
        scores, rows, dice = [], [], []
        masks = predictions("test")["classes"]
        for i, predicted in enumerate(masks):
            example = dataset.resized("test", i)
            if "mask" not in example:
                dice.append(math.nan)
                continue
            scores.append(metrics.segmentation(predicted.astype(np.int32), example["mask"], self.num_classes))
            rows += [[example["name"], k, *row.values()] for k, row in scores[-1].items()]
            dice.append(_dice(scores[-1]))
        result: dict[str, Any] = {
            "metrics": metrics.summarise(scores),
            "per_class": metrics.summarise_classes(scores),
            "per_image": {"dice": dice},
            "test_images": len(scores),
        }
        if (masks == masks.flat[0]).all():
            everywhere = masks.flat[0] and f"gives every pixel of the test images the class {masks.flat[0]}"
            result["remark"] = everywhere or "marks nothing in any test image"
        if not scores:
            result["remark"] = "is tested on images of which none has a mask, so that nothing is known of it"
        return result, [["image", "class", *metrics.NAMES], *rows]

    def words(self, dataset: Any) -> dict[str, Any]:
        """How the report calls things."""
        return {"class_names": list(dataset.mask_classes or dataset.image_classes)}

    def sketches(self, predictions: Arrays, dataset: Any, split: str) -> dict[str, np.ndarray]:
        """The first images with the predicted classes, and the outline of the truth in yellow."""
        shown = [dataset.resized(split, i) for i in range(min(SKETCHES, dataset.sizes[split]))]
        masks = predictions["classes"].astype(np.int32)
        return {f"image_{i}": overlay(one["image"], masks[i], one.get("mask")) for i, one in enumerate(shown)}

    def pictures(self, tested: list[Tested]) -> dict[str, str]:
        """The test images that the last student did best, middling and worst on, with what every model made of them."""
        students = [stage for stage in tested if stage.role in ("student", "other")]
        last = (students or tested)[-1]
        same = [stage for stage in tested if _images(stage.dataset) == _images(last.dataset)]
        shown = [last.dataset.resized("test", i) for i in range(len(last.predicted["classes"]))]
        dice = {stage.title: stage.row["per_image"]["dice"] for stage in same}
        order = np.argsort(dice[last.title], kind="stable")
        order = order[np.array([shown[i].get("mask", np.zeros(1)).any() for i in order], bool)]  # none shows nothing
        ranked = ranks(order, [dice[last.title][i] for i in order])
        examples = [
            {
                "name": shown[i]["name"],
                "image": shown[i]["image"],
                "truth": shown[i]["mask"],
                "predictions": {stage.title: stage.predicted["classes"][i].astype(np.int32) for stage in same},
                "dice": {title: of_stage[i] for title, of_stage in dice.items()},
                "rank": rank,
            }
            for rank, chosen in ranked.items()
            for i in chosen
        ]
        student = students[-1].title if students and students[-1].role == "student" else ""
        shown_as = self.num_classes, last.dataset.mask_classes
        return {"Test images": examples_html(examples, student, *shown_as)} if examples else {}


def ranks(order: np.ndarray, values: Sequence[float]) -> dict[str, list[int]]:
    """Examples by rank, none of them twice, of indices in the order of their rising `values`."""
    if not len(order) or values[0] == values[-1]:
        return {"all alike": order[:EXAMPLES].tolist()}
    each = max(1, min(EXAMPLES, len(order) // 3))
    middle = max(each, len(order) // 2)
    median = order[middle : min(middle + each, len(order) - each)]
    return {"best": order[::-1][:each].tolist(), "median": median.tolist(), "worst": order[:each].tolist()}


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
        logits = resize(logits, size, antialias=True)
    chosen = logits[..., 0] > 0 if logits.shape[-1] == 1 else logits.argmax(axis=-1)
    return chosen.astype(jnp.uint8)
