"""Detection: is there an attack in a graph? One logit, or two of which the second is for an attack."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.config import ConfigError, Data, Term
from kdjax.tasks.can import alarms
from kdjax.tasks.task import Tested


@dataclass(frozen=True)
class Detection(alarms.Scored):
    """Supervised terms, measures and scores of graphs."""

    primary: ClassVar[str] = "f1"
    measures: ClassVar[tuple[str, ...]] = ("f1", "confidence")

    @classmethod
    def of(cls, data: Data) -> "Detection":
        return cls()

    def terms(self) -> dict[str, Term]:
        return {"bce": Term("bce", label="class")}

    def check(self, outputs: dict[str, Any]) -> None:
        """Refuses a model that does not give the logits this task needs."""
        shape = list(outputs["logits"].shape) if "logits" in outputs else []
        if len(shape) != 3 or shape[-1] > 2:
            raise ConfigError(f"detection needs 'logits' [packs, graphs, 1 or 2], the model gives {shape or 'none'}")

    def predict(self, outputs: dict[str, Array], batch: dict[str, Any]) -> dict[str, Array]:
        """`score`, the logit of an attack, and the `embedding` that the model knows the graph by."""
        return {"score": logit(outputs["logits"]), **alarms.embedded(outputs)}

    def measure(self, outputs: dict[str, Array], batch: dict[str, Any]) -> dict[str, tuple[Array, Array]]:
        """F1 at probability one half, and the mean probability of the chosen side. NaN where a logit is not finite."""
        return alarms.measured(logit(outputs["logits"]), batch)

    def pictures(self, tested: list[Tested]) -> dict[str, str]:
        return alarms.pictures("Detection", tested, "logit of an attack")


def logit(logits: Float[Array, "p g k"]) -> Float[Array, "p g"]:
    """The logit of an attack against none."""
    logits = logits.astype(jnp.float32)
    return logits[..., 0] if logits.shape[-1] == 1 else logits[..., 1] - logits[..., 0]
