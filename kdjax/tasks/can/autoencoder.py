"""An autoencoder of graphs, trained without labels: it takes what it cannot rebuild for an attack."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import jraph
from jaxtyping import Array

from kdjax.config import ConfigError, Data, Term
from kdjax.tasks import alarms
from kdjax.tasks.task import Tested

NEEDED = ("features", "id_logits", "posterior", "feature_error", "neighbour_error", "anomaly_parts")
WEIGHTS = (1.0, 20.0, 0.3)  # of a graph's worst node: its features, its neighbours; and of the share of wrong ids


@dataclass(frozen=True)
class Autoencoder(alarms.Scored):
    """The terms of a variational graph autoencoder, and its errors as scores."""

    primary: ClassVar[str] = "fit"
    measures: ClassVar[tuple[str, ...]] = ("fit",)

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

    def predict(self, outputs: dict[str, Array], batch: dict[str, Any]) -> dict[str, Array]:
        """`score`, the anomaly, and the `embedding` that the model knows the graph by, where it gives one."""
        score = (outputs["anomaly_parts"] * jnp.asarray(WEIGHTS)[None, None]).sum(axis=-1)
        return {"score": score, **alarms.embedded(outputs)}

    def measure(self, outputs: dict[str, Array], batch: dict[str, Any]) -> dict[str, tuple[Array, Array]]:
        """How well nodes are rebuilt, as minus the mean error; nodes of graphs that are known for attacks left out."""
        error = outputs["feature_error"] + outputs["neighbour_error"]
        graphs = jax.vmap(jraph.get_graph_padding_mask)(batch["graphs"]) & (batch["class"] != 1)
        per_node = partial(jnp.repeat, total_repeat_length=error.shape[1])
        nodes = jax.vmap(per_node)(graphs, batch["graphs"].n_node)
        return {"fit": (-jnp.where(nodes, error, 0.0).sum(), nodes.sum().astype(jnp.float32))}

    def pictures(self, tested: list[Tested]) -> dict[str, str]:
        return alarms.pictures("Anomalies", tested, "anomaly") | alarms.graphs(tested[-1])
