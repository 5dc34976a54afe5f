"""Softmax attention for every model."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.models.layers.precision import at_least_float32, wide_dtype

SCORES_AT_ONCE = 2**19  # on a CPU, where 2 MiB of float32 scores are still in the cache when they are used
QUERIES_AT_ONCE = 128


def attention(
    query: Float[Array, "b n heads d"],
    key: Float[Array, "b m heads d"],
    value: Float[Array, "b m heads d"],
    rows: Float[Array, "b n heads kh"] | None = None,
    columns: Float[Array, "b n heads kw"] | None = None,
    *,
    bias: Float[Array, "heads n m"] | None = None,
    count: Float[Array, "b m"] | None = None,
    mask: Bool[Array, "b m"] | None = None,
) -> Float[Array, "b n heads d"]:
    """softmax(query · key / sqrt(d) + bias) · value; scores and softmax in float32 at least.

    The bias is `bias`, for each head the same in all examples, or that of key (i, j) of a kh × kw grid, in row-major
    order, is rows[..., i] + columns[..., j]. A key with a `count` is as so many keys, one that the `mask` leaves out as
    none; where it leaves out all of an example's, the answers are finite and mean nothing.

    On one CPU the scores are made, used and forgotten a block at a time, and made again for the gradient: storing all
    b · heads · n · m of them is several times slower. Elsewhere, and with a `bias`, XLA gets the whole at once.
    """
    b, n, heads, d = query.shape
    m = key.shape[1]
    of_query = (query * d**-0.5,) if rows is None or columns is None else (query * d**-0.5, rows, columns)
    of_query, of_key, value = jax.tree.map(_by_head, (of_query, (key,), value))
    if bias is not None:
        of_query = (*of_query, jnp.broadcast_to(bias[None], (b, heads, n, m)).reshape(-1, n, m))
    if count is not None or mask is not None:
        extra = jnp.zeros((), wide_dtype(query)) if count is None else jnp.log(at_least_float32(count))
        if mask is not None:
            extra = jnp.where(mask, extra, jnp.finfo(wide_dtype(query)).min / 2)  # half: there is room for the score
        of_key = (*of_key, jnp.broadcast_to(extra[:, None], (b, heads, m)).reshape(-1, m))
    one_cpu = jax.default_backend() == "cpu" and jax.device_count() == 1  # a loop over heads would gather a mesh's
    if one_cpu and bias is None and b * heads * n * m > SCORES_AT_ONCE:
        out = _in_blocks(of_query, of_key, value)
    else:
        out = jax.vmap(_queries)(of_query, of_key, value)
    return jnp.swapaxes(out.reshape(b, heads, n, d), 1, 2)


def _by_head(x: Float[Array, "b n heads d"]) -> Float[Array, "g n d"]:
    return jnp.swapaxes(x, 1, 2).reshape(-1, x.shape[1], x.shape[3])


def _one_query(of_query: tuple[Array, ...], of_key: tuple[Array, ...], value: Float[Array, "m d"]) -> Float[Array, "d"]:
    """The answer to one scaled query of one head: (query,), (query, bias) or (query, rows, columns).

    The keys are (key,) or (key, what each adds to its score).
    """
    query, *bias = of_query
    key, *extra = of_key
    bias = [at_least_float32(x) for x in bias]
    scores = jnp.dot(key, query, preferred_element_type=wide_dtype(query))
    if len(bias) == 1:
        scores += bias[0]
    elif bias:
        scores += (bias[0][:, None] + bias[1][None, :]).reshape(-1)
    if extra:
        scores += extra[0]
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max()))
    out = jnp.dot(weights.astype(value.dtype), value, preferred_element_type=wide_dtype(value))
    return (out / weights.sum()).astype(value.dtype)


_queries = jax.vmap(_one_query, (0, None, None))


@jax.custom_vjp
def _in_blocks(of_query: tuple[Array, ...], of_key: tuple[Array, ...], value: Float[Array, "g m d"]) -> Array:
    block, group = _sizes(of_query, value)

    def one_head(query, rest):
        bias, of_key, value = rest
        out = jax.lax.map(lambda x: _queries(x, of_key, value), _cut((query, *bias), block))
        return out.reshape(-1, value.shape[-1])[: len(query)]

    return _replace(one_head, of_query[0], (of_query[1:], of_key, value), group)


def _forward(of_query, of_key, value):
    return _in_blocks(of_query, of_key, value), (of_query, of_key, value)


def _backward(saved, gradient):
    """By hand only so that nothing but the inputs is kept, and kept once."""
    block, group = _sizes(saved[0], saved[2])

    def one_head(saved, gradient):
        of_query, *shared = saved

        def step(total, part):
            _, pull = jax.vjp(_queries, part[0], *shared)
            of_query, *more = pull(part[1])
            return jax.tree.map(jnp.add, total, tuple(more)), of_query

        zeros = tuple(jax.tree.map(lambda x: jnp.zeros(x.shape), shared))
        total, parts = jax.lax.scan(step, zeros, (_cut(of_query, block), _cut(gradient, block)))
        d_query = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1])[: len(gradient)], parts)
        return d_query, *jax.tree.map(lambda x, y: x.astype(y.dtype), total, tuple(shared))

    return _replace(one_head, saved, gradient, group)


_in_blocks.defvjp(_forward, _backward)


def _sizes(of_query: tuple[Array, ...], value: Array) -> tuple[int, int]:
    """Queries of a head at once, and, where that is all of them, heads at once."""
    heads, n = of_query[0].shape[:2]
    m = value.shape[1]
    block = n if n * m <= SCORES_AT_ONCE // 4 else min(n, QUERIES_AT_ONCE)
    limit = max(1, SCORES_AT_ONCE // (block * m))
    return block, max(x for x in range(1, limit + 1) if heads % x == 0)


def _cut(tree: Any, block: int) -> Any:
    """[n, c] -> [n / block, block, c], with zeros where n does not divide."""
    return jax.tree.map(lambda x: jnp.pad(x, ((0, -len(x) % block), (0, 0))).reshape(-1, block, x.shape[-1]), tree)


def _replace(f: Callable, old: Any, rest: Any, group: int) -> Any:
    """f(old, rest) for each head, `group` heads at a time, written over `old`.

    `lax.map` would allot zeros for its results, which XLA does at the very start of a program, for every layer.
    """
    old, rest = jax.tree.map(lambda x: x.reshape(-1, group, *x.shape[1:]), (old, rest))

    def step(i, old):
        new = jax.vmap(f)(*jax.tree.map(lambda x: x[i], (old, rest)))
        return jax.tree.map(lambda x, y: x.at[i].set(y), old, new)

    out = jax.lax.fori_loop(0, len(jax.tree.leaves(old)[0]), step, old)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)
