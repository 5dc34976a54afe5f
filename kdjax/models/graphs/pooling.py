"""What the nodes of each graph have in common: [n, d] -> [g, d]; 0 for graphs without nodes."""

import jax
import jax.numpy as jnp
import jraph
from jaxtyping import Array, Float, Int

from kdjax.models.layers.precision import at_least_float32


def graph_of_node(graphs: jraph.GraphsTuple) -> Int[Array, " n"]:
    n = jax.tree.leaves(graphs.nodes)[0].shape[0]  # which has no number in an export
    return jnp.repeat(jnp.arange(graphs.n_node.shape[0]), graphs.n_node, total_repeat_length=n)


def graph_mean(x: Float[Array, "n d"], graphs: jraph.GraphsTuple) -> Float[Array, "g d"]:
    # Divided by n_node, which spares the sum of ones that jraph.segment_mean takes.
    total = jraph.segment_sum(at_least_float32(x), graph_of_node(graphs), graphs.n_node.shape[0])
    return (total / jnp.maximum(graphs.n_node, 1)[:, None]).astype(x.dtype)


def graph_max(x: Float[Array, "n d"], graphs: jraph.GraphsTuple) -> Float[Array, "g d"]:
    largest = jraph.segment_max(x, graph_of_node(graphs), graphs.n_node.shape[0])
    return jnp.where(graphs.n_node[:, None] > 0, largest, 0)
