"""Supervised losses on logits. Masks and labels hold class ids; one that is no class makes the loss NaN, never 0.

Where the logits have one channel the problem is binary: ids 0 and 1, probability = sigmoid. With k >= 2 channels it
is softmax over the classes, 0 being the background.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln
from jaxtyping import Array, Float, Int, ScalarLike

from kdjax.config import ConfigError, nearest
from kdjax.losses.pairs import float32, per_example


def bce(
    logits: Float[Array, "b *s 1"], mask: Int[Array, "b *s"], *, class_weights: tuple[float, ...] = ()
) -> Float[Array, "b"]:
    """Binary cross-entropy in nats, mean over positions: -log sigmoid(z) where the mask is 1, else -log sigmoid(-z).

    `class_weights` multiply the positions of background and foreground; None takes them from the data.
    """
    if logits.shape[-1] != 1:
        raise ConfigError(f"bce: expected one logit per position, found {logits.shape[-1]}; 'ce' takes classes")
    return per_example(-_weights(mask, class_weights, 2) * _log_likelihood(_float32(logits, mask), mask))


def ce(
    logits: Float[Array, "b *s k"],
    labels: Int[Array, "b *s"],
    *,
    label_smoothing: ScalarLike = 0.0,
    ignore: int | None = None,
    class_weights: tuple[float, ...] = (),
) -> Float[Array, "b"]:
    """Cross-entropy in nats against (1 - ε) one_hot + ε / k (Szegedy et al. 2016, arXiv 1512.00567).

    The mean over the positions whose label is not `ignore`; 0 for an example that has none. (PyTorch takes that mean
    over the batch, so examples with fewer valid positions weigh less there.) `class_weights` multiply the positions of
    each class, and the mean stays one over positions; None takes them from the data.
    """
    if (k := logits.shape[-1]) < 2:
        raise ConfigError(f"ce: expected logits of at least two classes, found {k}; 'bce' takes a single logit")
    log_p = jax.nn.log_softmax(_float32(logits, labels))
    valid = jnp.ones(labels.shape, bool) if ignore is None else labels != ignore
    hot = _one_hot(jnp.where(valid, labels, 0), k)
    hit, even = jnp.sum(hot * log_p, axis=-1), jnp.mean(log_p, axis=-1)
    weights = _weights(jnp.where(valid, labels, 0), class_weights, k)
    loss = jnp.where(valid, weights * (-(1 - label_smoothing) * hit - label_smoothing * even), 0.0)
    return per_example(loss) / jnp.maximum(per_example(valid.astype(jnp.float32)), 1e-12)


def soft_ce(logits: Float[Array, "b *s k"], target: Float[Array, "b *s k"]) -> Float[Array, "b"]:
    """Cross-entropy in nats against a distribution over the classes: -Σ t log_softmax(z), the mean over positions.

    The loss of mixed examples, whose target is the mixture of two classes (mixup, Zhang et al. 2018, arXiv 1710.09412,
    equation 1; CutMix, Yun et al. 2019, arXiv 1905.04899). A one-hot target makes it `ce`.
    """
    logits, target = float32(logits, target)
    return per_example(-jnp.sum(target * jax.nn.log_softmax(logits), axis=-1))


def dice(
    logits: Float[Array, "b *s k"],
    mask: Int[Array, "b *s"],
    *,
    squared: bool = True,
    smooth: ScalarLike = 1e-5,
    background: bool = False,
) -> Float[Array, "b"]:
    """Soft Dice, 1 - (2 Σ p t + ε) / (Σ p² + Σ t² + ε) with sums over an example's positions, in [0, 1].

    `squared=False` has Σ p + Σ t below (Milletari et al. 2016, arXiv 1606.04797, squares; others do not). With k >= 2
    it is the mean over the foreground classes, with `background=True` over all of them, as SAMed does it. The
    originals sum over the whole batch, which makes one example's loss depend on the others.
    """
    logits = _float32(logits, mask)
    if logits.shape[-1] == 1:
        p, t = jax.nn.sigmoid(logits), _one_hot(mask, 2)[..., 1:]
    else:
        first = 0 if background else 1
        p, t = jax.nn.softmax(logits)[..., first:], _one_hot(mask, logits.shape[-1])[..., first:]
    space = tuple(range(1, p.ndim - 1))
    overlap = jnp.sum(p * t, axis=space)
    size = jnp.sum(p * p + t if squared else p + t, axis=space)  # t is 0 or 1, its own square
    return jnp.mean(1.0 - (2.0 * overlap + smooth) / (size + smooth), axis=-1)


def focal(
    logits: Float[Array, "b *s k"], mask: Int[Array, "b *s"], *, gamma: ScalarLike = 2.0, alpha: ScalarLike = 0.25
) -> Float[Array, "b"]:
    """Lin et al. 2017 (arXiv 1708.02002): -α_y (1 - p_y)^γ log p_y, the mean over positions.

    α_y is `alpha` for foreground and 1 - `alpha` for background, so that two classes with logits [0, z] and one logit
    z give the same. Implementations that weigh all ids by one α (AD-KD: α = 1, γ = 1) are `alpha=0.5` and twice α as
    the weight of the term.
    """
    logits = _float32(logits, mask)
    log_p, log_rest = _log_likelihood(logits, mask), _log_likelihood(logits, mask, rest=True)
    weight = jnp.where(mask > 0, alpha, 1.0 - jnp.asarray(alpha))
    return per_example(-weight * jnp.exp(gamma * log_rest) * log_p)


def focal_ce(
    logits: Float[Array, "b k"],
    target: Int[Array, "b"] | Float[Array, "b k"],
    *,
    gamma: ScalarLike = 2.0,
    label_smoothing: ScalarLike = 0.1,
) -> Float[Array, "b"]:
    """(1 - e^-CE)^γ CE of several classes alike, with label smoothing inside (after Lin et al. 2017, arXiv 1708.02002).

    e^-CE is p_y where nothing is smoothed. Of a mixed example the two largest shares count, each with its class's own
    loss. `focal` weighs foreground and background; gamma=0 is `ce`.
    """

    def loss(labels: Int[Array, "b"]) -> Float[Array, "b"]:
        cost = ce(logits, labels, label_smoothing=label_smoothing)
        return jnp.maximum(-jnp.expm1(-cost), 1e-12) ** gamma * cost  # a power of 0 may have an infinite slope

    return by_shares(loss, target)


def by_shares(
    loss: Callable[[Int[Array, "b"]], Float[Array, "b"]], target: Int[Array, "b"] | Float[Array, "b k"]
) -> Float[Array, "b"]:
    """The loss of a class, or, where the target holds shares, those of its two largest weighed by them."""
    if target.ndim == 1:
        return loss(target)
    shares, classes = jax.lax.top_k(target.astype(jnp.float32), 2)
    return shares[:, 0] * loss(classes[:, 0]) + shares[:, 1] * loss(classes[:, 1])


def evidential(
    logits: Float[Array, "b k"],
    target: Int[Array, "b"] | Float[Array, "b k"],
    *,
    coefficient: ScalarLike = 1.0,
    variant: str = "paper",
) -> Float[Array, "b"]:
    """Sensoy et al. 2018, Evidential Deep Learning (arXiv 1806.01768): Σ y (ψ(S) - ψ(α)) + λ KL(Dir(α̃) ‖ Dir(1)), nats.

    α = softplus(z) + 1, S = Σ α; α̃ = y + (1 - y) α is without the evidence of the class itself; λ is `coefficient`,
    which the paper lets grow to 1. The share of what is not known is k / S. `variant="code"`: λ KL(Dir(α) ‖ Dir(1)) -
    Σ y (ψ(S) - ψ(α)), which learns to be wrong (Image-Classification's EvidentialLoss).
    """
    if variant not in ("paper", "code"):
        raise ConfigError(f"no variant {variant!r} of evidential; {nearest(variant, ('paper', 'code'))}")
    y = _one_hot(target, logits.shape[-1]) if target.ndim == 1 else target.astype(jnp.float32)
    alpha = jax.nn.softplus(logits.astype(jnp.float32)) + 1.0
    total = digamma(alpha.sum(axis=-1, keepdims=True))
    likely = jnp.sum(y * (total - digamma(alpha)), axis=-1)
    if variant == "code":
        return jnp.asarray(coefficient) * _dirichlet_kl(alpha) - likely
    return likely + jnp.asarray(coefficient) * _dirichlet_kl(y + (1.0 - y) * alpha)


def _dirichlet_kl(alpha: Float[Array, "b k"]) -> Float[Array, "b"]:
    """KL(Dir(α) ‖ Dir(1)) in nats."""
    total = alpha.sum(axis=-1, keepdims=True)
    volume = gammaln(total)[:, 0] - gammaln(jnp.float32(alpha.shape[-1])) - gammaln(alpha).sum(axis=-1)
    return volume + jnp.sum((alpha - 1.0) * (digamma(alpha) - digamma(total)), axis=-1)


def _weights(
    labels: Int[Array, "b *s"], class_weights: tuple[float, ...], k: int
) -> Float[Array, "b *s"] | Float[Array, ""]:
    if not class_weights:
        return jnp.ones(())
    if len(class_weights) != k:
        raise ConfigError(f"class_weights: expected {k}, one for each class, found {len(class_weights)}")
    return jnp.asarray(class_weights, jnp.float32)[labels]


def _log_likelihood(
    logits: Float[Array, "b *s k"], mask: Int[Array, "b *s"], rest: bool = False
) -> Float[Array, "b *s"]:
    """log p of the true class, or, for `rest`, log(1 - p) of it; accurate also where p is near 0 or 1."""
    sign = -1.0 if rest else 1.0
    if logits.shape[-1] == 1:
        hot = _one_hot(mask, 2)
        return jax.nn.log_sigmoid(sign * logits[..., 0] * (hot[..., 1] - hot[..., 0]))
    hot, log_p = _one_hot(mask, logits.shape[-1]), jax.nn.log_softmax(logits)
    return jax.nn.logsumexp(log_p, axis=-1, where=hot != 1) if rest else jnp.sum(hot * log_p, axis=-1)


def _float32(logits: Float[Array, "b *s k"], mask: Int[Array, "b *s"]) -> Float[Array, "b *s k"]:
    if logits.shape[:-1] != mask.shape:
        raise ConfigError(
            f"logits {logits.shape} and class ids {mask.shape}: expected ids of shape {logits.shape[:-1]}; "
            "resize the logits to the mask first"
        )
    return logits.astype(jnp.float32)


def _one_hot(labels: Int[Array, "*s"], k: int) -> Float[Array, "*s {k}"]:
    """A row of NaN where the label is no class: that must show, and jax.nn.one_hot would have it cost nothing."""
    known = ((labels >= 0) & (labels < k))[..., None]
    return jnp.where(known, jax.nn.one_hot(labels, k, dtype=jnp.float32), jnp.nan)
