"""Batch normalisation with PyTorch's running statistics."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.models.layers.precision import at_least_float32


class BatchNorm(nn.Module):
    """As PyTorch's, which Flax's is not: the running variance is the unbiased one.

    Where `mask` is False values are normalised, but do not count in the statistics. A model that is mapped over an axis
    called `axis_name` has the statistics of all that it is mapped over.
    """

    dtype: Any
    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "*n c"], train: bool, mask: Bool[Array, "*n"] | None = None
    ) -> Float[Array, "*n c"]:
        c = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (c,))
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        mean, var = running_mean.value, running_var.value
        row = (1,) * (x.ndim - 1) + (c,)
        if train:
            total = partial(jax.lax.psum, axis_name=self.axis_name) if is_mapped(self.axis_name) else lambda x: x
            n = jnp.maximum(total(x.size // c if mask is None else mask.sum()), 1)

            def average(y: Float[Array, "*n c"]) -> Float[Array, " c"]:
                y = y if mask is None else jnp.where(mask[..., None], y, 0)
                return total(y.sum(axis=tuple(range(y.ndim - 1)))) / n

            wide = at_least_float32(x)
            mean = average(wide)
            var = average(jnp.square(wide - mean.reshape(row)))
            if not self.is_initializing():
                for running, new in ((running_mean, mean), (running_var, var * (n / jnp.maximum(n - 1, 1)))):
                    running.value = self.momentum * running.value + (1 - self.momentum) * new
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        offset = bias - mean * factor
        return (x * factor.reshape(row) + offset.reshape(row)).astype(self.dtype)


def is_mapped(axis_name: str | None) -> bool:
    """Whether what runs now is mapped over an axis of that name."""
    try:
        return axis_name is not None and bool(jax.lax.axis_size(axis_name))
    except NameError:  # as JAX says that there is no such axis
        return False
