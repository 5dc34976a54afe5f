"""Which rows belong together, and what a row costs that belongs to none."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.config import ConfigError
from kdjax.losses.contrastive import SupCon
from tests.losses import reference

Z = np.random.default_rng(0).normal(size=(9, 4))
INDEX = np.array([4, 2, 7, 4, 2, 7, 4, 2, 7])  # three views of three examples
LABELS = np.array([0, 0, 5, 0, 0, 5, 0, 0, 5])
KNOWN = np.array([True, False, True] * 3)


def found(z, *reads, variant="paper", where=None):
    reads = [None if r is None else jnp.asarray(r) for r in reads]
    where = None if where is None else jnp.asarray(where)
    loss = SupCon(projection=0, temperature=0.3, variant=variant)
    return jax.jit(partial(loss.apply, {}))(jnp.asarray(z, jnp.float32), *reads, where=where)


@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize(
    ("labels", "index", "known"),
    [(LABELS, None, None), (None, INDEX, None), (LABELS, INDEX, KNOWN), (LABELS, np.arange(9), KNOWN)],
)
def test_positives_are_of_one_class_or_of_one_example(labels, index, known, variant):
    expected = reference.supcon(Z, labels, index=index, known=known, temperature=0.3, variant=variant)
    np.testing.assert_allclose(found(Z, labels, index, known, variant=variant), expected, rtol=1e-5)


def test_a_row_without_a_class_keeps_its_views():
    """Rows of class 0 that are not known to be are no positives of those that are, whatever number stands there."""
    for other in (0, -1, 5):
        labels = np.where(KNOWN, LABELS, other)
        np.testing.assert_array_equal(found(Z, labels, INDEX, KNOWN), found(Z, LABELS, INDEX, KNOWN))


def test_the_mean_is_over_the_rows_that_have_a_positive():
    labels = np.array([0, 0, 1, 2, 3, 4, 5, 6, 7])
    values = found(Z, labels)
    np.testing.assert_array_equal(values[2:], 0)
    alone = [-np.log(share(Z, i, 1 - i)) for i in range(2)]
    np.testing.assert_allclose(values.mean(), np.mean(alone), rtol=1e-5)
    np.testing.assert_array_equal(found(Z, np.arange(9)), 0)
    grad = jax.jit(jax.grad(lambda z: found(z, np.arange(9)).sum()))(jnp.asarray(Z, jnp.float32))
    np.testing.assert_array_equal(grad, 0)


def share(z, i, j, temperature=0.3):
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    near = np.exp(z @ z[i] / temperature)
    return near[j] / (near.sum() - near[i])


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_padding_is_neither_near_nor_far(variant):
    where = np.arange(9) < 6
    wild = np.where(where[:, None], Z, 1e6)
    index = np.where(where, INDEX, -1)
    values = found(wild, LABELS, index, KNOWN & where, variant=variant, where=where)
    np.testing.assert_allclose(values[:6], found(Z[:6], LABELS[:6], INDEX[:6], KNOWN[:6], variant=variant), rtol=1e-5)
    one = found(Z, LABELS, INDEX, KNOWN, variant=variant, where=np.arange(9) < 1)
    np.testing.assert_array_equal(one, 0, "a row alone has nothing to be apart from")


def test_the_head_is_the_losss_own():
    shapes = jax.eval_shape(SupCon(projection=6).init, jax.random.key(0), jnp.ones((3, 4)), jnp.arange(3))
    assert jax.tree.map(jnp.shape, shapes["params"]) == {
        "hidden": {"kernel": (4, 4), "bias": (4,)},
        "out": {"kernel": (4, 6), "bias": (6,)},
    }
    assert SupCon(projection=0).init(jax.random.key(0), jnp.ones((3, 4)), jnp.arange(3)) == {}


def test_something_has_to_say_what_belongs_together():
    with pytest.raises(ConfigError, match="nothing says which rows belong together; read labels='batch:class', or"):
        found(Z)
