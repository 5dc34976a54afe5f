"""Distillation of features: the student's activations follow the teacher's, position by position."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.losses.pairs import direction, float32, per_example


def mse(student: Float[Array, "b *s"], teacher: Float[Array, "b *s"]) -> Float[Array, "b"]:
    """Romero et al. 2015, FitNets (arXiv 1412.6550): the mean of (f_s - f_t)² over positions and channels."""
    student, teacher = float32(student, teacher)
    return per_example(jnp.square(student - teacher))


def l1(student: Float[Array, "b *s"], teacher: Float[Array, "b *s"]) -> Float[Array, "b"]:
    """The mean of |f_s - f_t| over positions and channels; the gradient where they are equal is 0."""
    student, teacher = float32(student, teacher)
    difference = student - teacher
    return per_example(difference * jnp.sign(difference))  # jnp.abs has slope 1 at 0


def cosine(student: Float[Array, "b *s c"], teacher: Float[Array, "b *s c"]) -> Float[Array, "b"]:
    """1 - cos(f_s, f_t) over the channels, in [0, 2], the mean over positions.

    A vector shorter than 1e-12 has no direction: it counts as orthogonal (1) and gives no gradient.
    """
    student, teacher = float32(student, teacher)
    return 1.0 - per_example(jnp.sum(direction(student) * direction(teacher), axis=-1))


class Vid(nn.Module):
    """Ahn et al. 2019, Variational Information Distillation (arXiv 1904.05835): ½ mean((f_s - f_t)² / σ² + log σ²).

    σ² = softplus(a) + ε is learnt, one for each channel, from `variance` on; the term's adapter is the regressor.
    """

    variance: float = 5.0  # at the start
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, student: Float[Array, "b *s c"], teacher: Float[Array, "b *s c"]) -> Float[Array, "b"]:
        student, teacher = float32(student, teacher)
        start = math.log(math.expm1(self.variance - self.epsilon))
        a = self.param("a", nn.initializers.constant(start), (teacher.shape[-1],))
        variance = (nn.softplus(a) + self.epsilon).reshape((1,) * (teacher.ndim - 1) + (-1,))
        return 0.5 * per_example(jnp.square(student - teacher) / variance + jnp.log(variance))
