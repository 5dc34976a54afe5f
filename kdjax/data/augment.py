"""Augmentation on the device: pure, and the same for an image wherever in a batch it stands."""

from kdjax.config import nearest

TRANSFORMS = ("hflip", "vflip", "rotate", "zoom", "gamma", "contrast")


def faults(probabilities: dict[str, float]) -> list[str]:
    """What is wrong with a configuration of transforms, one line each."""
    wrong = [f"augment: no transform {k!r}; {nearest(k, TRANSFORMS)}" for k in probabilities if k not in TRANSFORMS]
    return wrong + [
        f"augment.{k}: expected a probability in [0, 1], found {p}" for k, p in probabilities.items() if not 0 <= p <= 1
    ]
