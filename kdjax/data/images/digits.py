"""Handwritten digits that come with scikit-learn, nothing to download."""

import numpy as np

from kdjax.data.images.arrays import Labelled


class Digits(Labelled):
    """1,797 digits of 8 × 8 grey levels (Alpaydin and Kaynak 1998, the test part of the UCI set); ten classes."""

    def __init__(self, num_classes: int = 10):
        from sklearn.datasets import load_digits  # takes a second to import

        pixels, labels = load_digits(return_X_y=True)  # of 0 to 16
        grey = np.round(np.asarray(pixels) * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
        names = [f"{i:04d}_{label}" for i, label in enumerate(labels)]
        images = np.repeat(grey[..., None], 3, axis=-1)
        super().__init__(images, np.asarray(labels), list("0123456789"), [""] * len(names), names)
