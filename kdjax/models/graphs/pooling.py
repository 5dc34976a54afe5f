"""What the nodes of each graph of a pack have in common: [p, n, d] -> [p, g, d]; 0 for graphs without nodes."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Count = Any  # an int, or a symbol while a model is exported for any size


def graph_mean(x: Float[Array, "p n d"], graph: Int[Array, "p n"], g: Count) -> Float[Array, "p g d"]:
    total = jax.vmap(lambda x, graph: jax.ops.segment_sum(x, graph, g))(x.astype(jnp.float32), graph)
    return (total / jnp.maximum(graph_count(graph, g), 1)[:, :, None]).astype(x.dtype)


def graph_max(x: Float[Array, "p n d"], graph: Int[Array, "p n"], g: Count) -> Float[Array, "p g d"]:
    top = jax.vmap(lambda x, graph: jax.ops.segment_max(x, graph, g))(x, graph)
    return jnp.where(graph_count(graph, g)[:, :, None] > 0, top, 0)


def graph_count(graph: Int[Array, "p n"], g: Count) -> Float[Array, "p g"]:
    """The number of nodes."""
    return jax.vmap(lambda graph: jax.ops.segment_sum(jnp.ones(graph.shape), graph, g))(graph)
