"""What graph models are trained by that others are not: a latent space, neighbours, a distribution over a batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike, Shaped

from kdjax.config import ConfigError
from kdjax.losses.pairs import float32, mixes_examples

_STEEP = 20.0  # log variance beyond which its exponential goes on as a straight line: finite, and still pulled back
_NEVER = -1e30  # a logit that softmax gives no share; infinity would make NaN of differences


def normal_kl(student: Float[Array, "*b c"]) -> Float[Array, "*b"]:
    """Kingma and Welling 2014 (arXiv 1312.6114): KL(N(μ, σ²) ‖ N(0, 1)) in nats, the mean over the latent dimensions.

    The student gives [μ, log σ²], so d = c / 2; there is no teacher. -½ mean(1 + log σ² - μ² - σ²). The paper sums over
    the dimensions; VGAEs of CAN traffic take the mean.
    """
    if student.shape[-1] % 2:
        raise ConfigError(f"normal_kl: expected μ and log σ², an even number of channels, found {student.shape[-1]}")
    mean, log_variance = jnp.split(student.astype(jnp.float32), 2, axis=-1)
    beyond = jnp.maximum(log_variance - _STEEP, 0.0)
    variance = jnp.exp(log_variance - beyond) * (1.0 + beyond)
    return -0.5 * jnp.mean(1.0 + log_variance - jnp.square(mean) - variance, axis=-1)


def neighbour_bce(student: Float[Array, "*b k"], target: Shaped[Array, "*b k"]) -> Float[Array, "*b"]:
    """Binary cross-entropy in nats with logits, the mean over k ids: does each of them follow a node (1) or not (0)."""
    student = student.astype(jnp.float32)
    if student.shape != target.shape:
        raise ConfigError(
            f"neighbour_bce: expected a target for each of the logits {student.shape}, found {target.shape}"
        )
    return jnp.mean(jax.nn.softplus(student) - target.astype(jnp.float32) * student, axis=-1)


@mixes_examples
def batch_softmax_kl(
    student: Float[Array, "*b 1"],
    teacher: Float[Array, "*b 1"],
    *,
    where: Bool[Array, "*b"] | None = None,
    temperature: ScalarLike = 5.0,
    clamp: ScalarLike = 10.0,
) -> Float[Array, "*b"]:
    """T² KL(softmax(z_t / T) ‖ softmax(z_s / T)) with the softmax over the *batch*: n items of one logit each.

    What the CAN students of DQN-Fusion were distilled with, logits clamped to ±`clamp`: it says which graph of a batch
    is more of an attack than another, not how sure to be, and each item's loss depends on the others. `binary_kl` is
    what was meant. An item's value is its summand of the divergence, which may be negative. The mean over the items is
    the original's `batchmean`, which of one flat vector is the sum divided by its length n. Items where `where` is
    False take no part and are 0.
    """
    student, teacher = float32(student, teacher)
    if student.shape[-1] != 1:
        raise ConfigError(
            f"batch_softmax_kl: expected one logit per item, found {student.shape[-1]}; 'kl' takes classes"
        )
    there = jnp.ones(student.shape[:-1], bool) if where is None else where
    log_s, log_t = (_over_batch(z[..., 0], there, temperature, clamp) for z in (student, teacher))
    return jnp.square(jnp.asarray(temperature, jnp.float32)) * jnp.exp(log_t) * (log_t - log_s) * there


def _over_batch(
    logits: Float[Array, "*b"], there: Bool[Array, "*b"], temperature: ScalarLike, clamp: ScalarLike
) -> Float[Array, "*b"]:
    limit = jnp.asarray(clamp, jnp.float32)
    bounded = jnp.where(there, jnp.clip(logits, -limit, limit) / temperature, _NEVER)
    return jax.nn.log_softmax(bounded.reshape(-1)).reshape(logits.shape)
