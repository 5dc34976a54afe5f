"""The exact GELU, x · Φ(x) (Hendrycks and Gimpel, 2016), lean in memory."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.models.layers.precision import at_least_float32


@jax.custom_vjp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """As `jax.nn.gelu(approximate=False)`, but keeps only x for the gradient, where that keeps three arrays."""
    wide = at_least_float32(x)
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def _forward(x):
    return gelu(x), x


def _backward(x, gradient):
    wide = at_least_float32(x)
    # Written with erfc so that XLA does not recognise the erf above and keep it from there to here.
    cumulative = 0.5 * jax.lax.erfc(wide * -math.sqrt(0.5))
    density = jnp.exp(-0.5 * wide * wide) / math.sqrt(2 * math.pi)
    return ((gradient * (cumulative + wide * density)).astype(x.dtype),)


gelu.defvjp(_forward, _backward)
