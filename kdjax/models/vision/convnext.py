"""ConvNeXt-V2 (Woo et al., arXiv 2301.00808): ConvNeXt's blocks with a global response norm.

Module names follow timm's: `stem_0`, `stages_1/downsample_1`, `stages_0/blocks_2/mlp/grn`, `head/fc`.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.config import ConfigError
from kdjax.models.inputs import IMAGENET_MEAN, IMAGENET_STD, ImageInput, normal_faults
from kdjax.models.layers.activation import ACTIVATIONS, activation_faults
from kdjax.models.layers.dense import dense
from kdjax.models.layers.depthwise import depthwise
from kdjax.models.layers.droppath import drop_path
from kdjax.models.layers.patches import Patches
from kdjax.models.layers.precision import at_least_float32
from kdjax.models.options import options_of

STAGES = 4
STEM, DOWN = 4, 2  # so many times fewer rows and columns after the stem, and in each stage but the first
LEAST = STEM * DOWN ** (STAGES - 1)  # pixels a side of which the last stage has something left
KERNEL = 7
MLP_RATIO = 4
EPS = 1e-6  # of every norm but the last

_WIDTHS = lambda first: tuple(first * 2**i for i in range(STAGES))  # noqa: E731
VARIANTS: dict[str, dict[str, Any]] = {
    "atto": {"dims": _WIDTHS(40), "depths": (2, 2, 6, 2)},
    "femto": {"dims": _WIDTHS(48), "depths": (2, 2, 6, 2)},
    "pico": {"dims": _WIDTHS(64), "depths": (2, 2, 6, 2)},
    "nano": {"dims": _WIDTHS(80), "depths": (2, 2, 8, 2)},
    "tiny": {"dims": _WIDTHS(96), "depths": (3, 3, 9, 3)},
    "base": {"dims": _WIDTHS(128), "depths": (3, 3, 27, 3)},
    "large": {"dims": _WIDTHS(192), "depths": (3, 3, 27, 3)},
    "huge": {"dims": _WIDTHS(352), "depths": (3, 3, 27, 3)},
}

# Parameters with 1000 classes, as published.
PARAMETERS = {
    "atto": 3_708_400,
    "femto": 5_233_240,
    "pico": 9_066_280,
    "nano": 15_623_800,
    "tiny": 28_635_496,
    "base": 88_717_800,
    "large": 197_956_840,
    "huge": 660_289_640,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The dimensions of a ConvNeXt-V2, a value per stage where they are tuples, and how it computes."""

    dims: tuple[int, ...]
    depths: tuple[int, ...]  # blocks
    image_size: int | tuple[int, int] = 224  # pixels that images are resized to; the model itself takes any size
    mean: tuple[float, ...] = IMAGENET_MEAN  # of the channels in [0, 1]: what the model's images are normalised by
    std: tuple[float, ...] = IMAGENET_STD
    activation: str = "gelu"  # of the MLPs
    head_norm_eps: float = 1e-6  # of the last norm, as in timm; transformers has 1e-12 there, and 1e-6 in all others
    drop_path: float = 0.0  # the last block's chance to be skipped; it grows linearly from 0 at the first
    dtype: Any = "float32"  # of the computation; parameters stay float32
    remat: bool = False  # recompute each block in the backward pass: less memory, more time

    def __post_init__(self):
        faults = normal_faults(self.mean, self.std) + activation_faults(self.activation)
        for name in ("dims", "depths"):
            sizes = getattr(self, name)
            if len(sizes) != STAGES or min(sizes) < 1:
                faults.append(f"{name}: expected {STAGES} positive numbers, one per stage, found {sizes}")
        if min(self.image_hw) < LEAST:
            faults.append(f"image_size: expected at least {LEAST} pixels a side, found {self.image_size}")
        if not 0 <= self.drop_path < 1:
            faults.append(f"drop_path: expected a rate in [0, 1), found {self.drop_path}")
        if faults:
            raise ConfigError("ConvNeXt-V2 cannot be built:\n  " + "\n  ".join(faults))

    @property
    def image_hw(self) -> tuple[int, int]:
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    def rate(self, stage: int, block: int) -> float:
        """The chance of a block to be skipped."""
        return self.drop_path * (sum(self.depths[:stage]) + block) / max(1, sum(self.depths) - 1)


class ConvNext(nn.Module):
    """Image of any size -> a vector, and with `num_classes` an answer to it.

    Endpoints: `features` [b, dims[3]], the mean of the last map, normalised; `stage_0` .. `stage_3`
    [b, h/s, w/s, dims[i]] with s = 4, 8, 16, 32, after each stage. Sizes are rounded down, stage by stage. With
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
        o, size = self.options, image.shape[1:3]
        if min(size) < LEAST:
            raise ConfigError(
                f"ConvNeXt-V2 needs images of at least {LEAST} pixels a side and got {size}: resize the images"
            )
        x = _patches(o, o.dims[0], STEM, "stem_0")(image.astype(o.dtype))
        x, out = _norm(o, "stem_1")(x), {}
        for i in range(STAGES):
            x = out[f"stage_{i}"] = Stage(o, i, train, name=f"stages_{i}")(x)
        return out | Head(o, self.num_classes, name="head")(x)


class Stage(nn.Module):
    options: Options
    stage: int
    train: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ d"]:
        o = self.options
        if self.stage:
            x = _patches(o, o.dims[self.stage], DOWN, "downsample_1")(_norm(o, "downsample_0")(x))
        block = nn.remat(Block) if o.remat else Block
        for j in range(o.depths[self.stage]):
            x = block(o, o.rate(self.stage, j) if self.train else 0.0, name=f"blocks_{j}")(x)
        return x


class Block(nn.Module):
    options: Options
    rate: float  # the chance of the branch to be left out; above 0 in training alone

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        o = self.options
        y = _norm(o, "norm")(Depthwise(o.dtype, name="conv_dw")(x))
        y = Mlp(o, name="mlp")(y)
        return x + (drop_path(y, self.rate, self.make_rng("dropout")) if self.rate else y)


class Depthwise(nn.Module):
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        kernel = self.param("kernel", nn.initializers.truncated_normal(0.02), (KERNEL, KERNEL, 1, x.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return depthwise(x, kernel) + bias[None, None, None].astype(self.dtype)


class Mlp(nn.Module):
    options: Options

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        o = self.options
        y = ACTIVATIONS[o.activation](_dense(o, MLP_RATIO * x.shape[-1], "fc1")(x))
        return _dense(o, x.shape[-1], "fc2")(GlobalResponseNorm(o.dtype, name="grn")(y))


class GlobalResponseNorm(nn.Module):
    """A channel counts by how strongly the whole map responds to it, beside the other channels."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        scale = self.param("scale", nn.initializers.zeros, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        squares = jnp.square(at_least_float32(x)).sum((1, 2), keepdims=True)
        silent = squares == 0  # a root has no slope at 0; PyTorch's norm has 0 there
        response = jnp.where(silent, 0, jnp.sqrt(jnp.where(silent, 1, squares)))
        relative = response / (response.mean(-1, keepdims=True) + EPS)
        return x * (1 + scale[None, None, None] * relative).astype(x.dtype) + bias[None, None, None].astype(x.dtype)


class Head(nn.Module):
    options: Options
    num_classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> dict[str, Array]:
        o = self.options
        features = nn.LayerNorm(epsilon=o.head_norm_eps, dtype=o.dtype, name="norm")(x.mean((1, 2)))
        logits = {"logits": _dense(o, self.num_classes, "fc")(features)} if self.num_classes else {}
        return {**logits, "features": features}


def _patches(options: Options, features: int, side: int, name: str) -> Patches:
    return Patches(features, side, options.dtype, nn.initializers.truncated_normal(0.02), name=name)


def _dense(options: Options, features: int, name: str) -> nn.Dense:
    return dense(features, dtype=options.dtype, kernel_init=nn.initializers.truncated_normal(0.02), name=name)


def _norm(options: Options, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=EPS, dtype=options.dtype, name=name)


def build_convnextv2(variant: str = "tiny", num_classes: int = 1000, **overrides) -> ConvNext:
    """Without classes, features alone; `overrides` are fields of Options."""
    if num_classes < 0:
        raise ConfigError(f"num_classes: expected at least 0, for features alone, found {num_classes}")
    return ConvNext(options_of(Options, "ConvNeXt-V2", VARIANTS, variant, overrides), num_classes)
