"""Segmentation: a class for every pixel. Two classes use one logit, more use one each, background first."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from kdjax.config import ConfigError, Data, Term
from kdjax.report import metrics


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

    def score(self, predicted: Int[np.ndarray, "h w"], truth: Int[np.ndarray, "h w"]) -> metrics.Scores:
        """All metrics of one image on the host."""
        return metrics.segmentation(predicted, truth, self.num_classes)

    def summarise(self, scores: list[metrics.Scores]) -> dict:
        return {"metrics": metrics.summarise(scores), "per_class": metrics.summarise_classes(scores)}


def classes(logits: Float[Array, "b h w k"], size: tuple[int, int]) -> UInt8[Array, "b s t"]:
    """Logits, bilinearly resized to `size`, as class ids."""
    logits = logits.astype(jnp.float32)
    if logits.shape[1:3] != size:
        logits = jax.image.resize(logits, (logits.shape[0], *size, logits.shape[3]), "bilinear", antialias=False)
    chosen = logits[..., 0] > 0 if logits.shape[-1] == 1 else logits.argmax(axis=-1)
    return chosen.astype(jnp.uint8)
