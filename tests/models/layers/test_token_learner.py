"""TokenLearner against its equation in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, softmax

from kdjax.models.layers.token_learner import TokenLearner


@pytest.fixture(scope="module")
def learner():
    """A layer, weights of which none is zero, and a map [2, 3, 5, 6]."""
    rng = np.random.default_rng(0)
    layer, x = TokenLearner(tokens=4, hidden=7), jnp.asarray(rng.normal(size=(2, 3, 5, 6)), jnp.float32)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    return layer, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes), x


def equation(params, x):
    """[b, n, c] -> [b, tokens, c]"""
    p = jax.tree.map(np.float64, params)
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["norm"]["scale"]
    y = (y + p["norm"]["bias"]) @ p["fc1"]["kernel"] + p["fc1"]["bias"]
    y = y * (1 + erf(y / np.sqrt(2))) / 2 @ p["fc2"]["kernel"] + p["fc2"]["bias"]
    return np.stack([softmax(scores, axis=0).T @ tokens for scores, tokens in zip(y, x, strict=True)])


def test_the_equation(learner):
    layer, variables, x = learner
    expected = equation(variables["params"], np.float64(x).reshape(2, 15, 6))
    found = layer.apply(variables, x)
    assert found.shape == (2, 4, 6)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(layer.apply(variables, x.reshape(2, 15, 6)), found)  # a map is its tokens in rows


def test_the_order_of_places_does_not_matter(learner):
    layer, variables, x = learner
    tokens = x.reshape(2, 15, 6)
    np.testing.assert_allclose(layer.apply(variables, tokens[:, ::-1]), layer.apply(variables, tokens), atol=1e-5)


def test_it_computes_narrow_and_keeps_wide_parameters(learner):
    _, variables, x = learner
    layer = TokenLearner(tokens=4, dtype="bfloat16", hidden=7)
    made = jax.eval_shape(layer.init, jax.random.key(0), jnp.asarray(x, "bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}
    assert layer.apply(variables, jnp.asarray(x, "bfloat16")).dtype == "bfloat16"
