"""Every loss once more, in float64 numpy, written from its paper: slow, plain, one example at a time.

A registered loss needs an entry in REFERENCES; the battery in test_losses.py does the rest.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Reference:
    formula: Callable  # (student, target, **args) of one example -> float
    shape: tuple[int, ...]  # of one example of the student's
    classes: int = 0  # the target holds class ids below this; 0: it is another array like the student's
    args: tuple[dict, ...] = ({},)  # settings to try
    zero_at_equal: bool = True  # loss(x, x) = 0; only read where the target is an array like the student's
    alone: bool = False  # there is no target
    multi_hot: bool = False  # the target is an array of zeros and ones like the student's
    whole: bool = False  # the formula is of the whole batch, and gives an array with a value for each example


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def divergence(p, q):
    return float(np.sum(p * np.log(p / q)))


def kl(s, t, temperature=4.0, variant="mean"):
    s, t = s.reshape(-1, s.shape[-1]), t.reshape(-1, t.shape[-1])
    rows = [divergence(softmax(b / temperature), softmax(a / temperature)) for a, b in zip(s, t, strict=True)]
    if variant == "sum":
        return temperature**2 * np.sum(rows)
    if variant == "class_mean":
        return temperature**2 * np.mean(rows) / s.shape[-1]
    return np.mean(rows) * (1 if variant == "unscaled" else temperature**2)


def binary_kl(s, t, **args):
    return kl(np.concatenate([np.zeros_like(s), s], -1), np.concatenate([np.zeros_like(t), t], -1), **args)


def mse(s, t):
    return np.mean((s - t) ** 2)


def l1(s, t):
    return np.mean(np.abs(s - t))


def cosine(s, t):
    pairs = zip(s.reshape(-1, s.shape[-1]), t.reshape(-1, t.shape[-1]), strict=True)
    return np.mean([1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in pairs])


def bce(z, y):
    p = sigmoid(z[..., 0])
    return np.mean(-(y * np.log(p) + (1 - y) * np.log(1 - p)))


def ce(z, y, label_smoothing=0.0, ignore=None):
    k, losses = z.shape[-1], []
    for row, label in zip(z.reshape(-1, k), y.reshape(-1), strict=True):
        if label != ignore:
            wanted = np.full(k, label_smoothing / k)
            wanted[label] += 1 - label_smoothing
            losses.append(-np.sum(wanted * np.log(softmax(row))))
    return np.mean(losses) if losses else 0.0


def dice(z, y, squared=True, smooth=1e-5, background=False):
    power = 2 if squared else 1
    if z.shape[-1] == 1:
        pairs = [(sigmoid(z[..., 0]), y == 1)]
    else:
        p = np.apply_along_axis(softmax, -1, z)
        pairs = [(p[..., c], y == c) for c in range(0 if background else 1, z.shape[-1])]
    return np.mean(
        [1 - (2 * np.sum(p * t) + smooth) / (np.sum(p**power) + np.sum(t**power) + smooth) for p, t in pairs]
    )


def focal(z, y, gamma=2.0, alpha=0.25):
    if z.shape[-1] == 1:
        z = np.concatenate([np.zeros_like(z), z], -1)
    losses = []
    for row, label in zip(z.reshape(-1, z.shape[-1]), y.reshape(-1), strict=True):
        p = softmax(row)[label]
        losses.append(-(alpha if label > 0 else 1 - alpha) * (1 - p) ** gamma * np.log(p))
    return np.mean(losses)


def normal_kl(s):
    """By integration instead of the closed form: ∫ q log(q / p), the trapezoidal rule over ±12 σ."""
    total = []
    for mean, log_variance in zip(*np.split(s, 2), strict=True):
        sigma = np.exp(log_variance / 2)
        x = mean + sigma * np.linspace(-12, 12, 4001)
        log_q = -0.5 * ((x - mean) / sigma) ** 2 - np.log(sigma)
        total.append(np.trapezoid(np.exp(log_q) / np.sqrt(2 * np.pi) * (log_q + 0.5 * x**2), x))
    return np.mean(total)


def neighbour_bce(z, y):
    p = sigmoid(z)
    return np.mean([-np.log(q) if hot else -np.log(1 - q) for q, hot in zip(p.ravel(), y.ravel() == 1, strict=True)])


def batch_softmax_kl(s, t, temperature=5.0, clamp=10.0, where=None):
    values, there = np.zeros(s.size), np.ones(s.size, bool) if where is None else where
    p, q = (softmax(np.clip(z.ravel()[there], -clamp, clamp) / temperature) for z in (t, s))
    values[there] = temperature**2 * p * np.log(p / q)
    return values


DIVERGENCES = ({}, {"temperature": 1}, *({"temperature": 2.5, "variant": v} for v in ("sum", "class_mean", "unscaled")))
REFERENCES: dict[str, tuple[Reference, ...]] = {
    "kl": (Reference(kl, (5,), args=DIVERGENCES), Reference(kl, (3, 2, 4), args=DIVERGENCES)),
    "binary_kl": (Reference(binary_kl, (3, 4, 1), args=DIVERGENCES),),
    "mse": (Reference(mse, (7,)), Reference(mse, (3, 2, 4))),
    "l1": (Reference(l1, (7,)), Reference(l1, (3, 2, 4))),
    "cosine": (Reference(cosine, (7,)), Reference(cosine, (3, 2, 4))),
    "bce": (Reference(bce, (3, 4, 1), classes=2),),
    "ce": (
        Reference(ce, (5,), classes=5),
        Reference(ce, (3, 2, 4), classes=4, args=({}, {"label_smoothing": 0.1}, {"ignore": 1, "label_smoothing": 0.2})),
    ),
    "dice": (
        Reference(dice, (3, 4, 1), classes=2, args=({}, {"squared": False, "smooth": 1.0})),
        Reference(dice, (3, 2, 4), classes=4, args=({}, {"background": True}, {"squared": False})),
    ),
    "focal": (
        Reference(focal, (3, 4, 1), classes=2, args=({}, {"gamma": 0.5, "alpha": 0.6}, {"gamma": 0})),
        Reference(focal, (3, 2, 4), classes=4, args=({}, {"gamma": 0.5, "alpha": 0.6})),
    ),
    "value": (Reference(np.mean, (3, 2, 4), alone=True),),
    "normal_kl": (Reference(normal_kl, (6,), alone=True),),
    "neighbour_bce": (Reference(neighbour_bce, (9,), multi_hot=True),),
    "batch_softmax_kl": (
        Reference(
            batch_softmax_kl, (1,), whole=True, zero_at_equal=False, args=({}, {"temperature": 1.0, "clamp": 1.5})
        ),
    ),
}
