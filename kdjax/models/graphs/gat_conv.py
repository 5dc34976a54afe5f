"""Graph attention as PyTorch Geometric computes it: GAT (arXiv 1710.10903) and GATv2 (arXiv 2105.14491).

Parameters have PyG's names and shapes: `lin/kernel`, `att_src`, `att_dst`, `bias`; in GATv2 `lin_l`, `lin_r`, `att`,
`bias`. Messages flow from senders to receivers and are weighed and summed in float32 at least.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph
from jaxtyping import Array, Float, Int

from kdjax.models.layers.dense import dense
from kdjax.models.layers.precision import at_least_float32

GLOROT = nn.initializers.glorot_uniform()


class GATConv(nn.Module):
    """Heads that weigh each message by softmax over the receiver's messages of LeakyReLU(a·Wx_sender + b·Wx_receiver).

    With `self_loops` those of the graph are left out and each node gets one; without, the edges are as they come, and
    a node that nothing reaches gets the bias alone. `dropout` is the attention's.
    """

    features: int  # of each head
    heads: int = 1
    concat: bool = True  # of the heads; else their mean
    self_loops: bool = True
    dropout: float = 0.0
    slope: float = 0.2  # of LeakyReLU, below zero
    dtype: Any = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "n c"], senders: Int[Array, " e"], receivers: Int[Array, " e"], train: bool = False
    ) -> Float[Array, "n d"]:
        values = _heads(self, "lin", use_bias=False)(x)
        vectors = jnp.concatenate([_by_head(self, name) for name in ("att_src", "att_dst")], axis=1)
        source, target = jnp.split(jnp.matmul(values, vectors, precision="highest"), 2, axis=-1)
        links = _leaky(source[senders] + target[receivers], self.slope)
        own = _leaky(source + target, self.slope)
        return _attended(self, values, links, own, senders, receivers, train)


class GATv2Conv(nn.Module):
    """As GATConv, but of a·LeakyReLU(Wx_sender + Vx_receiver); with `share_weights` V is W, which is `lin_l`."""

    features: int
    heads: int = 1
    concat: bool = True
    self_loops: bool = True
    dropout: float = 0.0
    slope: float = 0.2
    share_weights: bool = False
    dtype: Any = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "n c"], senders: Int[Array, " e"], receivers: Int[Array, " e"], train: bool = False
    ) -> Float[Array, "n d"]:
        values = _heads(self, "lin_l")(x)
        targets = values if self.share_weights else _heads(self, "lin_r")(x)
        vectors = _by_head(self, "att")
        score = lambda pairs: jnp.matmul(_leaky(pairs, self.slope), vectors, precision="highest")  # noqa: E731
        links, own = score(values[senders] + targets[receivers]), score(values + targets)
        return _attended(self, values, links, own, senders, receivers, train)


CONVS = {"gat": GATConv, "gatv2": GATv2Conv}


def _heads(conv: GATConv | GATv2Conv, name: str, use_bias: bool = True) -> nn.Dense:
    """The heads lie side by side: on a CPU XLA is several times slower where they have an axis of their own."""
    width = conv.heads * conv.features
    return dense(width, use_bias=use_bias, dtype=conv.dtype, kernel_init=GLOROT, name=name)


def _by_head(conv: GATConv | GATv2Conv, name: str) -> Float[Array, "d h"]:
    """A vector for each head, each in its own rows and column: x @ this are the products of the heads with theirs."""
    vectors = conv.param(name, GLOROT, (1, conv.heads, conv.features))
    return (vectors[0][:, :, None] * jnp.eye(conv.heads)[:, None, :]).reshape(-1, conv.heads)


def _leaky(x: Float[Array, "*n"], slope: float) -> Float[Array, "*n"]:
    """Its derivative at 0, which nodes without features reach, is PyTorch's: `slope`."""
    return jnp.where(x > 0, x, slope * x)


def _attended(
    conv: GATConv | GATv2Conv,
    values: Float[Array, "n d"],
    links: Float[Array, "e h"],
    own: Float[Array, "n h"],
    senders: Int[Array, " e"],
    receivers: Int[Array, " e"],
    train: bool,
) -> Float[Array, "n o"]:
    """The layer's output, of the scores of its edges and of the nodes' own loops."""
    masks = [None, None]
    if train and conv.dropout:
        masks = [_dropout_mask(conv, scores.shape) for scores in (links, own)]
    out = propagate(values, links, own if conv.self_loops else None, senders, receivers, *masks)
    out = out if conv.concat else out.reshape(-1, conv.heads, conv.features).mean(axis=1)
    bias = conv.param("bias", nn.initializers.zeros, (out.shape[-1],))
    return (out + bias[None]).astype(conv.dtype)


def _dropout_mask(conv: GATConv | GATv2Conv, shape: tuple[int, ...]) -> Float[Array, "m h"]:
    """What attention is multiplied by: 0, or more than 1, so that the mean stays."""
    keep = 1 - conv.dropout
    return jax.random.bernoulli(conv.make_rng("dropout"), keep, shape) / keep


def propagate(
    values: Float[Array, "n d"],
    links: Float[Array, "e h"],
    own: Float[Array, "n h"] | None,
    senders: Int[Array, " e"],
    receivers: Int[Array, " e"],
    mask: Float[Array, "e h"] | None = None,
    own_mask: Float[Array, "n h"] | None = None,
) -> Float[Array, "n d"]:
    """The mean of the senders' values at each receiver, weighed head by head by softmax over `links`.

    With `own`, the scores of the nodes for themselves, edges from a node to itself do not count. The masks multiply
    the weights after the softmax.
    """
    n = values.shape[0]  # which has no number in an export
    values, links = at_least_float32(values), at_least_float32(links)
    if own is not None:
        links = jnp.where((senders != receivers)[:, None], links, -jnp.inf)
    top = jraph.segment_max(jax.lax.stop_gradient(links), receivers, n)
    if own is not None:
        own = at_least_float32(own)
        top = jnp.maximum(top, jax.lax.stop_gradient(own))
    top = jnp.where(jnp.isfinite(top), top, 0)  # nothing reaches the node
    weights = jnp.exp(links - top[receivers])
    total = jraph.segment_sum(weights, receivers, n)
    wide = lambda w: jnp.repeat(w, values.shape[1] // w.shape[1], axis=1)  # noqa: E731
    alone = 0.0
    if own is not None:
        own_weights = jnp.exp(own - top)
        total += own_weights
        own_weights /= total
        alone = values * wide(own_weights if own_mask is None else own_weights * own_mask)
    weights /= total[receivers]
    messages = values[senders] * wide(weights if mask is None else weights * mask)
    return alone + jraph.segment_sum(messages, receivers, n)
