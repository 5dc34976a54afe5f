"""Softmax attention for every model."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

SCORES_AT_ONCE = 2**19  # on a CPU, where 2 MiB of float32 scores still lie in the cache when they are used
QUERIES_AT_ONCE = 128


def attention(
    query: Float[Array, "b n heads d"],
    key: Float[Array, "b m heads d"],
    value: Float[Array, "b m heads d"],
    rows: Float[Array, "b n heads kh"] | None = None,
    columns: Float[Array, "b n heads kw"] | None = None,
) -> Float[Array, "b n heads d"]:
    """softmax(query · key / sqrt(d) + bias) · value; scores and softmax in float32.

    The bias of key (i, j) of a kh × kw grid, in row-major order, is rows[..., i] + columns[..., j].

    On a CPU the scores are made, used and forgotten a block at a time, and made again for the gradient: storing them
    all is several times slower and needs memory for b · heads · n · m of them. Other devices get one fused program.
    """
    b, n, heads, d = query.shape
    m = key.shape[1]
    of_query = (query * d**-0.5,) if rows is None or columns is None else (query * d**-0.5, rows, columns)
    by_head = jax.tree.map(_by_head, (of_query, key, value))
    if jax.default_backend() != "cpu" or b * heads * n * m <= SCORES_AT_ONCE:
        out = jax.vmap(jax.vmap(_one_query, (0, None, None)))(*by_head)
    else:
        block = min(n, QUERIES_AT_ONCE if n * m > SCORES_AT_ONCE // 4 else n)
        one_query = jax.checkpoint(_one_query, prevent_cse=False)

        def one_head(arguments):
            of_query, key, value = arguments
            return jax.lax.map(lambda x: one_query(x, key, value), of_query, batch_size=block)

        out = jax.lax.map(one_head, by_head, batch_size=max(1, min(b * heads, SCORES_AT_ONCE // (block * m))))
    return jnp.swapaxes(out.reshape(b, heads, n, d), 1, 2)


def _by_head(x: Float[Array, "b n heads d"]) -> Float[Array, "g n d"]:
    return jnp.swapaxes(x, 1, 2).reshape(-1, x.shape[1], x.shape[3])


def _one_query(
    of_query: tuple[Float[Array, "_"], ...], key: Float[Array, "m d"], value: Float[Array, "m d"]
) -> Float[Array, "d"]:
    """The answer to one scaled query of one head, given as (query,) or (query, rows, columns)."""
    query, *bias = of_query
    scores = jnp.dot(key, query, preferred_element_type=jnp.float32)
    if bias:
        rows, columns = (x.astype(jnp.float32) for x in bias)
        scores += (rows[:, None] + columns[None, :]).reshape(-1)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max()))
    out = jnp.dot(weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return (out / weights.sum()).astype(value.dtype)
