"""A convolution of patches that do not overlap."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


class Patches(nn.Module):
    """As nn.Conv whose stride is its kernel, without padding: rows and columns that fill no patch are left out.

    It is a product of all patches: XLA's gradient of the kernel of such a convolution was 6 times as slow on a CPU.
    """

    features: int
    side: int
    dtype: Any
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ {self.features}"]:
        side = self.side
        b, h, w, c = x.shape
        kernel = self.param("kernel", self.kernel_init, (side, side, c, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        rows, columns = h // side, w // side
        patches = x[:, : rows * side, : columns * side].reshape(b, rows, side, columns, side, c).swapaxes(2, 3)
        y = jnp.dot(patches.reshape(-1, side * side * c), kernel.reshape(-1, self.features).astype(self.dtype))
        return y.reshape(b, rows, columns, self.features) + bias[None, None, None].astype(self.dtype)
