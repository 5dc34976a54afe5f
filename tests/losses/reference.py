"""Every loss once more, in float64 numpy, written from its paper: slow, plain, one example at a time.

A registered loss needs an entry in REFERENCES; the battery in test_losses.py does the rest.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy import special


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
    labelled: int = 0  # besides student and teacher the loss reads class ids below this
    shares: bool = False  # the target holds the shares of classes
    bounded: bool = False  # the student gives cosines
    still: bool = False  # what is read beside the student gets no gradient
    own: dict = field(default_factory=dict)  # the variables of a loss that is a module; the formula has them by name


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


def dkd(s, t, y, temperature=4.0, alpha=1.0, beta=8.0):
    p, q = softmax(t / temperature), softmax(s / temperature)
    target = divergence(np.array([p[y], 1 - p[y]]), np.array([q[y], 1 - q[y]]))
    rest = divergence(np.delete(p, y) / (1 - p[y]), np.delete(q, y) / (1 - q[y]))
    return temperature**2 * (alpha * target + beta * rest)


def mse(s, t):
    return np.mean((s - t) ** 2)


def l1(s, t):
    return np.mean(np.abs(s - t))


def cosine(s, t):
    pairs = zip(s.reshape(-1, s.shape[-1]), t.reshape(-1, t.shape[-1]), strict=True)
    return np.mean([1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in pairs])


def vid(s, t, a, epsilon=1e-5):
    """The negative logarithm of a Gaussian density around the teacher, without its constant ½ log 2π."""
    variance = np.broadcast_to(np.log1p(np.exp(a)) + epsilon, s.shape)
    density = np.exp(-0.5 * (s - t) ** 2 / variance) / np.sqrt(2 * np.pi * variance)
    return np.mean(-np.log(density)) - 0.5 * np.log(2 * np.pi)


def seed(s, t, queue, filled, size, teacher_temperature=0.01, student_temperature=0.2):
    assert queue.shape == (size, len(s))
    s, t = s / np.linalg.norm(s), t / np.linalg.norm(t)
    others = np.stack([t, *queue[:filled]])
    return divergence(softmax(others @ t / teacher_temperature), softmax(others @ s / student_temperature))


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


def soft_ce(z, t):
    rows = zip(z.reshape(-1, z.shape[-1]), t.reshape(-1, t.shape[-1]), strict=True)
    return np.mean([-np.sum(share * np.log(softmax(row))) for row, share in rows])


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


def focal_ce(z, y, gamma=2.0, label_smoothing=0.1):
    if np.ndim(y):
        return sum(y[c] * focal_ce(z, c, gamma, label_smoothing) for c in np.argsort(y)[-2:])
    cost = ce(z[None], np.array([y]), label_smoothing)
    return (1 - np.exp(-cost)) ** gamma * cost


def evidential(z, y, coefficient=1.0, variant="paper"):
    """The divergence is the expectation of log Dir(p | α) - log Dir(p | 1), and that of log p is ψ(α) - ψ(S)."""
    k, alpha = len(z), np.log1p(np.exp(z)) + 1
    y = y if np.ndim(y) else np.eye(k)[y]
    wrong = sum(y[c] * (special.digamma(alpha.sum()) - special.digamma(alpha[c])) for c in range(k))
    left = alpha if variant == "code" else y + (1 - y) * alpha
    log_p = special.digamma(left) - special.digamma(left.sum())
    log_volumes = [special.gammaln(a).sum() - special.gammaln(a.sum()) for a in (left, np.ones(k))]
    kl = np.sum((left - 1) * log_p) - log_volumes[0] + log_volumes[1]
    return coefficient * kl + (-wrong if variant == "code" else wrong)


def supcon(z, y, hidden=None, out=None, projection=0, temperature=0.07, variant="paper", index=None, known=None):
    """Of whole batches; `y` None: no labels."""
    if projection:
        z = np.maximum(z @ hidden["kernel"] + hidden["bias"], 0) @ out["kernel"] + out["bias"]
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    n, values = len(z), []
    known = np.ones(n, bool) if known is None else known
    for i in range(n):
        alike = [y is not None and known[i] and known[j] and y[i] == y[j] for j in range(n)]
        alike = [a or (index is not None and index[i] == index[j]) for j, a in enumerate(alike)]
        positives = [j for j in range(n) if (alike[j] and j != i) or (variant == "code" and j == i)]
        below = sum(np.exp(z[i] @ z[a] / temperature) for a in range(n) if a != i)
        values.append([-np.log(np.exp(z[i] @ z[p] / temperature) / below) for p in positives])
    told = [np.mean(v) if v else 0.0 for v in values]
    return np.array(told) * n / max(1, sum(bool(v) for v in values))


def infonce(s, t, temperature=0.1):
    s, t = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (s, t))
    return np.array([-np.log(softmax(t @ s[i] / temperature)[i]) for i in range(len(s))])


def smooth_l1(a, b):
    return 0.5 * (a - b) ** 2 if abs(a - b) < 1 else abs(a - b) - 0.5


def rkd_distance(s, t, variant="paper"):
    def distances(x):
        x = x / np.linalg.norm(x, axis=1, keepdims=True) if variant == "code" else x
        far = np.array([[np.linalg.norm(a - b) for a in x] for b in x])
        return far if variant == "code" or not far.any() else far / far[far > 0].mean()

    far_s, far_t = distances(s), distances(t)
    n = range(len(s))
    return np.array([np.mean([smooth_l1(far_s[i, j], far_t[i, j]) for j in n]) for i in n])


def cosine_of(u, v):
    lengths = np.linalg.norm(u) * np.linalg.norm(v)
    return u @ v / lengths if lengths else 0.0


def rkd_angle(s, t, variant="paper"):
    n = range(len(s))
    if variant == "code":
        return np.array([np.mean([smooth_l1(cosine_of(s[i], s[j]), cosine_of(t[i], t[j])) for i in n]) for j in n])

    def at(j, i, k):
        return smooth_l1(*(cosine_of(x[i] - x[j], x[k] - x[j]) for x in (s, t)))

    return np.array([np.mean([at(j, i, k) for i in n for k in n]) for j in n])


def mmd(s, t, bandwidths=(0.2, 0.5, 1.0, 2.0, 5.0)):
    def near(x, y):
        return np.mean(np.exp(-np.sum((x - y) ** 2) / (2 * np.array(bandwidths) ** 2)))

    def share(i):
        rows = zip(s, t, strict=True)
        return np.mean([near(s[i], a) + near(t[i], b) - near(s[i], b) - near(t[i], a) for a, b in rows])

    return np.array([share(i) for i in range(len(s))])


def projected(s, t, kernel, bias, loss="mse", args=None, frozen=True):
    t = t @ kernel + bias
    return infonce(s, t, **args) if loss == "infonce" else np.mean((s - t) ** 2, axis=1)


def margin_ce(logits, y, own, scale, gamma, label_smoothing):
    """`logits(c)` are the cosines of an example with the margin of class c."""
    if np.ndim(y):
        classes = np.argsort(y)[-2:]
        return sum(y[c] * margin_ce(logits, c, own, scale, gamma, label_smoothing) for c in classes)
    return focal_ce(scale * logits(y if own is None else own), y, gamma, label_smoothing)


def replaced(cosines, c, value):
    return np.where(np.arange(len(cosines)) == c, value, cosines)


def arc(cosine, margin):
    theta = np.arccos(cosine)
    return np.cos(theta + margin) if theta + margin < np.pi else cosine - margin * np.sin(margin)


def arcface(x, y, own=None, scale=64.0, margin=0.5, gamma=0.0, label_smoothing=0.0):
    return margin_ce(lambda c: replaced(x, c, arc(x[c], margin)), y, own, scale, gamma, label_smoothing)


def cosface(x, y, own=None, scale=64.0, margin=0.35, gamma=0.0, label_smoothing=0.0):
    return margin_ce(lambda c: replaced(x, c, x[c] - margin), y, own, scale, gamma, label_smoothing)


def adaface(
    x, f, y, mean, spread, own=None, scale=64.0, margin=0.4, h=0.333, momentum=0.99, variant="paper", where=None
):
    lengths = np.linalg.norm(f, axis=1)
    real = lengths if where is None else lengths[where]
    mean = momentum * mean + (1 - momentum) * real.mean()
    spread = momentum * spread + (1 - momentum) * real.std(ddof=1)
    steep = h if variant == "paper" else 1
    values = []
    for i, length in enumerate(lengths):
        quality = np.clip(steep * (length - mean) / spread, -1, 1)

        def logits(c, cosines=x[i], quality=quality):
            theta = np.arccos(cosines[c])
            if variant == "code":
                return replaced(cosines, c, np.cos(theta + margin * (1 + quality)))
            turned = np.cos(np.clip(theta - margin * quality, 0, np.pi))
            return replaced(cosines, c, turned - margin * quality - margin)

        values.append(margin_ce(logits, y[i], None if own is None else own[i], scale, 0.0, 0.0))
    return np.array(values)


def curricularface(x, y, t, own=None, scale=64.0, margin=0.5, momentum=0.99, variant="paper", where=None):
    real = range(len(x)) if where is None else np.flatnonzero(where)
    if variant == "code":
        new = np.mean([c for i in real for c in x[i] if c > np.cos(np.arccos(c) + margin)])
    else:
        whose = y if own is None else own
        new = np.mean([x[i] @ whose[i] if np.ndim(whose[i]) else x[i, whose[i]] for i in real])
    t = momentum * t + (1 - momentum) * new

    def logits(cosines, c):
        cut = np.cos(np.arccos(cosines[c]) + margin)
        if variant == "code":
            return replaced(np.clip(cosines + t, -1, 1), c, cut)
        return replaced(np.where(cosines > cut, cosines * (t + cosines), cosines), c, arc(cosines[c], margin))

    given = [None] * len(x) if own is None else own
    rows = zip(x, y, given, strict=True)
    return np.array([margin_ce(lambda c, row=row: logits(row, c), a, b, scale, 0.0, 0.0) for row, a, b in rows])


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


def queue(size, width):
    rows = np.random.default_rng(7).normal(size=(size, width))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def dense(rows, columns, seed):
    rng = np.random.default_rng(seed)
    return {"kernel": rng.normal(size=(rows, columns)), "bias": rng.normal(size=columns)}


DIVERGENCES = ({}, {"temperature": 1}, *({"temperature": 2.5, "variant": v} for v in ("sum", "class_mean", "unscaled")))
SMOOTH = {"label_smoothing": 0.1}
REFERENCES: dict[str, tuple[Reference, ...]] = {
    "kl": (Reference(kl, (5,), args=DIVERGENCES), Reference(kl, (3, 2, 4), args=DIVERGENCES)),
    "binary_kl": (Reference(binary_kl, (3, 4, 1), args=DIVERGENCES),),
    "dkd": (
        Reference(dkd, (5,), labelled=5, args=({}, {"temperature": 1.5, "alpha": 0.5, "beta": 2.0}, {"beta": 0.0})),
        Reference(dkd, (3,), labelled=3),
    ),
    "mse": (Reference(mse, (7,)), Reference(mse, (3, 2, 4))),
    "l1": (Reference(l1, (7,)), Reference(l1, (3, 2, 4))),
    "cosine": (Reference(cosine, (7,)), Reference(cosine, (3, 2, 4))),
    "vid": (
        Reference(vid, (7,), zero_at_equal=False, own={"params": {"a": np.linspace(-2, 3, 7)}}),
        Reference(
            vid, (3, 2, 4), zero_at_equal=False, own={"params": {"a": np.linspace(-2, 3, 4)}}, args=({"epsilon": 0.5},)
        ),
    ),
    "seed": tuple(
        Reference(
            seed,
            (4,),
            zero_at_equal=False,
            own={"memory": {"queue": queue(5, 4), "filled": filled}},
            args=({"size": 5}, {"size": 5, "teacher_temperature": 0.3, "student_temperature": 0.5}),
        )
        for filled in (3, 5, 9)
    ),
    "bce": (Reference(bce, (3, 4, 1), classes=2),),
    "ce": (
        Reference(ce, (5,), classes=5),
        Reference(ce, (3, 2, 4), classes=4, args=({}, {"label_smoothing": 0.1}, {"ignore": 1, "label_smoothing": 0.2})),
    ),
    "soft_ce": (Reference(soft_ce, (5,), zero_at_equal=False), Reference(soft_ce, (3, 2, 4), zero_at_equal=False)),
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
    "focal_ce": (
        Reference(focal_ce, (5,), classes=5, args=({}, {"gamma": 0.0, "label_smoothing": 0.2})),
        Reference(focal_ce, (4,), shares=True, zero_at_equal=False),
    ),
    "evidential": (
        Reference(evidential, (5,), classes=5, args=({"coefficient": 0.3}, {"variant": "code"})),
        Reference(evidential, (4,), shares=True, zero_at_equal=False),
    ),
    "supcon": (
        Reference(
            supcon,
            (4,),
            classes=2,
            whole=True,
            own={"params": {"hidden": dense(4, 4, 1), "out": dense(4, 3, 2)}},
            args=({"projection": 3}, {"projection": 3, "temperature": 0.5, "variant": "code"}),
        ),
    ),
    "infonce": (Reference(infonce, (4,), whole=True, zero_at_equal=False, args=({"temperature": 0.2},)),),
    "rkd_distance": (Reference(rkd_distance, (4,), whole=True),),  # the other variants are in test_relations.py
    "rkd_angle": (Reference(rkd_angle, (4,), whole=True),),
    "mmd": (Reference(mmd, (4,), whole=True, zero_at_equal=False),),  # the share of a row may be below 0
    "projected": (
        Reference(
            projected,
            (4,),
            whole=True,
            zero_at_equal=False,
            own={"params": dense(4, 4, 4)},
            args=({"loss": "infonce", "args": {"temperature": 0.5}, "frozen": False},),
        ),
    ),
    "arcface": (
        Reference(arcface, (4,), classes=4, bounded=True, args=({}, {"margin": 1.2, "gamma": 2.0, **SMOOTH})),
        Reference(arcface, (4,), shares=True, bounded=True, zero_at_equal=False),
    ),
    "cosface": (Reference(cosface, (4,), classes=4, bounded=True, args=({}, {"scale": 30.0, "gamma": 2.0, **SMOOTH})),),
    "adaface": (
        Reference(
            adaface,
            (4,),
            labelled=4,
            whole=True,
            bounded=True,
            still=True,
            zero_at_equal=False,
            own={"memory": {"mean": 3.5, "spread": 0.9}},
            args=({}, {"momentum": 0.9, "variant": "code"}),
        ),
    ),
    "curricularface": (
        Reference(
            curricularface,
            (4,),
            classes=4,
            whole=True,
            bounded=True,
            own={"memory": {"t": 0.4}},
            args=({"scale": 8.0, "momentum": 1.0}, {"momentum": 1.0, "variant": "code"}),  # t has no slope
        ),
    ),
}
