"""A small convolutional network with residuals (He et al. 2015, arXiv 1512.03385), for images of any size."""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from kdjax.config import ConfigError
from kdjax.models.inputs import IMAGENET_MEAN, IMAGENET_STD, ImageInput, normal_faults
from kdjax.models.layers.batch_norm import BatchNorm
from kdjax.models.layers.conv1x1 import Conv1x1
from kdjax.models.layers.dense import dense
from kdjax.models.options import options_of

VARIANTS: dict[str, dict[str, Any]] = {
    "base": {"widths": (64, 128, 256), "depths": (2, 2, 2)},
    "small": {"widths": (32, 64, 128), "depths": (1, 1, 1)},
    "nano": {"widths": (8, 16, 32), "depths": (1, 1, 1)},
}
PARAMETERS = {"base": 2_777_290, "small": 308_458, "nano": 19_906}  # with ten classes


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The dimensions of a convnet and how it computes."""

    widths: tuple[int, ...]  # channels of each stage; each but the first halves the sides
    depths: tuple[int, ...]  # residual blocks of each stage
    image_size: int = 32
    mean: tuple[float, ...] = IMAGENET_MEAN  # of the channels in [0, 1]: what the model's images are normalised by
    std: tuple[float, ...] = IMAGENET_STD
    dropout: float = 0.0  # of the features, before the head
    dtype: Any = "float32"  # of the computation; parameters stay float32

    def __post_init__(self):
        faults = []
        if not self.widths or len(self.widths) != len(self.depths):
            faults.append(f"depths: expected one for each of the widths {self.widths}, found {self.depths}")
        if min((*self.widths, *self.depths), default=1) < 1:
            faults.append(f"widths and depths: expected at least 1, found {self.widths} and {self.depths}")
        if self.image_size < (smallest := 2 ** max(len(self.widths) - 1, 0)):
            faults.append(
                f"image_size: expected at least {smallest} for {len(self.widths)} stages, found {self.image_size}"
            )
        faults += normal_faults(self.mean, self.std)
        if not 0 <= self.dropout < 1:
            faults.append(f"dropout: expected a rate in [0, 1), found {self.dropout}")
        if faults:
            raise ConfigError("The convnet cannot be built:\n  " + "\n  ".join(faults))


class Convnet(nn.Module):
    """Image -> one of `num_classes`, or features alone where that is 0.

    Endpoints: `features` [b, d], the mean of the last map; `stage_i` [b, h, w, c], the map after each stage. With
    `num_classes` also `logits` [b, k].
    """

    options: Options
    num_classes: int

    @property
    def inputs(self) -> dict[str, ImageInput]:
        return {"image": ImageInput(self.options.image_size, self.options.mean, self.options.std)}

    @property
    def endpoints(self) -> tuple[str, ...]:
        stages = (f"stage_{i}" for i in range(len(self.options.widths)))
        return (*(("logits",) if self.num_classes else ()), "features", *stages)

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], train: bool = False) -> dict[str, Array]:
        o, endpoints = self.options, {}
        x = nn.relu(ConvNorm(o.widths[0], o.dtype, name="stem")(image.astype(o.dtype), train))
        for i, (width, depth) in enumerate(zip(o.widths, o.depths, strict=True)):
            for j in range(depth):
                stride = 2 if i and not j else 1
                x = Block(width, o.dtype, stride, name=f"stages_{i}_{j}")(x, train)
            endpoints[f"stage_{i}"] = x
        x = endpoints["features"] = x.mean(axis=(1, 2))
        if not self.num_classes:
            return endpoints
        x = nn.Dropout(o.dropout, deterministic=not train)(x)
        return {**endpoints, "logits": dense(self.num_classes, dtype=o.dtype, name="head")(x)}


class Block(nn.Module):
    """Two convolutions, and the input beside them, brought to their width and size where these differ."""

    width: int
    dtype: Any
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b g v d"]:
        y = nn.relu(ConvNorm(self.width, self.dtype, self.stride, name="conv_0")(x, train))
        y = ConvNorm(self.width, self.dtype, name="conv_1")(y, train)
        if x.shape[-1] != self.width or self.stride > 1:
            x = Conv1x1(self.width, self.dtype, name="shortcut")(x[:, :: self.stride, :: self.stride])
        return nn.relu(x + y)


class ConvNorm(nn.Module):
    """A 3 × 3 convolution and its normalisation."""

    width: int
    dtype: Any
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b g v d"]:
        sides = ((1, 1), (1, 1))
        x = nn.Conv(self.width, (3, 3), self.stride, sides, use_bias=False, dtype=self.dtype, name="conv")(x)
        return BatchNorm(self.dtype, name="norm")(x, train)


def build_convnet(variant: str = "small", num_classes: int = 10, **overrides) -> Convnet:
    """Without classes, features alone; `overrides` are fields of Options."""
    if num_classes < 0 or num_classes == 1:
        raise ConfigError(f"num_classes: expected at least 2, or 0 for features alone, found {num_classes}")
    return Convnet(options_of(Options, "convnet", VARIANTS, variant, overrides), num_classes)
