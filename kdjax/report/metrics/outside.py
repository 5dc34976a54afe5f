"""Scores of how far an example lies outside what a model was trained on, and how well they tell: higher is farther.

All are computed in float64. A score is nan where a logit or a feature of the example is not finite.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Integer

from kdjax.report.metrics import detection

SHARE = 0.95  # of the examples inside that are to be taken for such, where false ones are counted
LEAST = 1e-10  # of the largest variance: what has less is the rounding of float32
LINEAR = 1e-3  # of the spread of the logits: what an affine map of the features may leave of it

Logits = Float[np.ndarray, "n k"]
Features = Float[np.ndarray, "n d"]
Scores = Float64[np.ndarray, " n"]


def energy(logits: Logits) -> Scores:
    """-log Σ exp(logits). Liu et al. 2020, arXiv 2010.03759, equation 4 at temperature 1."""
    from scipy.special import logsumexp

    total = np.asarray(logsumexp(logits.astype(np.float64), axis=1))
    return np.where(np.isfinite(logits).all(axis=1), -total, math.nan)


class Mahalanobis(NamedTuple):
    """The squared distance to the nearest class in units of the covariance that all classes share.

    Lee et al. 2018, arXiv 1807.03888, equations 1 and 2. Directions in which training examples do not vary are left
    out.
    """

    whitening: Float64[np.ndarray, "d r"]  # makes the shared covariance the identity
    means: Float64[np.ndarray, "k r"]

    @classmethod
    def fitted(cls, features: Features, labels: Integer[np.ndarray, " n"]) -> "Mahalanobis | None":
        """To the labelled examples of training; None without any."""
        known = (labels >= 0) & np.isfinite(features).all(axis=1)
        features, labels = features[known].astype(np.float64), labels[known]
        if not len(labels):
            return None
        classes, of = np.unique(labels, return_inverse=True)
        means = np.stack([features[labels == c].mean(axis=0) for c in classes])
        centred = features - means[of]
        variances, directions = np.linalg.eigh(centred.T @ centred / len(labels))
        kept = variances > LEAST * variances[-1]
        whitening = directions[:, kept] / np.sqrt(variances[kept])
        return cls(whitening, means @ whitening)

    def __call__(self, features: Features) -> Scores:
        white = features.astype(np.float64) @ self.whitening
        return np.min([np.square(white - mean).sum(axis=1) for mean in self.means], axis=0)


class Vim(NamedTuple):
    """The logit of a virtual class, α times the part of the features that lies off the plane of the training features,
    against the energy of the others. Wang et al. 2022, arXiv 2203.10807, section 4; ln p/(1-p) of that class, which
    orders examples as its probability p does.

    The plane goes through `origin`, where an affine head gives logits nearest zero; where logits are no affine map of
    the features, as those of a cosine head, through zero.
    """

    origin: Float64[np.ndarray, " d"]
    off: Float64[np.ndarray, "d r"]  # directions orthogonal to the plane
    alpha: float

    @classmethod
    def fitted(cls, features: Features, logits: Logits) -> "Vim | None":
        """To features and logits of training; None where there are none, or all features lie on the plane."""
        known = np.isfinite(features).all(axis=1) & np.isfinite(logits).all(axis=1)
        features, logits = features[known].astype(np.float64), logits[known].astype(np.float64)
        if not len(features) or features.shape[1] < 2:
            return None
        at = origin(features, logits)
        _, directions = np.linalg.eigh((features - at).T @ (features - at))  # rising
        off = directions[:, : features.shape[1] - dimension(features.shape[1])]
        norms = np.linalg.norm((features - at) @ off, axis=1)
        if norms.sum() <= LEAST * np.linalg.norm(features - at, axis=1).sum():
            return None
        return cls(at, off, float(logits.max(axis=1).sum() / norms.sum()))

    def __call__(self, features: Features, logits: Logits) -> Scores:
        norms = np.linalg.norm((features.astype(np.float64) - self.origin) @ self.off, axis=1)
        return self.alpha * norms + energy(logits)


def dimension(d: int) -> int:
    """Of the principal plane: as in the paper for wide features, and half of narrower ones, of which it has none."""
    return 1000 if d > 1500 else 512 if d >= 768 else d // 2


def origin(features: Float64[np.ndarray, "n d"], logits: Float64[np.ndarray, "n k"]) -> Float64[np.ndarray, " d"]:
    """The point at which W x + b is nearest zero, -W⁺b, of the affine map that gives these logits; zero where none
    does. The map is read off the examples, so that it need not be known which layer it is."""
    mean, bias = features.mean(axis=0), logits.mean(axis=0)
    weights = np.linalg.lstsq(features - mean, logits - bias, rcond=None)[0]
    left = logits - bias - (features - mean) @ weights
    if np.linalg.norm(left) > LINEAR * np.linalg.norm(logits - bias):
        return np.zeros_like(mean)
    return -np.linalg.pinv(weights.T) @ (bias - mean @ weights)


def told_apart(inside: Float[np.ndarray, " n"], beyond: Float[np.ndarray, " m"]) -> dict[str, float]:
    """auroc, the probability that an example beyond has a higher score than one inside, and fpr95, the share of those
    beyond that are taken for inside where 95 % of those inside are; nan without examples on both sides."""
    if not (len(inside) and len(beyond)) or np.isnan(inside).any() or np.isnan(beyond).any():
        return {"auroc": math.nan, "fpr95": math.nan}
    labels = np.repeat([0, 1], [len(inside), len(beyond)])
    limit = np.quantile(inside, SHARE, method="inverted_cdf")
    return {
        "auroc": detection.auc(np.concatenate([inside, beyond]), labels),
        "fpr95": float((beyond <= limit).mean()),
    }
