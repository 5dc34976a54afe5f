"""A 1 × 1 convolution as a matrix product."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from kdjax.models.layers.dense import of_rows


class Conv1x1(nn.Module):
    """As nn.Conv, but a product of all positions, as in `dense`: XLA has the gradient of its kernel as a convolution by
    a map-sized window."""

    features: int
    dtype: Any
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        kernel = self.param("kernel", self.kernel_init, (1, 1, x.shape[-1], self.features))
        y = of_rows(x.astype(self.dtype), kernel[0, 0].astype(self.dtype))
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return y + bias[None, None, None].astype(self.dtype)
