"""A Dense layer whose gradient is as fast as its product."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def dense(features: int, **options) -> nn.Dense:
    """nn.Dense that multiplies a matrix of all positions, and so does its gradient.

    Of more axes XLA would sum the kernel's gradient axis by axis: on a CPU it transposes its operands first and then
    uses another product, together 7 times as slow.
    """
    return nn.Dense(features, dot_general=_of_dimensions, **options)


def _of_dimensions(x: Array, kernel: Array, _, precision=None) -> Array:
    return of_rows(x, kernel, precision)


def of_rows(x: Float[Array, "*n c"], kernel: Any, precision=None) -> Float[Array, "*n d"]:
    """The product of a matrix [c, d] and all positions."""
    y: Any = _product(x.reshape(-1, x.shape[-1]), jnp.asarray(kernel), precision)
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(rows: Float[Array, "n c"], kernel: Float[Array, "c d"], precision) -> Float[Array, "n d"]:
    """Where it is mapped over an axis of `rows`, the kernel's gradient is a product for each, and their sum."""
    return jax.lax.dot(rows, kernel, precision=precision)


def _forward(rows, kernel, precision):
    return _product(rows, kernel, precision), (rows, kernel)


def _backward(precision, saved, slope):
    rows, kernel = saved
    return jax.lax.dot(slope, kernel.T, precision=precision), jax.lax.dot(rows.T, slope, precision=precision)


_product.defvjp(_forward, _backward)
