"""What mobile networks are made of: convolutions with their normalisation, and inverted residuals of three of them.

Module names follow transformers': `expand_1x1/convolution`, `conv_3x3/normalization`.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.models.layers.activation import ACTIVATIONS
from kdjax.models.layers.batch_norm import BatchNorm
from kdjax.models.layers.conv1x1 import Conv1x1
from kdjax.models.layers.conv3x3 import Conv3x3
from kdjax.models.layers.depthwise import Edges, depthwise

DIVISOR = 8
KERNEL = nn.initializers.he_normal()


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """How all layers of a network compute."""

    dtype: Any
    activation: str
    epsilon: float = 1e-5  # of the normalisations
    momentum: float = 0.9  # what their running statistics keep at each step
    tf_padding: bool = False  # TensorFlow's: where one row of zeros is enough, it is the last


def divisible(width: int | float) -> int:
    """The nearest multiple of 8, none that is more than a tenth too small."""
    nearest = max(DIVISOR, int(width + DIVISOR / 2) // DIVISOR * DIVISOR)
    return nearest + DIVISOR if nearest < 0.9 * width else nearest


class ConvLayer(nn.Module):
    """A convolution without bias, then normalised and activated, where it says so."""

    habits: Habits
    features: int
    side: int = 1  # of the kernel: 1 or 3
    stride: int = 1
    normalised: bool = True
    activated: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b g v d"]:
        h = self.habits
        if self.side == 1:
            x = Conv1x1(self.features, h.dtype, use_bias=False, kernel_init=KERNEL, name="convolution")(x)
        else:
            x = jnp.pad(x, ((0, 0), *edges(h, x, self.stride), (0, 0)))
            x = Conv3x3(self.features, h.dtype, self.stride, KERNEL, name="convolution")(x)
        if self.normalised:
            x = batch_norm(h, x, train)
        return ACTIVATIONS[h.activation](x) if self.activated else x


class DepthwiseLayer(nn.Module):
    """A depthwise 3 × 3 convolution without bias, normalised and activated."""

    habits: Habits
    stride: int = 1
    dilation: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b g v c"]:
        h = self.habits
        around = edges(h, x, self.stride, self.dilation)
        x = Depthwise(self.stride, self.dilation, around, name="convolution")(x)
        return ACTIVATIONS[h.activation](batch_norm(h, x, train))


class Depthwise(nn.Module):
    stride: int
    dilation: int
    edges: Edges

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b g v c"]:
        kernel = self.param("kernel", KERNEL, (3, 3, 1, x.shape[-1]))
        return depthwise(x, kernel, self.stride, self.dilation, self.edges)


class InvertedResidual(nn.Module):
    """Widen, look around channel by channel, narrow (Sandler et al., arXiv 1801.04381); with the input beside it where
    that has the shape of the output."""

    habits: Habits
    features: int
    expand_ratio: float
    stride: int = 1
    dilation: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b g v d"]:
        h, wide = self.habits, divisible(round(x.shape[-1] * self.expand_ratio))
        y = ConvLayer(h, wide, name="expand_1x1")(x, train)
        y = DepthwiseLayer(h, self.stride, self.dilation, name="conv_3x3")(y, train)
        y = ConvLayer(h, self.features, activated=False, name="reduce_1x1")(y, train)
        return x + y if x.shape == y.shape and self.stride == 1 else y


def batch_norm(habits: Habits, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
    return BatchNorm(habits.dtype, habits.momentum, habits.epsilon, name="normalization")(x, train)


def edges(habits: Habits, x: Float[Array, "b h w c"], stride: int, dilation: int = 1) -> Edges:
    """The zeros around a map for a kernel of 3 × 3."""

    def along(size: int) -> tuple[int, int]:
        zeros = 3 - (size % stride or stride) if habits.tf_padding else 2
        return dilation * (zeros // 2), dilation * (zeros - zeros // 2)

    return along(x.shape[1]), along(x.shape[2])
