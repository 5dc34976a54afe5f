"""How well embeddings tell classes apart: by the nearest neighbours, and by a linear probe.

Label -1 is not labelled: such examples neither vote nor count. Constant columns and rows of zeros do no harm; where an
embedding is not finite nothing is measured, since a model that has diverged must not pass for one that guesses.
"""

import math
import warnings

import numpy as np
from jaxtyping import Float, Float64, Int64, Integer

NEIGHBOURS = 20
TEMPERATURE = 0.07
_AT_ONCE = 1 << 24  # similarities, 128 MiB of them
_ITERATIONS = 1000  # of the probe, which takes far fewer

Features = Float[np.ndarray, "n d"]
Labels = Integer[np.ndarray, " n"]


def knn(
    train: Float[np.ndarray, "m d"],
    labels: Integer[np.ndarray, " m"],
    test: Features,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Int64[np.ndarray, " n"]:
    """The class that the k nearest of `train` by cosine s vote for, each with weight exp(s / temperature).

    Wu et al. 2018, arXiv 1805.01978, section 3.4, and DINO, arXiv 2104.14294. Of equal votes the smallest class wins;
    -1 where nobody can vote.
    """
    return _voted(train, labels, test, k, temperature, own=False)


def leave_one_out(
    features: Features, labels: Labels, k: int = NEIGHBOURS, temperature: float = TEMPERATURE
) -> Int64[np.ndarray, " n"]:
    """`knn` of each example among all the others."""
    return _voted(features, labels, features, k, temperature, own=True)


def _voted(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, k: int, temperature: float, *, own: bool
) -> Int64[np.ndarray, " n"]:
    voters = np.flatnonzero((labels >= 0) & np.isfinite(train).all(axis=1))
    predicted, asked = np.full(len(test), -1), np.flatnonzero(np.isfinite(test).all(axis=1))
    if len(voters) <= own:
        return predicted
    classes, votes_for = np.unique(labels[voters], return_inverse=True)
    k, known = min(k, len(voters) - own), _unit(train[voters])
    for some in np.array_split(asked, max(1, len(asked) * len(voters) // _AT_ONCE)):
        similarity = _unit(test[some]) @ known.T
        if own:
            similarity[some[:, None] == voters] = -math.inf
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        near = np.take_along_axis(similarity, nearest, axis=1)
        weight = np.exp((near - near.max(axis=1, keepdims=True)) / temperature)
        votes = np.zeros((len(some), len(classes)))
        np.add.at(votes, (np.arange(len(some))[:, None], votes_for[nearest]), weight)
        predicted[some] = classes[votes.argmax(axis=1)]
    return predicted


def linear_probe(
    train: Float[np.ndarray, "m d"], labels: Integer[np.ndarray, " m"], test: Features, test_labels: Labels
) -> float:
    """The accuracy on `test` of a logistic regression on `train`, standardised by the mean and spread of `train`."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, labels, test, test_labels = *_labelled(train, labels), *_labelled(test, test_labels)
    if not (len(train) and len(test) and np.isfinite(train).all() and np.isfinite(test).all()):
        return math.nan
    if len(np.unique(labels)) == 1:
        return float((test_labels == labels[0]).mean())
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_ITERATIONS))
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        probe.fit(train, labels)
    return float(probe.score(test, test_labels))


def _labelled(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return features[labels >= 0].astype(np.float64), labels[labels >= 0]


def _unit(features: Features) -> Float64[np.ndarray, "n d"]:
    features = features.astype(np.float64)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.finfo(np.float64).tiny)
