"""Windows of a map, biases by relative position, and cosine attention, beside their definitions in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.models.layers import windows
from kdjax.models.layers.windows import Windows, cosine_attention, cut, joined, relative
from tests.support.quick import QUICK


def test_windows_are_cut_and_joined():
    """Rows and columns are numbered, so that each window shows what is in it."""
    cuts = Windows.of((5, 6), 4, True)
    assert (cuts.size, cuts.shift, cuts.padding, cuts.grid) == ((4, 4), (2, 2), (3, 2), (2, 2))
    whole = np.zeros((8, 8))
    whole[:5, :6] = 1 + np.arange(30).reshape(5, 6)
    x = jnp.asarray(whole[None, :5, :6, None], jnp.float32)
    found = cut(x, cuts)
    rolled = np.roll(whole, (-2, -2), (0, 1))
    expected = [rolled[i : i + 4, j : j + 4].reshape(-1) for i in (0, 4) for j in (0, 4)]
    np.testing.assert_array_equal(found[..., 0], expected)
    np.testing.assert_array_equal(joined(found, cuts, (5, 6)), x)


def test_a_map_that_is_a_window_is_not_shifted():
    low = Windows.of((4, 9), 4, True)
    assert (low.size, low.shift) == ((4, 4), (0, 2))
    assert Windows.of((3, 2), 4, True) == Windows((3, 2), (3, 2), (0, 0))


@pytest.mark.parametrize("map", [(8, 12), (5, 6), (4, 8)])
def test_pairs_that_only_the_roll_brought_together_are_apart(map):
    cuts = Windows.of(map, 4, True)
    (gh, gw), (dh, dw) = cuts.grid, cuts.shift
    for window, pairs in enumerate(cuts.apart()):
        top, left = 4 * (window // gw), 4 * (window % gw)
        for q in range(16):
            for k in range(16):
                (y, x), (v, u) = divmod(q, 4), divmod(k, 4)
                down = [(top + row + dh) // (4 * gh) for row in (y, v)]  # 1 for a row from above the first
                across = [(left + column + dw) // (4 * gw) for column in (x, u)]
                assert pairs[q, k] == (down[0] != down[1] or across[0] != across[1])


@pytest.mark.parametrize("size", [(3, 5), (1, 4)])
def test_relative_positions(size):
    (h, w), rng = size, np.random.default_rng(0)
    table = rng.normal(size=(2 * h - 1, 2 * w - 1, 3)).astype(np.float32)
    gradient = rng.normal(size=(3, h * w, h * w)).astype(np.float32)

    def of(table, gradient):
        found, pull = jax.vjp(lambda x: relative(x, size), table)
        return found, pull(gradient)[0]

    found, pulled = jax.jit(of, compiler_options=QUICK)(table, gradient)
    expected, slope = np.zeros(found.shape), np.zeros(table.shape)
    for q in range(h * w):
        for k in range(h * w):
            at = q // w - k // w + h - 1, q % w - k % w + w - 1
            expected[:, q, k] = table[at]
            slope[at] += gradient[:, q, k]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(pulled, slope, rtol=0, atol=1e-5)


def by_definition(qkv, scale, bias, apart):
    q, k, v = np.moveaxis(qkv, 2, 0).swapaxes(2, 3)
    unit = lambda x: x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)  # noqa: E731
    scores = scale[:, None, None] * (unit(q) @ unit(k).swapaxes(-1, -2)) + bias
    scores -= np.tile(apart, (len(qkv) // len(apart), 1, 1))[:, None]
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(1, 2)


def inputs():
    """Two examples of three windows, with keys that are zero, as padding has them."""
    rng = np.random.default_rng(0)
    qkv = rng.normal(size=(6, 5, 3, 2, 4))
    qkv[1, 3:, 1] = 0
    apart = np.float32(4 * (rng.random((3, 5, 5)) < 0.3))
    return qkv, np.array([3.0, 12.0]), rng.normal(size=(2, 5, 5)), apart


@pytest.mark.parametrize("one_by_one", [False, True])
def test_cosine_attention_and_its_gradient(one_by_one, monkeypatch):
    if one_by_one:
        monkeypatch.setattr(windows, "SCORES_AT_ONCE", 0)
        monkeypatch.setattr(jax, "device_count", lambda: 1)
    qkv, scale, bias, apart = inputs()
    expected = by_definition(qkv, scale, bias, apart)
    narrow = [jnp.asarray(x, jnp.float32) for x in (qkv, scale, bias)]
    toward = np.random.default_rng(1).normal(size=expected.shape)

    def objective(*inputs):
        found = cosine_attention(*inputs, apart, examples=2)
        return (found * toward.astype(np.float32)).sum(), found

    (_, found), slopes = jax.jit(jax.value_and_grad(objective, (0, 1, 2), has_aux=True), compiler_options=QUICK)(
        *narrow
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    for i, slope in enumerate(slopes):  # along a random direction; that of keys at zero is left out, they have a corner
        way = np.random.default_rng(2).normal(size=slope.shape)
        if i == 0:
            way[1, 3:, 1] = 0
        ends = []
        for sign in (1, -1):
            moved = [qkv, scale, bias]
            moved[i] = moved[i] + sign * 1e-6 * way
            ends.append((by_definition(*moved, apart) * toward).sum())
        assert np.isfinite(slope).all()
        np.testing.assert_allclose((np.float64(slope) * way).sum(), (ends[0] - ends[1]) / 2e-6, rtol=1e-4)
