"""The fusion of a VGAE's and a GAT's word on CAN windows, by an agent that decides how much each of them counts.

A state is 15 numbers of a graph; an action is a weight of the classifier, one of 0, 1 / 20, .. 1.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph
from jaxtyping import Array, Float

from kdjax import registry
from kdjax.config import ConfigError
from kdjax.models.graphs.dqn import Dqn, build_dqn
from kdjax.models.graphs.pooling import graph_max, graph_mean, graph_of_node
from kdjax.models.inputs import GraphInput

STATE = (
    *("feature_error", "neighbour_error", "id_error", "z_mean", "z_std", "z_max", "z_min", "vgae_confidence"),
    *("p_normal", "p_attack", "embedding_mean", "embedding_std", "embedding_max", "embedding_min", "gat_confidence"),
)
ANOMALY = (0.4, 0.35, 0.25)  # weights of the state's first three in the anomaly score
READ = {"vgae": ("feature_error", "neighbour_error", "id_error", "z"), "gat": ("logits", "embedding")}


class CanFusion(nn.Module):
    """Graphs -> what VGAE and GAT say of each, and what the agent makes of it.

    Endpoints: `state` [g, 15], see STATE; `q` [g, 21]; `anomaly` [g] in [0, 1], the VGAE's score; `probability` [g] of
    an attack, the GAT's; `alpha` [g], the weight of the GAT that promises most; `logits` [g, 1], of (1 - alpha) anomaly
    + alpha probability. `vgae` and `gat` are frozen and never in training. Two parts can be applied alone: `state_of`
    gives the states of graphs, `agent_of` the q of states, which needs params/agent and nothing else.
    """

    vgae: nn.Module
    gat: nn.Module
    agent: Dqn

    endpoints: ClassVar[tuple[str, ...]] = ("state", "q", "anomaly", "probability", "alpha", "logits")

    @property
    def inputs(self) -> dict[str, GraphInput]:
        return self.vgae.inputs  # type: ignore[attr-defined]

    def __call__(self, graphs: jraph.GraphsTuple, train: bool = False) -> dict[str, Array]:
        state = self.state_of(graphs)
        q = self.agent_of(state, train)
        anomaly, probability = scores_of(state)
        alpha = jnp.argmax(q, axis=-1) / (q.shape[-1] - 1)
        score = (1 - alpha) * anomaly + alpha * probability
        parts = {"anomaly": anomaly, "probability": probability, "alpha": alpha}
        return {"state": state, "q": q, **parts, "logits": logit(score)[..., None]}

    def state_of(self, graphs: jraph.GraphsTuple) -> Float[Array, "g s"]:
        return jax.lax.stop_gradient(joint_state(self.vgae(graphs), self.gat(graphs), graphs))  # type: ignore[operator]

    def agent_of(self, state: Float[Array, "*b s"], train: bool = False) -> Float[Array, "*b a"]:
        return self.agent(state, train)["q"]


def joint_state(vgae: dict[str, Array], gat: dict[str, Array], graphs: jraph.GraphsTuple) -> Float[Array, "g s"]:
    """The state of each graph, of the endpoints of both models; 0 for one without nodes. Deviations are of n - 1."""
    errors = jnp.stack([vgae[f"{name}_error"] for name in ("feature", "neighbour", "id")], axis=-1)
    errors = graph_mean(errors.astype(jnp.float32), graphs)
    z = vgae["z"].astype(jnp.float32)
    count = graphs.n_node[:, None] * z.shape[-1]
    middle = graph_mean(z, graphs).mean(axis=-1, keepdims=True)
    squares = graph_mean(jnp.square(z - middle[graph_of_node(graphs)]), graphs).mean(axis=-1, keepdims=True)
    spread = jnp.sqrt(squares * count / jnp.maximum(count - 1, 1))
    ends = [graph_max(z, graphs).max(axis=-1, keepdims=True), -graph_max(-z, graphs).max(axis=-1, keepdims=True)]
    confidence = 1 / (1 + errors[:, :1])

    logits = gat["logits"].astype(jnp.float32)
    logits = jnp.concatenate([-logits / 2, logits / 2], axis=-1) if logits.shape[-1] == 1 else logits
    p = nn.softmax(logits, axis=-1)
    entropy = -(p * nn.log_softmax(logits, axis=-1)).sum(axis=-1, keepdims=True)
    e = gat["embedding"].astype(jnp.float32)
    last = {"axis": -1, "keepdims": True}
    known = [e.mean(**last), e.std(ddof=min(1, e.shape[-1] - 1), **last), e.max(**last), e.min(**last)]
    certainty = jnp.clip(1 - entropy / jnp.log(2.0), 0, 1)
    state = jnp.concatenate([errors, middle, spread, *ends, confidence, p, *known, certainty], axis=-1)
    return jnp.where(graphs.n_node[:, None] > 0, state, 0)


def scores_of(state: Float[Array, "*b s"]) -> tuple[Float[Array, "*b"], Float[Array, "*b"]]:
    """The VGAE's anomaly score and the GAT's probability of an attack, which is one already: no second softmax."""
    anomaly = sum(weight * state[..., i] for i, weight in enumerate(ANOMALY))
    return jnp.clip(anomaly, 0, 1), state[..., STATE.index("p_attack")]


def logit(p: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Above 0 exactly where p is above 0.5; finite at 0 and 1."""
    return 2 * jnp.arctanh(jnp.clip(2 * p - 1, -1 + 1e-6, 1 - 1e-6))


def build_can_fusion(
    vgae: dict | None = None, gat: dict | None = None, agent: dict | None = None, dtype: Any = "float32"
) -> CanFusion:
    """`vgae` and `gat` say what is fused, {"name": ..., "options": {...}}; `agent` has the options of `build_dqn`."""
    parts = {"vgae": vgae or {"name": "can_vgae"}, "gat": gat or {"name": "can_gat"}}
    models = {
        part: registry.get("models", described["name"])(**{"dtype": dtype, **described.get("options", {})})
        for part, described in parts.items()
    }
    faults = []
    for part, read in READ.items():
        if missing := [name for name in read if name not in models[part].endpoints]:
            faults.append(f"{part}: {parts[part]['name']} has no endpoint {', '.join(missing)}; name a model that has")
    specs = {part: model.inputs.get("graphs") for part, model in models.items()}
    if not faults and specs["vgae"] != specs["gat"]:
        faults.append(f"expected two models that read the same graphs, found {specs['vgae']} and {specs['gat']}")
    if not faults and getattr(models["gat"], "num_classes", 2) != 2:
        faults.append(f"gat: expected two classes, normal and attack, found {models['gat'].num_classes}")
    if faults:
        raise ConfigError("The fusion cannot be built:\n  " + "\n  ".join(faults))
    return CanFusion(**models, agent=build_dqn(**{"dtype": dtype, **(agent or {})}))
