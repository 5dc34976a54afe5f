import math

import numpy as np
import pytest

from kdjax.report.metrics import neighbours


def drawn(n, seed, k=4, d=6, apart=1.5):
    """Embeddings about the corners of a cube, and their classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    return (rng.normal(size=(n, d)) + apart * np.eye(d)[labels]).astype(np.float32), labels


def voted(train, labels, row, k, temperature):
    """Wu et al. 2018, section 3.4, neighbour by neighbour."""
    cosine = [float(np.dot(row, x) / math.sqrt(np.dot(row, row) * np.dot(x, x))) for x in train.astype(np.float64)]
    votes = {}
    for i in sorted(range(len(train)), key=lambda i: -cosine[i])[:k]:
        votes[int(labels[i])] = votes.get(int(labels[i]), 0.0) + math.exp(cosine[i] / temperature)
    return max(votes, key=lambda c: votes[c])


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.5), (99, 0.07)])
def test_neighbours_vote_as_the_paper_has_it(k, temperature, monkeypatch):
    train, labels = drawn(40, 0)
    test, _ = drawn(30, 1)
    expected = [voted(train, labels, row.astype(np.float64), k, temperature) for row in test]
    assert neighbours.knn(train, labels, test, k, temperature).tolist() == expected
    monkeypatch.setattr(neighbours, "_AT_ONCE", 100)  # in pieces
    assert neighbours.knn(train, labels, test, k, temperature).tolist() == expected


def test_nobody_votes_for_itself():
    features, labels = drawn(30, 2)
    expected = [
        voted(np.delete(features, i, 0), np.delete(labels, i), features[i].astype(np.float64), 5, 0.07)
        for i in range(len(labels))
    ]
    assert neighbours.leave_one_out(features, labels, 5).tolist() == expected
    assert (neighbours.knn(features, labels, features, 1) == labels).all()
    assert (neighbours.leave_one_out(features, labels, 1) != labels).any()


def test_who_is_not_labelled_does_not_vote():
    train, labels = drawn(40, 0)
    test, _ = drawn(30, 1)
    hidden = np.where(np.arange(40) % 2, labels, -1)
    expected = neighbours.knn(train[1::2], labels[1::2], test, 3)
    np.testing.assert_array_equal(neighbours.knn(train, hidden, test, 3), expected)
    among = neighbours.leave_one_out(train, hidden, 3)
    np.testing.assert_array_equal(among[1::2], neighbours.leave_one_out(train[1::2], labels[1::2], 3))
    assert (among >= 0).all()


def test_without_voters_or_numbers_there_is_no_class():
    train, labels = drawn(6, 0)
    none = np.full_like(labels, -1)
    assert (neighbours.knn(train, none, train) == -1).all()
    assert neighbours.leave_one_out(train[:1], labels[:1]).tolist() == [-1]
    broken = train.copy()
    broken[2, 0] = math.inf
    predicted = neighbours.knn(broken, labels, broken)
    assert predicted[2] == -1
    assert (np.delete(predicted, 2) >= 0).all()
    assert neighbours.knn(np.zeros((3, 2)), np.array([1, 1, 0]), np.zeros((1, 2)), k=3).tolist() == [1]
    assert math.isnan(neighbours.linear_probe(broken, labels, train, labels))
    assert math.isnan(neighbours.linear_probe(train, none, train, labels))
    assert math.isnan(neighbours.linear_probe(train, labels, train, none))


def test_a_linear_probe_is_the_regression_on_standardised_columns():
    """Its loss, Σ log p of the true classes - |w|²/2, is the largest: no small step makes it larger."""
    from scipy.optimize import minimize

    train, labels = drawn(60, 3, k=3)
    test, truth = drawn(50, 4, k=3)
    train, test = train * [1, 5, 0.1, 1, 1, 0] + 3, test * [1, 5, 0.1, 1, 1, 0] + 3  # the last column is constant
    mean, spread = train.mean(0), np.where(train.std(0) > 0, train.std(0), 1.0)
    x, y = (train - mean) / spread, np.eye(3)[labels]

    def loss(flat):
        w, b = flat[:18].reshape(6, 3), flat[18:]
        logits = x @ w + b
        return np.sum(np.log(np.exp(logits).sum(1)) - (logits * y).sum(1)) + 0.5 * np.sum(w**2)

    flat = minimize(loss, np.zeros(21), tol=1e-8).x
    predicted = (((test - mean) / spread) @ flat[:18].reshape(6, 3) + flat[18:]).argmax(1)
    assert neighbours.linear_probe(train, labels, test, truth) == (predicted == truth).mean()
    part = np.where(np.arange(60) < 30, labels, -1)
    assert neighbours.linear_probe(train, part, test, truth) == neighbours.linear_probe(
        train[:30], labels[:30], test, truth
    )


def test_a_probe_of_a_single_class_says_it_always():
    train, labels = drawn(10, 0)
    assert neighbours.linear_probe(train, np.ones_like(labels), train, labels) == (labels == 1).mean()
