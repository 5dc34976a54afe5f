"""Losses that learn or remember: where they begin, and what their memory holds."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses.features import Vid
from kdjax.losses.relations import Seed


def rows(n, d=3, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, d)), jnp.float32)


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("variance", [0.3, 5.0])
def test_vid_begins_with_its_variance(variance):
    student, teacher = rows(4, 6), rows(4, 6, 1)
    loss = Vid(variance=variance)
    variables = loss.init(jax.random.key(0), student, teacher)
    assert jax.tree.map(jnp.shape, variables) == {"params": {"a": (6,)}}
    np.testing.assert_allclose(nn.softplus(variables["params"]["a"]) + loss.epsilon, variance, rtol=1e-5)
    square = np.square(np.asarray(student, np.float64) - np.asarray(teacher, np.float64)).mean(1)
    expected = 0.5 * (square / variance + np.log(variance))
    np.testing.assert_allclose(loss.apply(variables, student, teacher), expected, rtol=1e-5)


def test_vid_learns_the_variance_of_each_channel():
    """At the optimum the gradient of `a` is zero: σ² is the mean square of what the student does not explain."""
    student, teacher = rows(200, 4), rows(200, 4, 1) * jnp.array([[0.5, 1.0, 2.0, 3.0]])
    square = np.square(np.asarray(student, np.float64) - np.asarray(teacher, np.float64)).mean(0)
    loss = Vid()
    at = jnp.asarray(np.log(np.expm1(square - loss.epsilon)), jnp.float32)
    grad = jax.grad(lambda a: loss.apply({"params": {"a": a}}, student, teacher).mean())
    np.testing.assert_allclose(grad(at), 0, atol=1e-6)
    assert (grad(at + 0.1) > 5e-5).all()
    assert (grad(at - 0.1) < -5e-5).all()


def remembered(loss, *batches):
    """Memory after these batches of (teacher, where), and the losses of each."""
    first = batches[0][0]
    variables, values = loss.init(jax.random.key(0), first, first), []
    for teacher, where in batches:
        value, variables = loss.apply(variables, teacher[:, ::-1], teacher, where=where, mutable=["memory"])
        values.append(value)
    return variables["memory"], values


def test_seed_begins_with_nothing():
    """The shapes it is started with are not remembered, and a row is compared with its own teacher alone."""
    memory, (value,) = remembered(Seed(size=5), (rows(2), None))
    start = Seed(size=5).init(jax.random.key(0), rows(2), rows(2))["memory"]
    assert (start["filled"] == 0, start["queue"].shape, bool(start["queue"].any())) == (True, (5, 3), False)
    np.testing.assert_array_equal(value, 0)
    assert memory["filled"] == 2


def test_seeds_queue_fills_and_wraps():
    loss, batches = Seed(size=5), [rows(3, seed=i) for i in range(4)]
    for n in range(1, 5):
        memory, _ = remembered(loss, *[(b, None) for b in batches[:n]])
        expected = np.zeros((5, 3))
        for place, row in enumerate(np.concatenate([unit(b) for b in batches[:n]])):
            expected[place % 5] = row
        assert memory["filled"] == 3 * n
        np.testing.assert_allclose(memory["queue"], expected, rtol=1e-5, atol=1e-7)


def test_seed_does_not_remember_padding():
    wild = jnp.array([[True, False, True, True], [False, False, True, False], [False] * 4])
    batches = [rows(4, seed=i) for i in range(3)]
    masked, values = remembered(Seed(size=8), *zip(batches, wild, strict=True))
    alone, plain = remembered(Seed(size=8), *[(b[w], None) for b, w in zip(batches[:2], wild[:2], strict=True)])
    assert masked["filled"] == alone["filled"] == 4
    np.testing.assert_array_equal(masked["queue"], alone["queue"])
    for value, where, expected in zip(values, wild, plain, strict=False):
        np.testing.assert_allclose(value[where], expected, rtol=1e-6)


def test_seed_reads_the_queue_as_it_was_before_the_batch():
    """And every row of it, once it is full."""
    loss, batches = Seed(size=4, teacher_temperature=0.5, student_temperature=0.3), [rows(3, seed=i) for i in range(4)]
    _, values = remembered(loss, *[(b, None) for b in batches])
    before = np.concatenate([unit(b) for b in batches[:3]])[-4:]
    for row, value in zip(batches[3], values[3], strict=True):
        teacher, student = unit(row), unit(row[::-1])
        others = np.stack([teacher, *before])
        p, q = (np.exp(others @ x / t) for x, t in ((teacher, 0.5), (student, 0.3)))
        p, q = p / p.sum(), q / q.sum()
        assert float(value) == pytest.approx(float(np.sum(p * np.log(p / q))), rel=1e-4)


def test_a_batch_larger_than_seeds_queue_leaves_its_last_rows():
    memory, _ = remembered(Seed(size=3), (rows(8), None))
    assert memory["filled"] == 8
    np.testing.assert_allclose(memory["queue"], unit(rows(8))[[6, 7, 5]], rtol=1e-5)


def test_a_vector_without_a_direction_gives_no_gradient():
    variables = {"memory": {"queue": jnp.asarray(unit(rows(4)), jnp.float32), "filled": jnp.int32(4)}}
    loss = Seed(size=4)
    for scale in (0.0, 1e-14):
        grad = jax.grad(lambda s: loss.apply(variables, s, rows(2, seed=3), mutable=["memory"])[0].sum())
        np.testing.assert_array_equal(grad(scale * rows(2)), 0)
