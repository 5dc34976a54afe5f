"""A 3 × 3 convolution without padding."""

from functools import partial, reduce
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

FEW = 4  # channels of an image rather than of features


class Conv3x3(nn.Module):
    """As nn.Conv without bias; `stride` counts for both axes."""

    features: int
    dtype: Any
    stride: int = 1
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b g v d"]:
        kernel = self.param("kernel", self.kernel_init, (3, 3, x.shape[-1], self.features))
        return conv3x3(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)


def conv3x3(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"], stride: int = 1) -> Float[Array, "b g v d"]:
    """Of positions that see the map alone, no zeros beyond it."""
    return (_of_few if x.shape[-1] <= FEW else _convolved)(x, kernel, stride)


def _convolved(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"], stride: int) -> Float[Array, "b g v d"]:
    strides = (stride, stride)
    return jax.lax.conv_general_dilated(x, kernel, strides, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _of_few(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"], stride: int) -> Float[Array, "b g v d"]:
    """A sum of products, which of three channels is 6 times as fast on a CPU; its gradient is the convolution's."""
    _, h, w, channels = x.shape
    seen = lambda i, j: x[:, i : h - 2 + i : stride, j : w - 2 + j : stride]  # noqa: E731
    parts = [
        seen(i, j)[..., c, None] * kernel[i, j, c][None, None, None]
        for i in range(3)
        for j in range(3)
        for c in range(channels)
    ]
    return reduce(jnp.add, parts)


def _forward(x, kernel, stride):
    return _of_few(x, kernel, stride), (x, kernel)


def _backward(stride, saved, slope):
    return jax.vjp(partial(_convolved, stride=stride), *saved)[1](slope)


_of_few.defvjp(_forward, _backward)
