"""A 3 × 3 convolution without padding."""

from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float


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
    strides = (stride, stride)
    return jax.lax.conv_general_dilated(x, kernel, strides, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
