"""MobileViT (Mehta and Rastegari, arXiv 2110.02178): inverted residuals, and transformers among patches of their maps.

Module names follow transformers': `conv_stem/convolution`, `encoder/layer_2/transformer/layer_0/attention/query`; a
`.dense` that stands alone has none of its own. Images are RGB: the published weights saw BGR, and `convert` turns their
first kernel's channels round.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.config import ConfigError
from kdjax.models.inputs import ImageInput, normal_faults
from kdjax.models.layers.activation import ACTIVATIONS, activation_faults
from kdjax.models.layers.attention import attention
from kdjax.models.layers.dense import dense
from kdjax.models.layers.inverted_residual import ConvLayer, Habits, InvertedResidual
from kdjax.models.layers.map_pooling import check_classes, pool_faults, pooled
from kdjax.models.layers.resize import resize
from kdjax.models.options import options_of

RESIDUALS = (1, 3)  # inverted residuals of the first stages
TRANSFORMERS = (2, 4, 3)  # layers of the transformer of each further stage
STAGES = len(RESIDUALS) + len(TRANSFORMERS)

VARIANTS: dict[str, dict[str, Any]] = {
    "xxs": {
        "dims": (64, 80, 96),
        "widths": (16, 16, 24, 48, 64, 80, 320),
        "expand_ratio": 2.0,
        "dropout": 0.05,
    },
    "xs": {"dims": (96, 120, 144), "widths": (16, 32, 48, 64, 80, 96, 384)},
    "s": {"dims": (144, 192, 240), "widths": (16, 32, 64, 96, 128, 160, 640)},
}
PARAMETERS = {"xxs": 1_272_024, "xs": 2_317_848, "s": 5_578_632}  # with 1000 classes, as published


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The dimensions of a MobileViT and how it computes."""

    dims: tuple[int, ...]  # of the tokens in each stage that has a transformer
    widths: tuple[int, ...]  # channels after the stem, after each stage, and of the last map
    expand_ratio: float = 4.0  # inside an inverted residual there are so many times its input's channels
    heads: int = 4
    mlp_ratio: float = 2.0
    qkv_bias: bool = True
    patch_size: int = 2  # positions a side; tokens at the same place in their patches attend to each other
    activation: str = "silu"
    norm_eps: float = 1e-5  # of the layer norms
    # What `features` are of the last map: "mean" over space; "channel" its first channel, a number for each position:
    # what MedPix distillation read as a class token.
    pool: str = "mean"
    dropout: float = 0.1  # in training, of what each branch of a transformer adds, and of the features before the head
    image_size: int | tuple[int, int] = 256  # pixels that images are resized to; the model itself takes any size
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)  # of the channels: MobileViT takes images in [0, 1] as they are
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    dtype: Any = "float32"  # of the computation; parameters stay float32

    def __post_init__(self):
        faults = normal_faults(self.mean, self.std) + activation_faults(self.activation) + pool_faults(self.pool)
        for name, count in (("dims", len(TRANSFORMERS)), ("widths", STAGES + 2)):
            sizes = getattr(self, name)
            if len(sizes) != count or min(sizes) < 1:
                faults.append(f"{name}: expected {count} positive numbers, found {sizes}")
        if self.heads < 1 or any(dim % self.heads for dim in self.dims):
            faults.append(f"heads: expected a divisor of dims {self.dims}, found {self.heads}")
        if self.expand_ratio <= 0:
            faults.append(f"expand_ratio: expected a number above 0, found {self.expand_ratio}")
        if not 0 <= self.dropout < 1:
            faults.append(f"dropout: expected a rate in [0, 1), found {self.dropout}")
        if faults:
            raise ConfigError("MobileViT cannot be built:\n  " + "\n  ".join(faults))

    @property
    def image_hw(self) -> tuple[int, int]:
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def habits(self) -> Habits:
        return Habits(dtype=self.dtype, activation=self.activation)


class MobileVit(nn.Module):
    """Image of any size -> a vector, and with `num_classes` an answer to it.

    Endpoints: `features` [b, widths[6]], the mean of the last map (see Options.pool); `stage_0` .. `stage_4`
    [b, h/s, w/s, widths[i + 1]] with s = 2, 4, 8, 16, 32, after each stage. Sizes are rounded up, stage by stage. With
    `num_classes` also `logits` [b, k].
    """

    options: Options
    num_classes: int = 0

    @property
    def endpoints(self) -> tuple[str, ...]:
        return (*(("logits",) if self.num_classes else ()), "features", *(f"stage_{i}" for i in range(STAGES)))

    @property
    def inputs(self) -> dict[str, ImageInput]:
        return {"image": ImageInput(self.options.image_size, self.options.mean, self.options.std)}

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], train: bool = False) -> dict[str, Array]:
        o = self.options
        x = ConvLayer(o.habits, o.widths[0], 3, stride=2, name="conv_stem")(image, train)
        maps = Encoder(o, name="encoder")(x, train)
        x = ConvLayer(o.habits, o.widths[-1], name="conv_1x1_exp")(maps[-1], train)
        return {**pooled(x, o, self.num_classes, train), **{f"stage_{i}": x for i, x in enumerate(maps)}}


class Encoder(nn.Module):
    options: Options

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> list[Float[Array, "b _ _ _"]]:
        """The map after each stage; all stages but the first halve the sides."""
        o, maps = self.options, []
        for i, width in enumerate(o.widths[1:-1]):
            transformer = i - len(RESIDUALS)
            if transformer < 0:
                x = Residuals(o, width, RESIDUALS[i], stride=2 if i else 1, name=f"layer_{i}")(x, train)
            else:
                x = Stage(o, width, o.dims[transformer], TRANSFORMERS[transformer], name=f"layer_{i}")(x, train)
            maps.append(x)
        return maps


class Residuals(nn.Module):
    """A stage of inverted residuals alone."""

    options: Options
    width: int
    depth: int
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b g v d"]:
        o = self.options
        for j in range(self.depth):
            stride = 1 if j else self.stride
            x = InvertedResidual(o.habits, self.width, o.expand_ratio, stride, name=f"layer_{j}")(x, train)
        return x


class Stage(nn.Module):
    """A smaller map; and, beside it and fused with it, what a transformer makes of its patches."""

    options: Options
    width: int
    dim: int
    depth: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b g v {self.width}"]:
        o, width = self.options, self.width
        layer = lambda *a, **named: ConvLayer(o.habits, *a, **named)  # noqa: E731
        x = InvertedResidual(o.habits, width, o.expand_ratio, 2, name="downsampling_layer")(x, train)
        y = layer(width, 3, name="conv_kxk")(x, train)
        y = layer(self.dim, normalised=False, activated=False, name="conv_1x1")(y, train)
        size, p = y.shape[1:3], o.patch_size
        whole = (-(-size[0] // p) * p, -(-size[1] // p) * p)
        y = Transformer(o, self.depth, name="transformer")(unfolded(resize(y, whole), p), train)
        y = nn.LayerNorm(epsilon=o.norm_eps, dtype=o.dtype, name="layernorm")(y)
        y = resize(folded(y, whole, p), (size[0], size[1]))
        y = layer(width, name="conv_projection")(y, train)
        return layer(width, 3, name="fusion")(jnp.concatenate([x, y], axis=-1), train)


def unfolded(x: Float[Array, "b h w d"], side: int) -> Float[Array, "g n d"]:
    """The tokens at one place in all patches of `side` × `side` of an image: these are a sequence."""
    b, h, w, d = x.shape
    x = x.reshape(b, h // side, side, w // side, side, d)
    return x.transpose(0, 2, 4, 1, 3, 5).reshape(b * side * side, -1, d)


def folded(x: Float[Array, "g n d"], size: tuple[int, int], side: int) -> Float[Array, "b h w d"]:
    """The inverse of `unfolded`."""
    (h, w), d = size, x.shape[-1]
    x = x.reshape(-1, side, side, h // side, w // side, d)
    return x.transpose(0, 3, 1, 4, 2, 5).reshape(-1, h, w, d)


class Transformer(nn.Module):
    options: Options
    depth: int

    @nn.compact
    def __call__(self, x: Float[Array, "g n d"], train: bool) -> Float[Array, "g n d"]:
        for j in range(self.depth):
            x = Block(self.options, name=f"layer_{j}")(x, train)
        return x


class Block(nn.Module):
    options: Options

    @nn.compact
    def __call__(self, x: Float[Array, "g n d"], train: bool) -> Float[Array, "g n d"]:
        o, d = self.options, x.shape[-1]
        norm = lambda name: nn.LayerNorm(epsilon=o.norm_eps, dtype=o.dtype, name=name)  # noqa: E731
        dropped = nn.Dropout(o.dropout, deterministic=not train)
        x = x + dropped(Attention(o, name="attention")(norm("layernorm_before")(x)))
        y = dense(int(d * o.mlp_ratio), dtype=o.dtype, name="intermediate")(norm("layernorm_after")(x))
        return x + dropped(dense(d, dtype=o.dtype, name="output")(ACTIVATIONS[o.activation](y)))


class Attention(nn.Module):
    options: Options

    @nn.compact
    def __call__(self, x: Float[Array, "g n d"]) -> Float[Array, "g n d"]:
        o, (g, n, d) = self.options, x.shape

        def part(name: str) -> Float[Array, "g n heads c"]:
            y = dense(d, use_bias=o.qkv_bias, dtype=o.dtype, name=name)(x)
            return y.reshape(g, n, o.heads, d // o.heads)

        y = attention(part("query"), part("key"), part("value")).reshape(x.shape)
        return dense(d, dtype=o.dtype, name="output")(y)


def build_mobilevit(variant: str = "xxs", num_classes: int = 1000, **overrides) -> MobileVit:
    """Without classes, features alone; `overrides` are fields of Options."""
    options = options_of(Options, "MobileViT", VARIANTS, variant, overrides)
    check_classes(num_classes, options.pool)
    return MobileVit(options, num_classes)
