"""Fusions in which the embeddings of image and text are two tokens that attend to each other."""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.models.fusion.options import Options
from kdjax.models.layers.dense import dense
from kdjax.models.layers.gelu import gelu
from kdjax.models.layers.precision import at_least_float32


class Attention(nn.Module):
    """Attention to the tokens that are there, and its weights, the mean of all heads; of so few tokens that they need
    no blocks. Where none is there, all count."""

    options: Options

    @nn.compact
    def __call__(
        self, query: Float[Array, "b m d"], tokens: Float[Array, "b n d"], there: Bool[Array, "b n"], train: bool
    ) -> tuple[Float[Array, "b m d"], Float[Array, "b m n"]]:
        o = self.options

        def by_head(name: str, x: Float[Array, "b k d"]) -> Float[Array, "b k heads c"]:
            return dense(o.dim, dtype=o.dtype, name=name)(x).reshape(*x.shape[:2], o.heads, -1)

        q, k, v = by_head("q", query), by_head("k", tokens), by_head("v", tokens)
        scores = at_least_float32(jnp.einsum("bmhc,bnhc->bhmn", q * q.shape[-1] ** -0.5, k))
        weights = nn.softmax(jnp.where(there[:, None, None], scores, jnp.finfo(scores.dtype).min))
        kept = nn.Dropout(o.dropout, deterministic=not train)(weights)
        y = jnp.einsum("bhmn,bnhc->bmhc", kept.astype(v.dtype), v)
        return dense(o.dim, dtype=o.dtype, name="out_proj")(y.reshape(query.shape)), weights.mean(axis=1)


class FeedForward(nn.Module):
    options: Options

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"], train: bool) -> Float[Array, "*b d"]:
        o = self.options
        drop = nn.Dropout(o.dropout, deterministic=not train)
        x = drop(gelu(dense(4 * o.dim, dtype=o.dtype, name="linear1")(x)))
        return drop(dense(o.dim, dtype=o.dtype, name="linear2")(x))


class Layer(nn.Module):
    """A layer of a transformer that normalises after each branch (Vaswani et al. 2017, arXiv 1706.03762)."""

    options: Options

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], there: Bool[Array, "b n"], train: bool
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b n n"]]:
        o = self.options
        y, weights = Attention(o, name="self_attn")(x, x, there, train)
        x = norm(o, "norm1")(x + nn.Dropout(o.dropout, deterministic=not train)(y))
        return norm(o, "norm2")(x + FeedForward(o, name="ffn")(x, train)), weights


class Encoder(nn.Module):
    """`simple` and `transformer_concat`: both tokens through the layers of a transformer, and their mean.

    The original's transformer_concat has learned tokens of image and text, and writes the embeddings over them: they
    count for nothing, so both names are one here. The shares are the last layer's attention, the mean of its queries.
    """

    options: Options

    endpoints: ClassVar[tuple[str, ...]] = ("fused", "shares")

    @nn.compact
    def __call__(
        self, image: Float[Array, "b d"], text: Float[Array, "b d"], there: Bool[Array, "b 2"], train: bool
    ) -> dict[str, Array]:
        x, weights = jnp.stack([image, text], axis=1), jnp.zeros((len(image), 2, 2))
        for i in range(self.options.layers):
            x, weights = Layer(self.options, name=f"layers_{i}")(x, there, train)
        return {"fused": mean_there(x, there), "shares": mean_there(weights, there)}


class CrossAttention(nn.Module):
    """`cross_attention`: the mean of both tokens, normalised, asks the two of them; of its answer x, x + FFN(LN(x))."""

    options: Options

    endpoints: ClassVar[tuple[str, ...]] = ("fused", "shares")

    @nn.compact
    def __call__(
        self, image: Float[Array, "b d"], text: Float[Array, "b d"], there: Bool[Array, "b 2"], train: bool
    ) -> dict[str, Array]:
        o, tokens = self.options, jnp.stack([image, text], axis=1)
        query = norm(o, "norm1")(tokens.mean(axis=1))
        x, weights = Attention(o, name="cross_attn")(query[:, None], tokens, there, train)
        x = x[:, 0]
        return {"fused": x + FeedForward(o, name="ffn")(norm(o, "norm2")(x), train), "shares": weights[:, 0]}


def norm(o: Options, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-5, dtype=o.dtype, name=name)


def mean_there(x: Float[Array, "b n d"], there: Bool[Array, "b n"]) -> Float[Array, "b d"]:
    """The mean of the tokens that are there; 0 where none is."""
    count = jnp.maximum(there.sum(axis=1), 1)[:, None]
    return jnp.where(there[..., None], x, 0).sum(axis=1) / count.astype(x.dtype)
