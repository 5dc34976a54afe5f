"""Attention to channels, then to places (CBAM, Woo et al. 2018, arXiv 1807.06521)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.models.layers.dense import dense
from kdjax.models.layers.largest import largest


class Cbam(nn.Module):
    """A map, weighed twice: y = σ(MLP(mean of x) + MLP(max of x)) x over places, then σ(conv([mean; max of y])) y over
    channels. One MLP reads both; it narrows by `reduction`. As in the paper nothing has a bias."""

    dtype: Any
    reduction: int = 8
    side: int = 7  # of the convolution's square

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        c, side = x.shape[-1], (self.side, self.side)
        narrow = dense(max(c // self.reduction, 1), use_bias=False, dtype=self.dtype, name="fc1")
        wide = dense(c, use_bias=False, dtype=self.dtype, name="fc2")
        mlp = lambda x: wide(nn.relu(narrow(x)))  # noqa: E731
        logits = mlp(x.mean(axis=(1, 2))) + mlp(largest(x.reshape(len(x), -1, c), 1))
        x = x * nn.sigmoid(logits)[:, None, None]
        of_channels = jnp.stack([x.mean(axis=-1), largest(x, -1)], axis=-1)
        return x * nn.sigmoid(nn.Conv(1, side, use_bias=False, dtype=self.dtype, name="conv")(of_channels))
