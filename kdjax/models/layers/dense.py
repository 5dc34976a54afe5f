"""A Dense layer whose gradient is as fast as its product."""

import flax.linen as nn
import jax
from jaxtyping import Array, Float


def dense(features: int, **options) -> nn.Dense:
    """nn.Dense that multiplies a matrix of all positions.

    Of more axes XLA would sum the kernel's gradient axis by axis: on a CPU it transposes its operands first and then
    uses another product, together 7 times as slow.
    """
    return nn.Dense(features, dot_general=_of_rows, **options)


def _of_rows(
    x: Float[Array, "*n c"], kernel: Float[Array, "c d"], _, precision=None, **options
) -> Float[Array, "*n d"]:
    y = jax.lax.dot_general(x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())), precision, **options)
    return y.reshape(*x.shape[:-1], kernel.shape[-1])
