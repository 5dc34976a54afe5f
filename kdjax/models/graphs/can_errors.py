"""How badly a model of CAN graphs says what its nodes are: per node, and what of it tells of an attack per graph."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kdjax.models.graphs.pooling import Count, graph_max, graph_mean


def node_errors(
    features: Float[Array, "p n f"],
    id_logits: Float[Array, "p n k"],
    neighbour_logits: Float[Array, "p n k"],
    x: Float[Array, "p n f"],
    id: Int[Array, "p n"],
    senders: Int[Array, "p e"],
    receivers: Int[Array, "p e"],
    graph: Int[Array, "p n"],
    g: Count,
) -> dict[str, Array]:
    """`feature_error` [p, n], the mean square over features; `id_error` [p, n], cross-entropy of the id;
    `neighbour_error` [p, n], binary cross-entropy of which ids the node sends to, the mean over all ids; each 0 for
    padding. `anomaly_parts` [p, g, 3]: a graph's largest feature and neighbour error, and the share of wrong ids.
    """
    squares = jnp.square(features.astype(jnp.float32) - x).mean(axis=-1)
    logits, neighbours = id_logits.astype(jnp.float32), neighbour_logits.astype(jnp.float32)
    own = jnp.take_along_axis(logits, id[:, :, None], axis=-1)[:, :, 0]
    missed = jax.nn.logsumexp(logits, axis=-1) - own
    sent = jax.vmap(sent_to, in_axes=(0, 0, 0, None))(id, senders, receivers, logits.shape[-1])
    binary = jax.nn.softplus(jnp.where(sent, -neighbours, neighbours)).mean(axis=-1)
    errors = {"feature_error": squares, "neighbour_error": binary, "id_error": missed}
    errors = {name: jnp.where(graph < g, error, 0) for name, error in errors.items()}
    wrong = (jnp.argmax(logits, axis=-1) != id).astype(jnp.float32)
    worst = graph_max(jnp.stack([squares, binary], axis=-1), graph, g)
    return errors | {"anomaly_parts": jnp.concatenate([worst, graph_mean(wrong[:, :, None], graph, g)], axis=-1)}


def sent_to(id: Int[Array, " n"], senders: Int[Array, " e"], receivers: Int[Array, " e"], num_ids: int) -> Array:
    """[n, num_ids], True where the node sends to one of that id; several of them, as the unknown ones, are one."""
    return jnp.zeros((id.shape[0], num_ids), bool).at[senders, id[receivers]].set(True)
