"""The fusion of a VGAE's and a GAT's word on CAN windows, by an agent that decides how much each of them counts.

A state is 15 numbers of a graph; an action is a weight of the classifier, one of 0, 1 / 20, .. 1.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kdjax import registry
from kdjax.config import ConfigError
from kdjax.models.graphs.dqn import Dqn, build_dqn
from kdjax.models.graphs.pooling import graph_count, graph_max, graph_mean
from kdjax.models.inputs import GraphInput

STATE = (
    *("feature_error", "neighbour_error", "id_error", "z_mean", "z_std", "z_max", "z_min", "vgae_confidence"),
    *("p_normal", "p_attack", "embedding_mean", "embedding_std", "embedding_max", "embedding_min", "gat_confidence"),
)
ANOMALY = (0.4, 0.35, 0.25)  # weights of the state's first three in the anomaly score
READ = {"vgae": ("feature_error", "neighbour_error", "id_error", "z"), "gat": ("logits", "embedding")}


class CanFusion(nn.Module):
    """Packs of graphs -> what VGAE and GAT say of each graph, and what the agent makes of it.

    Endpoints: `state` [p, g, 15], see STATE; `q` [p, g, 21]; `anomaly` [p, g] in [0, 1], the VGAE's score;
    `probability` [p, g] of an attack, the GAT's; `alpha` [p, g], the weight of the GAT that promises most; `logits`
    [p, g, 1], of (1 - alpha) anomaly + alpha probability. `vgae` and `gat` are frozen and never in training. The agent
    alone, for reinforcement learning: `apply(variables, state, train, method="agent_of")`, which needs params/agent.
    """

    vgae: nn.Module
    gat: nn.Module
    agent: Dqn

    inputs: ClassVar[tuple[str, ...]] = ("x", "id", "senders", "receivers", "graph", "valid")
    endpoints: ClassVar[tuple[str, ...]] = ("state", "q", "anomaly", "probability", "alpha", "logits")

    @property
    def input_spec(self) -> GraphInput:
        return self.vgae.input_spec  # type: ignore[attr-defined]

    def __call__(
        self,
        x: Float[Array, "p n f"],
        id: Int[Array, "p n"],
        senders: Int[Array, "p e"],
        receivers: Int[Array, "p e"],
        graph: Int[Array, "p n"],
        valid: Bool[Array, "p g"],
        train: bool = False,
    ) -> dict[str, Array]:
        given = (x, id, senders, receivers, graph, valid)
        state = jax.lax.stop_gradient(state_of(self.vgae(*given), self.gat(*given), graph, valid))  # type: ignore[operator]
        q = self.agent_of(state, train)
        anomaly, probability = scores_of(state)
        alpha = jnp.argmax(q, axis=-1) / (q.shape[-1] - 1)
        score = (1 - alpha) * anomaly + alpha * probability
        told = {"anomaly": anomaly, "probability": probability, "alpha": alpha}
        return {"state": state, "q": q, **told, "logits": logit(score)[..., None]}

    def agent_of(self, state: Float[Array, "*b s"], train: bool = False) -> Float[Array, "*b a"]:
        return self.agent(state, train)["q"]


def state_of(
    vgae: dict[str, Array], gat: dict[str, Array], graph: Int[Array, "p n"], valid: Bool[Array, "p g"]
) -> Float[Array, "p g s"]:
    """The state of each graph, of the endpoints of both models; 0 for padding. Deviations are of n - 1."""
    g = valid.shape[1]
    errors = jnp.stack([vgae[f"{name}_error"] for name in ("feature", "neighbour", "id")], axis=-1)
    errors = graph_mean(errors.astype(jnp.float32), graph, g)
    z = vgae["z"].astype(jnp.float32)
    count = graph_count(graph, g)[:, :, None] * z.shape[-1]
    middle = graph_mean(z, graph, g).mean(axis=-1, keepdims=True)
    of_node = jax.vmap(lambda middle, graph: jnp.append(middle, 0.0)[graph])(middle[:, :, 0], graph)
    squares = graph_mean(jnp.square(z - of_node[:, :, None]), graph, g).mean(axis=-1, keepdims=True)
    spread = jnp.sqrt(squares * count / jnp.maximum(count - 1, 1))
    ends = [graph_max(z, graph, g).max(axis=-1, keepdims=True), -graph_max(-z, graph, g).max(axis=-1, keepdims=True)]
    confidence = 1 / (1 + errors[:, :, :1])

    logits = gat["logits"].astype(jnp.float32)
    logits = jnp.concatenate([-logits / 2, logits / 2], axis=-1) if logits.shape[-1] == 1 else logits
    p = nn.softmax(logits, axis=-1)
    entropy = -(p * nn.log_softmax(logits, axis=-1)).sum(axis=-1, keepdims=True)
    e = gat["embedding"].astype(jnp.float32)
    of_axis = {"axis": -1, "keepdims": True}
    told = [e.mean(**of_axis), e.std(ddof=min(1, e.shape[-1] - 1), **of_axis), e.max(**of_axis), e.min(**of_axis)]
    certainty = jnp.clip(1 - entropy / jnp.log(2.0), 0, 1)
    state = jnp.concatenate([errors, middle, spread, *ends, confidence, p, *told, certainty], axis=-1)
    return jnp.where(valid[:, :, None], state, 0)


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
    made = {
        part: registry.get("models", told["name"])(**{"dtype": dtype, **told.get("options", {})})
        for part, told in parts.items()
    }
    wrong = []
    for part, read in READ.items():
        if missing := [name for name in read if name not in made[part].endpoints]:
            wrong.append(f"{part}: {parts[part]['name']} has no endpoint {', '.join(missing)}; name a model that has")
    specs = {part: getattr(model, "input_spec", None) for part, model in made.items()}
    if not wrong and specs["vgae"] != specs["gat"]:
        wrong.append(f"expected two models that read the same graphs, found {specs['vgae']} and {specs['gat']}")
    if not wrong and getattr(made["gat"], "num_classes", 2) != 2:
        wrong.append(f"gat: expected two classes, normal and attack, found {made['gat'].num_classes}")
    if wrong:
        raise ConfigError("The fusion cannot be built:\n  " + "\n  ".join(wrong))
    return CanFusion(**made, agent=build_dqn(**{"dtype": dtype, **(agent or {})}))
