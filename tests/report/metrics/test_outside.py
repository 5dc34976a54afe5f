"""Each score against a second version written from its paper, in plain float64."""

import math

import numpy as np
import pytest
from scipy import stats

from kdjax.report.metrics import outside


def drawn(n=120, k=4, d=10, seed=0, head=True):
    """Features, their logits by an affine head, labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    features = rng.normal(size=(n, d)) * np.linspace(0.2, 2, d) + 2 * np.eye(d)[labels] + 1.5
    of_head = np.random.default_rng(99)
    weights, bias = of_head.normal(size=(d, k)), of_head.normal(size=k)
    return features.astype(np.float32), (features @ weights + bias).astype(np.float32), labels, weights, bias


def test_energy_is_that_of_its_formula():
    _, logits, *_ = drawn()
    expected = [-math.log(sum(math.exp(float(x)) for x in row)) for row in logits]
    np.testing.assert_allclose(outside.energy(logits), expected, rtol=1e-12)
    assert outside.energy(np.array([[800.0, 800.0]]))[0] == pytest.approx(-800 - math.log(2))
    assert np.isnan(outside.energy(np.array([[0.0, math.nan], [0.0, math.inf]]))).all()


def test_mahalanobis_is_that_of_its_formula():
    """Lee et al. 2018, equations 1 and 2, as the exponent of the density of a normal distribution."""
    features, _, labels, *_ = drawn()
    other, *_ = drawn(seed=1)
    x = features.astype(np.float64)
    means = [x[labels == c].mean(0) for c in range(4)]
    shared = sum(np.outer(row - means[c], row - means[c]) for row, c in zip(x, labels, strict=True)) / len(x)
    away = np.array([[np.linalg.solve(shared, row - mean) @ (row - mean) for mean in means] for row in other])
    fitted = outside.Mahalanobis.fitted(features, labels)
    np.testing.assert_allclose(fitted(other), away.min(1), rtol=1e-9)
    density = stats.multivariate_normal(means[2], shared).logpdf(other[0].astype(np.float64))
    normed = -0.5 * (10 * math.log(2 * math.pi) + np.linalg.slogdet(shared)[1])
    assert away[0, 2] == pytest.approx(-2 * (density - normed))


def test_mahalanobis_leaves_out_what_does_not_vary_and_who_has_no_class():
    features, _, labels, *_ = drawn()
    other, *_ = drawn(seed=1)
    still = np.concatenate([features, np.full((120, 2), 7.0, np.float32)], axis=1)
    moved = np.concatenate([other, np.full((120, 2), 8.0, np.float32)], axis=1)
    expected = outside.Mahalanobis.fitted(features, labels)(other)
    np.testing.assert_allclose(outside.Mahalanobis.fitted(still, labels)(moved), expected, rtol=1e-9)
    half = np.where(np.arange(120) < 60, labels, -1)
    apart = outside.Mahalanobis.fitted(features[:60], labels[:60])(other)
    np.testing.assert_allclose(outside.Mahalanobis.fitted(features, half)(other), apart, rtol=1e-9)
    assert outside.Mahalanobis.fitted(features, np.full_like(labels, -1)) is None
    assert math.isnan(outside.Mahalanobis.fitted(features, labels)(np.full((1, 10), math.nan))[0])


def virtual(x, logits, weights, bias, other, other_logits):
    """Wang et al. 2022, section 4.2, with the head's own weights: p of the virtual class."""
    at = -np.linalg.pinv(weights.T) @ bias
    values, directions = np.linalg.eigh((x - at).T @ (x - at))
    off = directions[:, np.argsort(values)[: x.shape[1] - x.shape[1] // 2]]
    project = off @ off.T
    alpha = logits.max(1).sum() / np.linalg.norm((x - at) @ project, axis=1).sum()
    extended = np.concatenate([other_logits, alpha * np.linalg.norm((other - at) @ project, axis=1)[:, None]], axis=1)
    exponentials = np.exp(extended - extended.max(1, keepdims=True))
    return exponentials[:, -1] / exponentials.sum(1)


def test_vim_is_that_of_its_formula():
    features, logits, _, weights, bias = drawn()
    other, other_logits, *_ = drawn(seed=1)
    arrays = [a.astype(np.float64) for a in (features, logits, weights, bias, other, other_logits)]
    p = virtual(*arrays)
    assert 0.01 < p.mean() < 0.99
    scores = outside.Vim.fitted(features, logits)(other, other_logits)
    np.testing.assert_allclose(scores, np.log(p / (1 - p)), rtol=1e-4, atol=1e-4)  # float32 logits tell the head


def test_the_head_is_read_off_the_examples():
    features, logits, _, weights, bias = drawn()
    at = outside.origin(features.astype(np.float64), logits.astype(np.float64))
    np.testing.assert_allclose(at, -np.linalg.pinv(weights.T) @ bias, rtol=1e-4)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = 16 * unit @ (weights / np.linalg.norm(weights, axis=0))
    assert not outside.origin(features.astype(np.float64), cosines).any()


@pytest.mark.parametrize(("d", "expected"), [(2048, 1000), (768, 512), (1024, 512), (64, 32), (3, 1)])
def test_the_plane_of_vim_is_as_wide_as_in_the_paper(d, expected):
    assert outside.dimension(d) == expected


def test_features_on_a_plane_have_no_virtual_class():
    flat = np.zeros((20, 4))
    flat[:, :2] = np.random.default_rng(0).normal(size=(20, 2))
    assert outside.Vim.fitted(flat, flat[:, :3] @ np.eye(3)) is None
    assert outside.Vim.fitted(np.ones((9, 1)), np.ones((9, 2))) is None
    assert outside.Vim.fitted(np.zeros((0, 4)), np.zeros((0, 3))) is None


def test_auroc_and_the_false_positives_count_pairs():
    rng = np.random.default_rng(0)
    inside, beyond = rng.integers(0, 30, 100) / 1.0, rng.integers(10, 45, 60) / 1.0
    wins = np.mean([(b > a) + 0.5 * (b == a) for a in inside for b in beyond])
    limit = next(t for t in sorted(set(inside)) if np.mean(inside <= t) >= 0.95)
    found = outside.told_apart(inside, beyond)
    assert found == {"auroc": pytest.approx(wins), "fpr95": np.mean(beyond <= limit)}
    assert outside.told_apart(inside, inside + 99) == {"auroc": 1.0, "fpr95": 0.0}
    assert outside.told_apart(inside, inside)["auroc"] == 0.5
    for nothing in (inside[:0], np.array([math.nan])):
        assert all(map(math.isnan, outside.told_apart(inside, nothing).values()))
        assert all(map(math.isnan, outside.told_apart(nothing, beyond).values()))
