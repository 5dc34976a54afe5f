"""Tokens that are alike become one (ToMe, arXiv 2210.09461)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.models.layers.precision import at_least_float32


def merged(
    x: Float[Array, "b n d"], size: Float[Array, "b n"], key: Float[Array, "b n c"], count: int, kept: int
) -> tuple[Float[Array, "b m d"], Float[Array, "b m"]]:
    """Fewer tokens by `count`, and how many patches each stands for.

    Every second patch chooses, among the others, the one whose key has the largest cosine with its own; of these pairs
    the `count` closest become their mean, weighted by size ("bipartite soft matching"). The patches that chose come
    before those that were chosen. The first `kept` tokens take no part and stay in front.
    """
    even = kept % 2  # all tokens are counted, and those at even places choose
    choose, chosen = slice(kept + even, None, 2), slice(kept + 1 - even, None, 2)
    wide = at_least_float32(jax.lax.stop_gradient(key))
    unit = wide / jnp.maximum(jnp.linalg.norm(wide, axis=2, keepdims=True), 1e-12)
    cosine = jnp.einsum("bic,bjc->bij", unit[:, choose], unit[:, chosen])
    closest_first = jnp.argsort(-cosine.max(axis=2), axis=1)
    leaving, staying = closest_first[:, :count], jnp.sort(closest_first[:, count:], axis=1)
    partner = jnp.take_along_axis(cosine.argmax(axis=2), leaving, axis=1)
    goes_to = jax.nn.one_hot(partner, cosine.shape[2], dtype=wide.dtype)  # a product: a scatter's order is not fixed

    def sums(x: Float[Array, "b n e"]) -> Float[Array, "b m e"]:
        choosing = x[:, choose]
        stay, leave = (jnp.take_along_axis(choosing, at[..., None], axis=1) for at in (staying, leaving))
        joined = x[:, chosen] + jnp.einsum("brj,bre->bje", goes_to, leave)
        return jnp.concatenate([x[:, :kept], stay, joined], axis=1)

    total = sums(size[..., None])
    return (sums(at_least_float32(x) * size[..., None]) / total).astype(x.dtype), total[..., 0]
