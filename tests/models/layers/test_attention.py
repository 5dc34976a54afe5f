"""Attention, GELU and the dense layer: against plain numpy, and lean in memory where that is their reason."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from kdjax.models.layers import attention as module
from kdjax.models.layers.attention import attention
from kdjax.models.layers.dense import dense
from kdjax.models.layers.gelu import gelu

# b, n, m, heads, d, kh, kw: one block, several heads at once, several blocks, blocks with a remainder
SHAPES = [(1, 6, 6, 2, 4, 2, 3), (3, 12, 12, 4, 8, 3, 4), (2, 64, 64, 3, 8, 8, 8), (1, 55, 63, 3, 8, 7, 9)]


@pytest.fixture
def in_blocks(monkeypatch):
    """As on a machine with one CPU device and a tiny cache."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(module, "SCORES_AT_ONCE", 1024)
    monkeypatch.setattr(module, "QUERIES_AT_ONCE", 10)


def inputs(b, n, m, heads, d, kh, kw):
    rng = np.random.default_rng(0)
    shapes = [(b, n, heads, d), (b, m, heads, d), (b, m, heads, d), (b, n, heads, kh), (b, n, heads, kw)]
    return [jnp.asarray(2 * rng.normal(size=s), jnp.float32) for s in shapes]


def plain(query, key, value, rows=None, columns=None, bias=None):
    """[b, n, heads, d] in float64, a query at a time."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    out = np.zeros(query.shape)
    for b, n, h in np.ndindex(query.shape[:3]):
        scores = key[b, :, h] @ query[b, n, h] / math.sqrt(query.shape[-1])
        if rows is not None and columns is not None:
            scores = scores + np.add.outer(np.float64(rows[b, n, h]), np.float64(columns[b, n, h])).ravel()
        if bias is not None:
            scores = scores + np.float64(bias[h, n])
        weights = np.exp(scores - scores.max())
        out[b, n, h] = weights @ value[b, :, h] / weights.sum()
    return out


def loops(f, *x) -> bool:
    return "scan[" in str(jax.make_jaxpr(lambda *x: f(*x))(*x))  # a new function, so that no trace is remembered


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_whole(shape):
    x = inputs(*shape)
    assert not loops(attention, *x)
    np.testing.assert_allclose(attention(*x), plain(*x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(attention(*x[:3]), plain(*x[:3]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[3]], ids=str)
def test_a_bias_that_all_examples_share(shape):
    _, n, m, heads, *_ = shape
    query, key, value, *_ = inputs(*shape)
    bias = jnp.asarray(np.random.default_rng(4).normal(size=(heads, n, m)), jnp.float32)
    np.testing.assert_allclose(
        attention(query, key, value, bias=bias), plain(query, key, value, bias=bias), rtol=1e-4, atol=1e-5
    )
    narrow = attention(*(x.astype(jnp.bfloat16) for x in (query, key, value)), bias=bias)
    assert narrow.dtype == jnp.bfloat16


@pytest.mark.long
@pytest.mark.parametrize("blocks", [False, True])
def test_a_key_with_a_count_is_as_so_many(blocks, request):
    if blocks:
        request.getfixturevalue("in_blocks")
    query, key, value, *_ = inputs(*SHAPES[3])
    count = np.random.default_rng(5).integers(1, 4, size=key.shape[1])
    several = [jnp.repeat(x, count, axis=1, total_repeat_length=count.sum()) for x in (key, value)]
    counts = jnp.asarray(count[None], jnp.float32)
    slopes = jax.grad(lambda x: jnp.square(attention(query, *x, count=counts)).sum())((key, value))
    expected = jax.grad(lambda x: jnp.square(attention(query, *x)).sum())(several)
    np.testing.assert_allclose(attention(query, key, value, count=counts), plain(query, *several), rtol=1e-4, atol=1e-5)
    starts = np.cumsum(count) - count
    for found, each in zip(slopes, expected, strict=True):  # a key's slope is the sum of its copies'
        np.testing.assert_allclose(found, np.add.reduceat(np.asarray(each), starts, axis=1), rtol=1e-3, atol=1e-4)


def squared(x, **options):
    """The sum of the answers' squares, and its slopes."""
    return jax.jit(jax.value_and_grad(lambda x: jnp.square(attention(*x, **options)).sum()))(x)


@pytest.fixture
def masked():
    """Queries, keys and values of two examples, the second with two keys; those left out are huge."""
    x = inputs(*SHAPES[1])[:3]
    there = jnp.arange(12)[None] < jnp.array([[12], [2], [12]])
    far = jnp.where(there, 1.0, 1e4)[:, :, None, None]
    return [x[0], x[1] * far, x[2] * far], there


def test_a_masked_key_is_as_none(masked):
    (query, key, value), there = masked
    found = attention(query, key, value, mask=there)
    expected = plain(query, key, value)
    expected[1:2] = plain(query[1:2], key[1:2, :2], value[1:2, :2])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("blocks", [False, True])
def test_slopes_of_a_masked_key_are_zero_and_the_others_as_without_it(masked, blocks, request, monkeypatch):
    if blocks:
        request.getfixturevalue("in_blocks")
        monkeypatch.setattr(module, "SCORES_AT_ONCE", 128)
    given, there = masked
    assert loops(attention, *given) is blocks
    total, slopes = squared(given, mask=there)
    parts = [
        squared([x[i : i + 1, : n if x is not given[0] else 12] for x in given]) for i, n in enumerate((12, 2, 12))
    ]
    np.testing.assert_allclose(total, sum(part for part, _ in parts), rtol=1e-5)
    for i, (_, expected) in enumerate(parts):
        for found, wanted in zip(slopes, expected, strict=True):
            np.testing.assert_allclose(found[i, : wanted.shape[1]], wanted[0], rtol=1e-3, atol=1e-4)
            np.testing.assert_array_equal(found[i, wanted.shape[1] :], 0)


@pytest.mark.parametrize("blocks", [False, pytest.param(True, marks=pytest.mark.long)])
def test_where_all_keys_are_masked_answers_and_slopes_are_finite(blocks, request):
    """As in the rows of padding that fill up a batch."""
    if blocks:
        request.getfixturevalue("in_blocks")
    x = inputs(*SHAPES[2])[:3]
    out = squared(x, count=jnp.ones((2, 64)), mask=jnp.zeros((2, 64), bool))
    assert all(bool(jnp.isfinite(v).all()) for v in jax.tree.leaves(out))


@pytest.mark.usefixtures("in_blocks")
@pytest.mark.parametrize("shape", SHAPES[2:], ids=str)
def test_in_blocks(shape):
    x = inputs(*shape)
    assert loops(attention, *x)
    np.testing.assert_allclose(attention(*x), plain(*x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(attention(*x[:3]), plain(*x[:3]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("shape", "biased"), [(SHAPES[1], True), (SHAPES[2], False), (SHAPES[3], True)], ids=str)
def test_gradient_in_blocks_is_that_of_the_whole(shape, biased, request):
    x = inputs(*shape)[: 5 if biased else 3]
    weight = jnp.asarray(np.random.default_rng(1).normal(size=x[0].shape), jnp.float32)

    def gradients():
        return jax.jit(jax.grad(lambda x: (attention(*x) * weight).sum()))

    whole = gradients()(x)
    request.getfixturevalue("in_blocks")
    assert loops(gradients(), x)
    for found, wanted in zip(gradients()(x), whole, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * float(jnp.abs(wanted).max()))


@pytest.mark.long
def test_gradient_against_differences():
    """One directional derivative of the whole, in float64 numpy."""
    x = inputs(1, 5, 6, 2, 4, 2, 3)
    rng = np.random.default_rng(2)
    weight = rng.normal(size=x[0].shape)
    direction = [rng.normal(size=v.shape) for v in x]
    found = jax.grad(lambda x: (attention(*x) * weight.astype(np.float32)).sum())(x)
    found = sum((np.asarray(g, np.float64) * d).sum() for g, d in zip(found, direction, strict=True))
    at = [
        (plain(*(np.float64(v) + s * d for v, d in zip(x, direction, strict=True))) * weight).sum()
        for s in (1e-5, -1e-5)
    ]
    np.testing.assert_allclose(found, (at[0] - at[1]) / 2e-5, rtol=1e-4)


@pytest.mark.usefixtures("in_blocks")
def test_blocks_store_no_scores():
    x = inputs(1, 256, 256, 4, 8, 16, 16)
    program = jax.jit(jax.grad(lambda x: attention(*x).sum())).lower(x).compile()
    statistics = program.memory_analysis()
    assert statistics is not None
    assert statistics.temp_size_in_bytes < 4 * 256 * 256 * 4 / 2


@pytest.mark.parametrize("blocks", [True, False])
def test_extreme_scores(blocks, request):
    if blocks:
        request.getfixturevalue("in_blocks")
    x = [1e3 * v for v in inputs(1, 64, 64, 2, 8, 8, 8)]
    out, gradients = jax.value_and_grad(lambda x: attention(*x).sum())(x)
    assert all(bool(jnp.isfinite(v).all()) for v in jax.tree.leaves((out, gradients)))


def test_bfloat16_keeps_its_dtype():
    x = [v.astype(jnp.bfloat16) for v in inputs(1, 64, 64, 2, 8, 8, 8)]
    out = attention(*x)
    assert out.dtype == jnp.bfloat16
    error = np.abs(np.asarray(out, np.float64) - plain(*x)).max()
    assert error < 0.03 * np.abs(plain(*x)).max()


def test_gelu():
    x = np.concatenate([np.linspace(-12, 12, 241), [-1e4, 1e4]])
    cumulative = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x])
    slope = cumulative + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    wide = jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(gelu(wide), x * cumulative, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda v: gelu(v).sum())(wide), slope, rtol=1e-5, atol=1e-6)
    narrow = wide.astype(jnp.bfloat16)
    assert gelu(narrow).dtype == jax.grad(lambda v: gelu(v).sum())(narrow).dtype == jnp.bfloat16


def test_gelu_keeps_one_array_for_the_gradient():
    _, pull = jax.vjp(gelu, jnp.ones((64, 64)))
    assert sum(leaf.size for leaf in jax.tree.leaves(pull)) == 64 * 64


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4, 5)], ids=str)
def test_dense_is_nn_dense(shape):
    x = jnp.asarray(np.random.default_rng(3).normal(size=shape), jnp.float32)
    layer, wanted = dense(7), nn.Dense(7)
    variables = wanted.init(jax.random.key(0), x)
    assert isinstance(layer, nn.Dense)

    def loss(layer):
        return lambda variables, x: (layer.apply(variables, x) ** 2).sum()

    np.testing.assert_allclose(layer.apply(variables, x), wanted.apply(variables, x), rtol=1e-6)
    found, wanted = (jax.grad(loss(m), (0, 1))(variables, x) for m in (layer, wanted))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, wanted)
