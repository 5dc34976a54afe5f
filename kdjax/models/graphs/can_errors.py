"""How badly a model of CAN graphs says what its nodes are: per node, and what of it tells of an attack per graph."""

import jax
import jax.numpy as jnp
import jraph
from jaxtyping import Array, Float, Int

from kdjax.models.graphs.pooling import graph_max, graph_mean
from kdjax.models.layers.precision import at_least_float32


def node_errors(
    features: Float[Array, "n f"],
    id_logits: Float[Array, "n k"],
    neighbour_logits: Float[Array, "n k"],
    graphs: jraph.GraphsTuple,
) -> dict[str, Array]:
    """`feature_error` [n], the mean square over features; `id_error` [n], cross-entropy of the id; `neighbour_error`
    [n], binary cross-entropy of which ids the node sends to, the mean over all ids. `anomaly_parts` [g, 3]: a graph's
    largest feature and neighbour error, and the share of wrong ids.
    """
    x, ids = graphs.nodes["x"], graphs.nodes["id"]
    squares = jnp.square(at_least_float32(features) - x).mean(axis=-1)
    logits, neighbours = at_least_float32(id_logits), at_least_float32(neighbour_logits)
    own = jnp.take_along_axis(logits, ids[:, None], axis=-1)[:, 0]
    missed = jax.nn.logsumexp(logits, axis=-1) - own
    sent = sent_to(ids, graphs.senders, graphs.receivers, logits.shape[-1])
    binary = jax.nn.softplus(jnp.where(sent, -neighbours, neighbours)).mean(axis=-1)
    wrong = (jnp.argmax(logits, axis=-1) != ids).astype(jnp.float32)
    worst = graph_max(jnp.stack([squares, binary], axis=-1), graphs)
    parts = jnp.concatenate([worst, graph_mean(wrong[:, None], graphs)], axis=-1)
    return {"feature_error": squares, "neighbour_error": binary, "id_error": missed, "anomaly_parts": parts}


def sent_to(ids: Int[Array, " n"], senders: Int[Array, " e"], receivers: Int[Array, " e"], num_ids: int) -> Array:
    """[n, num_ids], True where the node sends to one of that id; several of them, as the unknown ones, are one."""
    return jnp.zeros((ids.shape[0], num_ids), bool).at[senders, ids[receivers]].set(True)
