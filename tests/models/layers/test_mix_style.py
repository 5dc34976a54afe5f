"""MixStyle beside its formula in float64 NumPy, and how often it does anything."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.models.layers.mix_style import mix_style

X = np.random.default_rng(0).normal(2, 3, (4, 3, 5, 6))


@jax.jit
def drawn(key):
    """What is drawn of a key: which example each is mixed with, and how much of its own style each keeps."""
    _, deal, share = jax.random.split(key, 3)
    own = jax.random.beta(share, 0.1, 0.1, (len(X), 1, 1, 1), jnp.float32)
    return jax.random.permutation(deal, len(X)), own


@jax.jit
def both(x, key, slope):
    y, pull = jax.vjp(lambda x: mix_style(x, key, probability=1.0), x)
    return y, *pull(slope)


def test_formula_and_gradient():
    key = jax.random.key(3)
    other, own = (np.asarray(x) for x in drawn(key))
    assert (other != np.arange(len(X))).any()
    mean = X.mean((1, 2), keepdims=True)
    deviation = np.sqrt(((X - mean) ** 2).mean((1, 2), keepdims=True) + 1e-6)
    mixed = lambda s: own * s + (1 - own) * s[other]  # noqa: E731
    slope = np.random.default_rng(1).normal(size=X.shape)
    y, by_x = both(jnp.float32(X), key, jnp.float32(slope))
    np.testing.assert_allclose(y, mixed(deviation) * (X - mean) / deviation + mixed(mean), rtol=1e-4, atol=1e-5)
    expected = slope * mixed(deviation) / deviation  # as if the styles were constants
    np.testing.assert_allclose(by_x, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_half_of_the_batches_stay_as_they_are_and_most_shares_are_near_0_or_1():
    x = jnp.float32(X)
    keys = jax.random.split(jax.random.key(0), 400)
    changed, shares = jax.jit(jax.vmap(lambda key: (jnp.any(mix_style(x, key) != x), drawn(key)[1])))(keys)
    assert abs(changed.mean() - 0.5) < 0.1
    assert np.mean((shares < 0.05) | (shares > 0.95)) > 0.6


def test_it_keeps_the_dtype():
    y = jax.eval_shape(mix_style, jax.ShapeDtypeStruct(X.shape, jnp.bfloat16), jax.random.key(0))
    assert y.dtype == jnp.bfloat16
