import numpy as np
import pytest

from kdjax.report.metrics.pca import pca


def points(n=50, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 4)) @ np.diag([5.0, 2.0, 0.5, 0.1]) @ rng.normal(size=(4, 4)) + 7.0


def test_the_axes_are_those_of_the_covariance():
    x = points()
    found, share = pca(x, 3)
    values, vectors = np.linalg.eigh(np.cov(x.T))
    np.testing.assert_allclose(np.abs(found), np.abs((x - x.mean(0)) @ vectors[:, ::-1])[:, :3], rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(share, values[::-1][:3] / values.sum(), rtol=1e-8)
    np.testing.assert_allclose(found.std(axis=0, ddof=1) ** 2, values[::-1][:3], rtol=1e-8)


def test_the_picture_does_not_flip():
    x = points()
    np.testing.assert_allclose(pca(x)[0], pca(x[::-1])[0][::-1], rtol=1e-8)


@pytest.mark.parametrize("flat", [np.ones((5, 3)), points()[:1], points()[:, :1]])
def test_what_does_not_spread_lies_at_nought(flat):
    found, share = pca(flat)
    assert found.shape == (len(flat), 2)
    np.testing.assert_allclose(found[:, 1], 0, atol=1e-12)
    assert share[1] < 1e-12
    assert np.isfinite(share).all()


def test_float32_is_taken():
    x = points().astype(np.float32)
    np.testing.assert_allclose(pca(x)[0], pca(x.astype(float))[0])
