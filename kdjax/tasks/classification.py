"""Classification: one of several classes for each example."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kdjax.config import ConfigError, Data, Term
from kdjax.tasks.task import Predictions, Tested


@dataclass(frozen=True)
class Classification:
    """Supervised terms, measures and scores of classes."""

    num_classes: int
    primary: ClassVar[str] = "accuracy"

    @classmethod
    def of(cls, data: Data) -> "Classification":
        return cls(data.num_classes)

    def terms(self) -> dict[str, Term]:
        return {"ce": Term("ce", label="class")}

    def check(self, outputs: dict[str, Any]) -> None:
        """Refuses a model that does not give the logits this task needs."""
        found = outputs["logits"].shape if "logits" in outputs else "no 'logits'"
        if "logits" not in outputs or found[-1] != self.num_classes:
            raise ConfigError(
                f"classification of {self.num_classes} classes needs 'logits' [..., {self.num_classes}], the model "
                f"gives {found}; set num_classes={self.num_classes} in its options"
            )

    def predict(self, outputs: dict[str, Array], batch: dict[str, Array]) -> Float[Array, "*b k"]:
        return outputs["logits"].astype(jnp.float32)

    def measure(self, outputs: dict[str, Array], batch: dict[str, Array]) -> dict[str, tuple[Array, Array]]:
        """NaN where a logit is not finite."""
        known, logits = batch["valid"] & batch["labelled"], outputs["logits"]
        right = ((logits.argmax(axis=-1) == batch["class"]) & known).sum().astype(jnp.float32)
        finite = jnp.isfinite(jnp.where(known[..., None], logits, 0.0)).all()
        return {"accuracy": (jnp.where(finite, right, jnp.nan), known.sum().astype(jnp.float32))}

    def calibrate(self, predicted: np.ndarray, dataset: Any) -> dict[str, float]:
        """The largest logit needs no threshold."""
        return {}

    def test(self, predictions: Predictions, dataset: Any, calibrated: dict[str, float]) -> tuple[dict, list[list]]:
        """Accuracy, with the standard deviation that such a share has over examples, and a row for each of them."""
        predicted, truth = predictions("test").argmax(axis=-1), dataset.labels("test")
        right = (predicted == truth).astype(float)
        statistics = {"mean": float(right.mean()), "std": float(right.std()), "n": len(right)}
        rows = [[i, int(t), int(p)] for i, (t, p) in enumerate(zip(truth, predicted, strict=True))]
        result = {"metrics": {"accuracy": statistics}, "per_image": {"accuracy": right.tolist()}}
        return result, [[dataset.item, "class", "predicted"], *rows]

    def words(self, dataset: Any) -> dict[str, Any]:
        """How the report calls things."""
        return {"over": f"{dataset.sizes['test']} test {dataset.item}s"}

    def pictures(self, tested: list[Tested]) -> dict[str, str]:
        return {}
