import math

import numpy as np
import pytest

from kdjax.report.metrics.cka import cka, similarities


def drawn(n=40, d=5, e=7, seed=0):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n, d)) + 3.0
    return a, np.tanh(a @ rng.normal(size=(d, e))) + 0.3 * rng.normal(size=(n, e)) - 5.0


def gram_cka(a, b):
    """The definition by kernels: centred Gram matrices, HSIC, no shortcut through d x e."""
    n = len(a)
    centre = np.eye(n) - np.ones((n, n)) / n
    k, m = centre @ a @ a.T @ centre, centre @ b @ b.T @ centre
    return np.trace(k @ m) / math.sqrt(np.trace(k @ k) * np.trace(m @ m))


@pytest.mark.parametrize(("n", "d", "e"), [(40, 5, 7), (6, 30, 3), (5, 9, 20)])
def test_it_is_that_of_the_gram_matrices(n, d, e):
    a, b = drawn(n, d, e)
    assert cka(a, b) == pytest.approx(gram_cka(a, b), rel=1e-10)


def test_turning_shifting_and_scaling_change_nothing_and_a_shear_does():
    a, b = drawn()
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 5)))
    assert cka(3.0 * a @ turn + 100.0, b) == pytest.approx(cka(a, b), rel=1e-10)
    assert cka(a, b) == pytest.approx(cka(b, a), rel=1e-12)
    assert cka(a * np.array([10.0, 1, 1, 1, 1]), b) != pytest.approx(cka(a, b), rel=1e-3)


def test_it_lies_between_nothing_in_common_and_the_same():
    a, b = drawn(n=4000)
    noise = np.random.default_rng(2).normal(size=(4000, 7))
    assert cka(a, -2 * a) == pytest.approx(1.0, rel=1e-12)
    assert cka(a, noise) < 0.01 < 0.2 < cka(a, b) < 1


def test_float32_far_from_the_origin_is_computed_in_float64():
    a, b = (x.astype(np.float32) for x in drawn())
    assert cka(a + np.float32(1e4), b) == pytest.approx(cka((a + np.float32(1e4)).astype(float), b), rel=1e-12)
    assert cka(a + np.float32(1e4), b) == pytest.approx(cka(a, b), rel=1e-3)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e9])
def test_a_layer_that_says_the_same_of_all_has_no_likeness(value):
    a, _ = drawn()
    assert math.isnan(cka(a, np.full((40, 3), value)))


def test_every_layer_meets_every_layer():
    a, b = drawn()
    found = similarities({"1": a, "2": a**2}, {"1": b, "2": a, "3": np.abs(b)})
    assert found.shape == (2, 3)
    assert found[1, 2] == cka(a**2, np.abs(b))
    assert found[0, 1] == pytest.approx(1.0)
