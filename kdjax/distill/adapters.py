"""Small trainable maps from a student's features to the shape of a teacher's. Channels are mapped, never the batch."""

import flax.linen as nn
from jaxtyping import Array, Float

from kdjax.config import ConfigError, nearest
from kdjax.models.layers.resize import resize


class ConvBnRelu(nn.Module):
    """1x1 convolution without bias, BatchNorm, ReLU: what SAM's image embeddings are met with."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "b *n c"], train: bool = False) -> Float[Array, "b *n d"]:
        # A 1x1 convolution is a Dense over the last axis, and so works on tokens and vectors as well as on maps.
        x = nn.Dense(self.features, use_bias=False, kernel_init=nn.initializers.he_normal(), name="conv")(x)
        return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, name="bn")(x))


class Linear(nn.Module):
    """One affine map of the channels."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "b *n c"], train: bool = False) -> Float[Array, "b *n d"]:
        return nn.Dense(self.features, name="proj")(x)


ADAPTERS: dict[str, type[nn.Module]] = {"conv_bn_relu": ConvBnRelu, "linear": Linear}


def build(name: str, student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]) -> nn.Module:
    """The adapter that gives features of `student_shape` the channels (last axis) of `teacher_shape`."""
    if name not in ADAPTERS:
        raise ConfigError(f"no adapter {name!r}; {nearest(name, ADAPTERS)}")
    if min(len(student_shape), len(teacher_shape)) < 2:
        raise ConfigError(
            f"adapter {name!r} maps features [b, ..., c]; found shapes {student_shape} and {teacher_shape}: "
            "name an endpoint that has channels"
        )
    return ADAPTERS[name](teacher_shape[-1])


def resize_like(x: Float[Array, "b *n c"], shape: tuple[int, ...]) -> Float[Array, "b *m c"]:
    """`x` laid out in space as features of `shape`: maps [b, h, w, c] are resized bilinearly (pixel centres, edges
    held, no smoothing: PyTorch's align_corners=False); tokens [b, n, c] become a map of n = h * w, or the reverse."""
    if len(x.shape) == len(shape) == 4:
        wanted = (x.shape[0], *shape[1:3], x.shape[3])
        return resize(x, wanted[1:3])
    tokens = [s[1] * s[2] if len(s) == 4 else s[1] for s in (x.shape, shape) if len(s) in (3, 4)]
    if len(tokens) == 2 and tokens[0] == tokens[1]:
        return x.reshape(x.shape[0], *shape[1:-1], x.shape[-1])
    if len(x.shape) == len(shape) == 2:
        return x
    raise ConfigError(
        f"features of shape {x.shape} cannot be laid out as {shape}: expected two maps [b, h, w, c], tokens [b, n, c] "
        "with n = h * w (without a class token), or two vectors [b, c]; name another endpoint for one of them"
    )
