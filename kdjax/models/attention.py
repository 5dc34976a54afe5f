"""Softmax attention for every model."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def attention(
    query: Float[Array, "b n heads d"],
    key: Float[Array, "b m heads d"],
    value: Float[Array, "b m heads d"],
    rows: Float[Array, "b n heads kh"] | None = None,
    columns: Float[Array, "b n heads kw"] | None = None,
) -> Float[Array, "b n heads d"]:
    """softmax(query · key / sqrt(d) + bias) · value.

    The bias of key (i, j) of a kh × kw grid, in row-major order, is rows[..., i] + columns[..., j].
    """
    scores = jnp.einsum("bnhd,bmhd->bhnm", query * query.shape[-1] ** -0.5, key)
    if rows is not None and columns is not None:
        bias = rows[..., :, None] + columns[..., None, :]
        scores += jnp.moveaxis(bias.reshape(*bias.shape[:3], -1), 1, 2)
    weights = jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(value.dtype)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, value)
