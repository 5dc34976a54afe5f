"""MobileNet-V2 (Sandler et al., arXiv 1801.04381): inverted residuals from the stem to the last map.

Module names follow transformers': `conv_stem/first_conv`, `layer_3/expand_1x1/convolution`.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from kdjax.config import ConfigError
from kdjax.models.inputs import ImageInput, normal_faults
from kdjax.models.layers.activation import activation_faults
from kdjax.models.layers.inverted_residual import ConvLayer, DepthwiseLayer, Habits, InvertedResidual, divisible
from kdjax.models.layers.map_pooling import check_classes, pool_faults, pooled
from kdjax.models.options import options_of

STEM, LAST = 32, 1280  # channels of the first convolution and of the last map
# The paper's table 2: channels, inverted residuals, stride of the first of them. The stem gives the first.
FIRST = 16
GROUPS = ((24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
LAYERS = tuple((width, 1 if j else stride) for width, depth, stride in GROUPS for j in range(depth))
STRIDES = (8, 16, 32)  # of the last map, that can be asked for

VARIANTS: dict[str, dict[str, Any]] = {
    "1.0_224": {"multiplier": 1.0, "image_size": 224},
    "1.4_224": {"multiplier": 1.4, "image_size": 224},
    "0.75_160": {"multiplier": 0.75, "image_size": 160},
    "0.35_96": {"multiplier": 0.35, "image_size": 96},
}
# Parameters with 1000 classes; the published files have one more, for none of them.
PARAMETERS = {"1.0_224": 3_504_872, "1.4_224": 6_108_776, "0.75_160": 2_636_424, "0.35_96": 1_677_128}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The dimensions of a MobileNet-V2 and how it computes."""

    multiplier: float  # of all widths, which are rounded to multiples of 8
    full_last: bool = True  # a multiplier below 1 leaves the last map as wide as it is
    expand_ratio: float = 6.0  # inside an inverted residual there are so many times its input's channels
    output_stride: int = (
        32  # so many pixels a position of the last map; below 32, kernels widen where maps would shrink
    )
    tf_padding: bool = True  # as TensorFlow does, which trained the published weights; False: alike all round
    activation: str = "relu6"
    norm_eps: float = 1e-3
    # What running statistics keep at each step. TensorFlow's 0.997 takes hundreds of steps to forget its start;
    # transformers gives PyTorch that number for what is new, and keeps 0.003.
    momentum: float = 0.9
    # What `features` are of the last map: "mean" over space; "channel" its first channel, a number for each position:
    # what MedPix distillation read as a class token.
    pool: str = "mean"
    dropout: float = 0.2  # of the features before the head, in training; TensorFlow keeps 0.8, transformers drops 0.8
    image_size: int | tuple[int, int] = 224  # pixels that images are resized to; the model itself takes any size
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)  # of the channels in [0, 1]: what the model's images are normalised by
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    dtype: Any = "float32"  # of the computation; parameters stay float32

    def __post_init__(self):
        faults = normal_faults(self.mean, self.std) + activation_faults(self.activation) + pool_faults(self.pool)
        for name in ("multiplier", "expand_ratio"):
            if not getattr(self, name) > 0:
                faults.append(f"{name}: expected a number above 0, found {getattr(self, name)}")
        if self.output_stride not in STRIDES:
            faults.append(f"output_stride: expected one of {STRIDES}, found {self.output_stride}")
        for name in ("momentum", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                faults.append(f"{name}: expected a share in [0, 1), found {getattr(self, name)}")
        if faults:
            raise ConfigError("MobileNet-V2 cannot be built:\n  " + "\n  ".join(faults))

    @property
    def image_hw(self) -> tuple[int, int]:
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def habits(self) -> Habits:
        return Habits(
            dtype=self.dtype,
            activation=self.activation,
            epsilon=self.norm_eps,
            momentum=self.momentum,
            tf_padding=self.tf_padding,
        )

    @property
    def last(self) -> int:
        """Channels of the last map."""
        return LAST if self.full_last and self.multiplier < 1 else scaled(LAST, self.multiplier)

    @property
    def layers(self) -> tuple[tuple[int, int, int], ...]:
        """Channels, stride and dilation of each inverted residual."""
        found, reached, dilation = [], 2, 1
        for width, stride in LAYERS:
            if reached < self.output_stride:
                found.append((scaled(width, self.multiplier), stride, 1))
                reached *= stride
            else:
                found.append((scaled(width, self.multiplier), 1, dilation))
                dilation *= stride  # from the next one on
        return tuple(found)


def scaled(width: int, multiplier: float) -> int:
    return divisible(round(width * multiplier))


# The layers before each halving of the map, and the last: these are the stages.
ENDS = (*(i for i, (_, stride) in enumerate(LAYERS[1:]) if stride == 2), len(LAYERS) - 1)


class MobileNetV2(nn.Module):
    """Image of any size -> a vector, and with `num_classes` an answer to it.

    Endpoints: `features` [b, d], the mean of the last map (see Options.pool); `stage_0` .. `stage_4` [b, h/s, w/s, c]
    with s = 2, 4, 8, 16, 32, but at most the `output_stride`, before each halving of the map and at its end. Sizes are
    rounded up, stage by stage. With `num_classes` also `logits` [b, k].
    """

    options: Options
    num_classes: int = 0

    @property
    def endpoints(self) -> tuple[str, ...]:
        stages = (f"stage_{i}" for i in range(1 + len(ENDS)))
        return (*(("logits",) if self.num_classes else ()), "features", *stages)

    @property
    def inputs(self) -> dict[str, ImageInput]:
        return {"image": ImageInput(self.options.image_size, self.options.mean, self.options.std)}

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], train: bool = False) -> dict[str, Array]:
        o = self.options
        x = Stem(o, name="conv_stem")(image, train)
        maps = [x]
        for i, (width, stride, dilation) in enumerate(o.layers):
            x = InvertedResidual(o.habits, width, o.expand_ratio, stride, dilation, name=f"layer_{i}")(x, train)
            if i in ENDS:
                maps.append(x)
        x = ConvLayer(o.habits, o.last, name="conv_1x1")(x, train)
        return {**pooled(x, o, self.num_classes, train), **{f"stage_{i}": x for i, x in enumerate(maps)}}


class Stem(nn.Module):
    """A convolution, and an inverted residual that it has widened already."""

    options: Options

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], train: bool) -> Float[Array, "b g v c"]:
        o = self.options
        x = ConvLayer(o.habits, scaled(STEM, o.multiplier), 3, stride=2, name="first_conv")(image, train)
        x = DepthwiseLayer(o.habits, name="conv_3x3")(x, train)
        return ConvLayer(o.habits, scaled(FIRST, o.multiplier), activated=False, name="reduce_1x1")(x, train)


def build_mobilenetv2(variant: str = "1.0_224", num_classes: int = 1000, **overrides) -> MobileNetV2:
    """Without classes, features alone; `overrides` are fields of Options."""
    options = options_of(Options, "MobileNet-V2", VARIANTS, variant, overrides)
    check_classes(num_classes, options.pool)
    return MobileNetV2(options, num_classes)
