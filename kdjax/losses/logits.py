"""Distillation of logits: the student's distribution over classes follows the teacher's."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, ScalarLike

from kdjax.config import ConfigError, nearest
from kdjax.losses.pairs import float32, per_example

_NEVER = -1e30  # a logit without a share; infinity would make NaN of differences

VARIANTS = ("mean", "sum", "class_mean", "unscaled")


def kl(
    student: Float[Array, "b *s k"],
    teacher: Float[Array, "b *s k"],
    *,
    temperature: ScalarLike = 4.0,
    variant: str = "mean",
) -> Float[Array, "b"]:
    """Hinton, Vinyals and Dean 2015 (arXiv 1503.02531): T² KL(softmax(z_t / T) ‖ softmax(z_s / T)) in nats.

    A single logit z stands for two classes [0, z], which makes it `binary_kl`.

    T² keeps the size of the gradient independent of T. What implementations do about the positions `s` (pixels) and
    about T² differs, and so does what a weight of 1 means:

    - "mean": the mean over the positions;
    - "sum": the sum over them, which is `batchmean` of PyTorch on a map;
    - "class_mean": the mean over positions and classes, PyTorch's default reduction, k times smaller;
    - "unscaled": the mean over the positions without T².
    """
    student, teacher = float32(student, teacher)
    if (k := student.shape[-1]) == 1:
        return binary_kl(student, teacher, temperature=temperature, variant=variant)
    log_s = jax.nn.log_softmax(student / temperature)
    log_t = jax.nn.log_softmax(teacher / temperature)
    return _reduced(jnp.sum(jnp.exp(log_t) * (log_t - log_s), axis=-1), k, temperature, variant)


def binary_kl(
    student: Float[Array, "b *s 1"],
    teacher: Float[Array, "b *s 1"],
    *,
    temperature: ScalarLike = 4.0,
    variant: str = "mean",
) -> Float[Array, "b"]:
    """`kl` between Bernoulli distributions that are given by one logit z: classes [0, z], the same four variants.

    "mean" is what distilling SAM into TinyUSFM used: `batchmean` over the stacked channels, divided by H W.
    """
    student, teacher = float32(student, teacher)
    if student.shape[-1] != 1:
        raise ConfigError(f"binary_kl: expected one logit per position, found {student.shape[-1]}; 'kl' takes classes")
    s, t = student[..., 0] / temperature, teacher[..., 0] / temperature
    yes, no = jax.nn.log_sigmoid(t), jax.nn.log_sigmoid(-t)
    divergence = jnp.exp(yes) * (yes - jax.nn.log_sigmoid(s)) + jnp.exp(no) * (no - jax.nn.log_sigmoid(-s))
    return _reduced(divergence, 2, temperature, variant)


def dkd(
    student: Float[Array, "b k"],
    teacher: Float[Array, "b k"],
    labels: Int[Array, "b"],
    *,
    temperature: ScalarLike = 4.0,
    alpha: ScalarLike = 1.0,
    beta: ScalarLike = 8.0,
) -> Float[Array, "b"]:
    """Zhao et al. 2022, Decoupled Knowledge Distillation (arXiv 2203.08679), in nats, k >= 2.

    T² (α KL(b_t ‖ b_s) + β KL(p̂_t ‖ p̂_s)): b is the pair (probability of the label, of all others), p̂ the
    distribution over the classes that are not the label. It reads three things:
    `reads={"student": "student:logits", "teacher": "big:logits", "labels": "batch:class"}`.
    """
    student, teacher = float32(student, teacher)
    hot = jax.nn.one_hot(labels, student.shape[-1], dtype=bool)

    def parts(logits: Float[Array, "b k"]) -> tuple[Float[Array, "b 2"], Float[Array, "b k"]]:
        log_p = jax.nn.log_softmax(logits / temperature)
        pair = [jax.nn.logsumexp(log_p, axis=-1, where=chosen) for chosen in (hot, ~hot)]
        others = jax.nn.log_softmax(jnp.where(hot, _NEVER, logits / temperature))
        return jnp.stack(pair, axis=-1), others

    (pair_s, others_s), (pair_t, others_t) = parts(student), parts(teacher)
    target = jnp.sum(jnp.exp(pair_t) * (pair_t - pair_s), axis=-1)
    rest = jnp.sum(jnp.where(hot, 0.0, jnp.exp(others_t) * (others_t - others_s)), axis=-1)
    return jnp.square(jnp.asarray(temperature)) * (jnp.asarray(alpha) * target + jnp.asarray(beta) * rest)


def _reduced(divergence: Float[Array, "b *s"], k: int, temperature: ScalarLike, variant: str) -> Float[Array, "b"]:
    if variant not in VARIANTS:
        raise ConfigError(f"no variant {variant!r} of the divergence; {nearest(variant, VARIANTS)}")
    mean = per_example(divergence)
    if variant == "unscaled":
        return mean
    scale = {"mean": 1.0, "sum": math.prod(divergence.shape[1:]), "class_mean": 1.0 / k}[variant]
    return scale * temperature**2 * mean
