"""Batch normalisation with PyTorch's running statistics."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class BatchNorm(nn.Module):
    """As PyTorch's, which Flax's is not: the running variance is the unbiased one."""

    dtype: Any
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        c = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (c,))
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        mean, var = running_mean.value, running_var.value
        if train:
            wide = x.astype(jnp.float32)
            mean = wide.mean(axis=(0, 1, 2))
            var = jnp.square(wide - mean[None, None, None]).mean(axis=(0, 1, 2))
            if not self.is_initializing():
                n = x.size // c
                for running, new in ((running_mean, mean), (running_var, var * (n / max(1, n - 1)))):
                    running.value = self.momentum * running.value + (1 - self.momentum) * new
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        offset = bias - mean * factor
        return (x * factor[None, None, None] + offset[None, None, None]).astype(self.dtype)
