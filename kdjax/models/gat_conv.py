"""Graph attention as PyTorch Geometric computes it: GAT (arXiv 1710.10903) and GATv2 (arXiv 2105.14491).

Parameters have PyG's names and shapes: `lin/kernel`, `att_src`, `att_dst`, `bias`; in GATv2 `lin_l`, `lin_r`, `att`,
`bias`. Messages flow from senders to receivers within each pack, and are weighed and summed in float32.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kdjax.models.dense import dense

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
        self, x: Float[Array, "p n c"], senders: Int[Array, "p e"], receivers: Int[Array, "p e"], train: bool = False
    ) -> Float[Array, "p n d"]:
        values = _heads(self, "lin", use_bias=False)(x)

        def scores(name: str) -> Float[Array, "p n h"]:
            vector = self.param(name, GLOROT, (1, self.heads, self.features))
            return (values * vector[None]).sum(axis=-1)

        source, target = scores("att_src"), scores("att_dst")
        links = _leaky(_at(source, senders) + _at(target, receivers), self.slope)
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
        self, x: Float[Array, "p n c"], senders: Int[Array, "p e"], receivers: Int[Array, "p e"], train: bool = False
    ) -> Float[Array, "p n d"]:
        values = _heads(self, "lin_l")(x)
        targets = values if self.share_weights else _heads(self, "lin_r")(x)
        vector = self.param("att", GLOROT, (1, self.heads, self.features))

        def scores(pairs: Float[Array, "p m h c"]) -> Float[Array, "p m h"]:
            return (_leaky(pairs, self.slope) * vector[None]).sum(axis=-1)

        links = scores(_at(values, senders) + _at(targets, receivers))
        return _attended(self, values, links, scores(values + targets), senders, receivers, train)


CONVS = {"gat": GATConv, "gatv2": GATv2Conv}


def _heads(conv: GATConv | GATv2Conv, name: str, use_bias: bool = True) -> Any:
    """[p, n, c] -> [p, n, h, features]."""
    width = conv.heads * conv.features
    layer = dense(width, use_bias=use_bias, dtype=conv.dtype, kernel_init=GLOROT, name=name)
    return lambda x: layer(x).reshape(*x.shape[:2], conv.heads, conv.features)


def _at(x: Float[Array, "p n *c"], index: Int[Array, "p e"]) -> Float[Array, "p e *c"]:
    return jax.vmap(lambda x, index: x[index])(x, index)


def _leaky(x: Float[Array, "*n"], slope: float) -> Float[Array, "*n"]:
    """Its derivative at 0, which nodes without features reach, is PyTorch's: `slope`."""
    return jnp.where(x > 0, x, slope * x)


def _attended(
    conv: GATConv | GATv2Conv,
    values: Float[Array, "p n h c"],
    links: Float[Array, "p e h"],
    own: Float[Array, "p n h"],
    senders: Int[Array, "p e"],
    receivers: Int[Array, "p e"],
    train: bool,
) -> Float[Array, "p n d"]:
    """The layer's output, of the scores of its edges and of the nodes' own loops."""
    kept = kept_own = None
    if train and conv.dropout:
        kept, kept_own = (_kept(conv, scores.shape) for scores in (links, own))
    out = jax.vmap(propagate)(values, links, own if conv.self_loops else None, senders, receivers, kept, kept_own)
    out = out.reshape(*out.shape[:2], -1) if conv.concat else out.mean(axis=2)
    bias = conv.param("bias", nn.initializers.zeros, (out.shape[-1],))
    return (out + bias[None, None]).astype(conv.dtype)


def _kept(conv: nn.Module, shape: tuple[int, ...]) -> Float[Array, "p m h"]:
    """What attention is multiplied by: 0, or more than 1, so that the mean stays."""
    keep = 1 - conv.dropout  # type: ignore[attr-defined]
    return jax.random.bernoulli(conv.make_rng("dropout"), keep, shape) / keep


def propagate(
    values: Float[Array, "n h c"],
    links: Float[Array, "e h"],
    own: Float[Array, "n h"] | None,
    senders: Int[Array, " e"],
    receivers: Int[Array, " e"],
    kept: Float[Array, "e h"] | None = None,
    kept_own: Float[Array, "n h"] | None = None,
) -> Float[Array, "n h c"]:
    """The mean of the senders' values at each receiver, weighed by softmax over `links`.

    With `own`, the scores of the nodes for themselves, edges from a node to itself do not count. `kept` multiplies
    the weights after the softmax. XLA's scatter on a CPU is as fast as any detour around it.
    """
    n, h, c = values.shape
    values, links = values.astype(jnp.float32), links.astype(jnp.float32)
    if own is not None:
        links = jnp.where((senders != receivers)[:, None], links, -jnp.inf)
    top = jax.ops.segment_max(jax.lax.stop_gradient(links), receivers, n)
    if own is not None:
        own = own.astype(jnp.float32)
        top = jnp.maximum(top, jax.lax.stop_gradient(own))
    top = jnp.where(jnp.isfinite(top), top, 0)  # nothing reaches the node
    weights = jnp.exp(links - top[receivers])
    total = jax.ops.segment_sum(weights, receivers, n)
    weights = weights if kept is None else weights * kept
    messages = values[senders] * weights[:, :, None]
    out = jax.ops.segment_sum(messages.reshape(-1, h * c), receivers, n).reshape(n, h, c)
    if own is not None:
        weights = jnp.exp(own - top)
        total += weights
        out += values * (weights if kept_own is None else weights * kept_own)[:, :, None]
    return out / jnp.where(total > 0, total, 1)[:, :, None]
