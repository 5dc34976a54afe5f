"""Distillation of features: the student's activations follow the teacher's, position by position."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.losses.pairs import float32, per_example


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
    return 1.0 - per_example(jnp.sum(_direction(student) * _direction(teacher), axis=-1))


def _direction(x: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    some = squares > 1e-24
    # the inner `where` keeps rsqrt away from 0, whose infinite slope would turn the masked gradient into NaN
    return x * jnp.where(some, jax.lax.rsqrt(jnp.where(some, squares, 1.0)), 0.0)
