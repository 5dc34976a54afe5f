"""Principal components: the plane in which points spread most."""

import numpy as np
from jaxtyping import Float, Float64


def pca(
    points: Float[np.ndarray, "n d"], components: int = 2
) -> tuple[Float64[np.ndarray, "n k"], Float64[np.ndarray, " k"]]:
    """Coordinates along the first `components`, and the share of the variance that each holds.

    The sign of a component is free: here its largest weight is positive, so that the same points give the same
    picture. Components beyond the rank of the points are 0.
    """
    points = points.astype(np.float64)
    centred = points - points.mean(axis=0, keepdims=True)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    found = min(components, len(sizes))
    coordinates = np.zeros((len(points), components))
    coordinates[:, :found] = (centred @ (axes * np.sign(largest)).T)[:, :found]
    variance = np.zeros(components)
    variance[:found] = np.square(sizes[:found])
    return coordinates, variance / max(np.square(sizes).sum(), np.finfo(np.float64).tiny)
