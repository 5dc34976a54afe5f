"""An autoencoder of graphs, trained without labels: what it cannot rebuild is taken for an attack."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kdjax.config import ConfigError, Data, Term
from kdjax.tasks.can import alarms
from kdjax.tasks.task import Predictions, Tested

NEEDED = ("features", "id_logits", "posterior", "feature_error", "neighbour_error", "anomaly_parts")
WEIGHTS = (1.0, 20.0, 0.3)  # of a graph's worst node: its features, its neighbours; and of the share of wrong ids


@dataclass(frozen=True)
class Autoencoder:
    """The terms of a variational graph autoencoder, and its errors as scores."""

    primary: ClassVar[str] = "fit"

    @classmethod
    def of(cls, data: Data) -> "Autoencoder":
        return cls()

    def terms(self) -> dict[str, Term]:
        return {
            "features": Term("mse", "features", label="x", over="nodes"),
            "ids": Term("ce", "id_logits", label="id", over="nodes"),
            "neighbours": Term("value", "neighbour_error", over="nodes"),
            "kl": Term("normal_kl", "posterior", over="nodes", weight=0.1),
        }

    def check(self, outputs: dict[str, Any]) -> None:
        """Refuses a model that does not give what this task reads."""
        if missing := [name for name in NEEDED if name not in outputs]:
            raise ConfigError(f"an autoencoder gives {', '.join(NEEDED)}; the model has no {', '.join(missing)}")

    def predict(self, outputs: dict[str, Array], batch: dict[str, Array]) -> Float[Array, "p g d"]:
        """The anomaly, then what the model knows the graph by."""
        anomaly = (outputs["anomaly_parts"] * jnp.asarray(WEIGHTS)[None, None]).sum(axis=-1, keepdims=True)
        return jnp.concatenate([anomaly, *([outputs["embedding"]] if "embedding" in outputs else [])], axis=-1)

    def measure(self, outputs: dict[str, Array], batch: dict[str, Array]) -> dict[str, tuple[Array, Array]]:
        """How well nodes are rebuilt, as minus the mean error; nodes of graphs that are known for attacks left out."""
        attack = jnp.pad(batch["class"] == 1, ((0, 0), (0, 1)))
        nodes = batch["nodes"] & ~jnp.take_along_axis(attack, batch["graph"], axis=1)
        error = outputs["feature_error"] + outputs["neighbour_error"]
        return {"fit": (-jnp.where(nodes, error, 0.0).sum(), nodes.sum().astype(jnp.float32))}

    def calibrate(self, predicted: np.ndarray, dataset: Any) -> dict[str, float]:
        return {"threshold": alarms.threshold(predicted[:, 0], dataset.labels("val"))}

    def test(self, predictions: Predictions, dataset: Any, calibrated: dict[str, float]) -> tuple[dict, list[list]]:
        calibrated = calibrated or self.calibrate(predictions("val"), dataset)
        return alarms.tested(predictions("test")[:, 0], dataset, calibrated["threshold"])

    def words(self, dataset: Any) -> dict[str, Any]:
        """How the report calls things."""
        return alarms.words(dataset)

    def pictures(self, tested: list[Tested]) -> dict[str, str]:
        return alarms.pictures("Anomalies", tested, "anomaly") | alarms.graphs(tested[-1])
