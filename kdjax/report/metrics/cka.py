"""How alike two layers see the same examples: linear CKA (Kornblith et al. 2019, arXiv 1905.00414)."""

import math

import numpy as np
from jaxtyping import Float, Float64

Features = Float[np.ndarray, "n d"]


def cka(a: Features, b: Float[np.ndarray, "n e"]) -> float:
    """‖AᵀB‖² / (‖AᵀA‖ ‖BᵀB‖) of the centred features, in [0, 1], in float64; nan where a layer says the same of all.

    Turning, shifting or scaling either space changes nothing. Random layers approach 1 as n falls to d or e: take
    many more examples than channels.
    """
    return similarities({"a": a}, {"b": b})[0, 0].item()


def similarities(teacher: dict[str, np.ndarray], student: dict[str, np.ndarray]) -> Float64[np.ndarray, "t s"]:
    """`cka` of each layer of the teacher with each of the student's, given as name -> features [n, d]."""
    rows, columns = ([_unit(features) for features in side.values()] for side in (teacher, student))
    return np.array([[float(np.sum(np.square(a.T @ b))) for b in columns] for a in rows]).reshape(len(rows), -1)


def _unit(features: Features) -> Float64[np.ndarray, "n d"]:
    """Centred, and scaled so that ‖AᵀA‖ is 1."""
    features = features.astype(np.float64)
    centred = features - features.mean(axis=0, keepdims=True)
    if np.linalg.norm(centred) <= 1e-14 * np.linalg.norm(features):  # what is left is the rounding of the mean
        return np.full_like(centred, math.nan)
    centred = centred / np.linalg.norm(centred)
    small = centred @ centred.T if centred.shape[0] < centred.shape[1] else centred.T @ centred
    return centred / math.sqrt(np.linalg.norm(small))
