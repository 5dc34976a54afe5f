"""SegFormer (Xie et al., arXiv 2105.15203): an encoder of four stages whose attention reads a reduced map, and a decode
head of linear layers.

Module names follow the checkpoints of Hugging Face: `segformer/encoder/block_1_0/attention/self/query`,
`decode_head/linear_c_3/proj`. So do the details: every layer norm has eps 1e-5 (in the first publication's code those
of the blocks and stages have 1e-6), and the head's dropout takes single values, no whole channels.
"""

from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.config import ConfigError
from kdjax.models.inputs import ImageInput
from kdjax.models.layers.activation import ACTIVATIONS, activation_faults
from kdjax.models.layers.attention import attention
from kdjax.models.layers.batch_norm import BatchNorm
from kdjax.models.layers.conv1x1 import Conv1x1
from kdjax.models.layers.dense import dense
from kdjax.models.layers.depthwise import depthwise
from kdjax.models.layers.droppath import drop_path
from kdjax.models.layers.patches import Patches
from kdjax.models.layers.resize import resize
from kdjax.models.options import options_of

STAGES = 4
PATCHES = ((7, 4), (3, 2), (3, 2), (3, 2))  # of each stage: kernel and stride of the convolution it begins with

WIDE = (64, 128, 320, 512)
VARIANTS: dict[str, dict[str, Any]] = {
    "b0": {"dims": (32, 64, 160, 256), "depths": (2, 2, 2, 2), "decoder_dim": 256},
    "b1": {"dims": WIDE, "depths": (2, 2, 2, 2), "decoder_dim": 256},
    "b2": {"dims": WIDE, "depths": (3, 4, 6, 3), "decoder_dim": 768},
    "b3": {"dims": WIDE, "depths": (3, 4, 18, 3), "decoder_dim": 768},
    "b4": {"dims": WIDE, "depths": (3, 8, 27, 3), "decoder_dim": 768},
    "b5": {"dims": WIDE, "depths": (3, 6, 40, 3), "decoder_dim": 768},
}

# Parameters of the published variants with 150 classes (ADE20K).
PARAMETERS = {
    "b0": 3_752_694,
    "b1": 13_715_798,
    "b2": 27_461_974,
    "b3": 47_337_814,
    "b4": 64_108_374,
    "b5": 84_708_694,
}


@dataclass(frozen=True, slots=True)
class Options:
    """The dimensions of a SegFormer, a value per stage where they are tuples, and how it computes."""

    dims: tuple[int, ...]
    depths: tuple[int, ...]  # blocks
    decoder_dim: int
    heads: tuple[int, ...] = (1, 2, 5, 8)
    reductions: tuple[int, ...] = (8, 4, 2, 1)  # so many times fewer rows and columns that attention reads
    mlp_ratio: float = 4.0
    activation: str = "gelu"  # of the MLPs
    image_size: int = 512  # pixels a side that images are resized to; the model itself takes any size
    drop_path: float = 0.1  # the last block's chance to be skipped; it grows linearly from 0 at the first
    dropout: float = 0.1  # before the last convolution
    dtype: Any = "float32"  # of the computation; parameters stay float32
    remat: bool = False  # recompute each block in the backward pass: less memory, more time

    def __post_init__(self):
        faults = []
        for name in ("dims", "depths", "heads", "reductions"):
            sizes = getattr(self, name)
            if len(sizes) != STAGES or min(sizes) < 1:
                faults.append(f"{name}: expected {STAGES} positive numbers, one per stage, found {sizes}")
        if not faults and any(d % h for d, h in zip(self.dims, self.heads, strict=True)):
            faults.append(f"heads: expected divisors of dims {self.dims}, found {self.heads}")
        if not faults and self.image_size < self.least_size:
            faults.append(f"image_size: expected at least {self.least_size}, found {self.image_size}")
        for name in ("drop_path", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                faults.append(f"{name}: expected a rate in [0, 1), found {getattr(self, name)}")
        faults += activation_faults(self.activation)
        if faults:
            raise ConfigError("SegFormer cannot be built:\n  " + "\n  ".join(faults))

    @property
    def least_size(self) -> int:
        """The shortest side of an image of which every stage's attention has something left to read."""
        return max((r - 1) * 4 * 2**i + 1 for i, r in enumerate(self.reductions))


class Segmenter(nn.Module):
    """Image of any size -> a map per class.

    Endpoints: `logits` [b, h, w, k] at the input's size; `low_res_logits` [b, h/4, w/4, k], which these are resized
    from; `fused` [b, h/4, w/4, decoder_dim], what the last convolution reads; `stage_0` .. `stage_3`
    [b, h/s, w/s, dims[i]] with s = 4, 8, 16, 32, after each stage's norm. Sizes are rounded up.

    Of two classes there is one channel, for the foreground, unless `binary_logit` is False: checkpoints of two labels
    have two channels.
    """

    options: Options
    num_classes: int = 2
    binary_logit: bool = True

    @property
    def endpoints(self) -> tuple[str, ...]:
        return ("logits", "low_res_logits", "fused", *(f"stage_{i}" for i in range(STAGES)))

    @property
    def inputs(self) -> dict[str, ImageInput]:
        return {"image": ImageInput(self.options.image_size)}

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], train: bool = False) -> dict[str, Array]:
        o = self.options
        maps = Backbone(o, name="segformer")(image, train)
        k = 1 if self.num_classes == 2 and self.binary_logit else self.num_classes
        logits, fused = DecodeHead(o, k, name="decode_head")(maps, train)
        return {**_stages(maps), "fused": fused, "low_res_logits": logits, "logits": resize(logits, image.shape[1:3])}


class Stages(nn.Module):
    """The encoder alone, as it is pretrained: image of any size -> `stage_0` .. `stage_3`, as Segmenter has them."""

    options: Options

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(f"stage_{i}" for i in range(STAGES))

    @property
    def inputs(self) -> dict[str, ImageInput]:
        return {"image": ImageInput(self.options.image_size)}

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], train: bool = False) -> dict[str, Array]:
        return _stages(Backbone(self.options, name="segformer")(image, train))


def _stages(maps: list[Float[Array, "b _ _ _"]]) -> dict[str, Array]:
    return {f"stage_{i}": x for i, x in enumerate(maps)}


class Backbone(nn.Module):
    options: Options

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], train: bool) -> list[Float[Array, "b _ _ c"]]:
        o, size = self.options, image.shape[1:3]
        if min(size) < o.least_size:
            raise ConfigError(
                f"this SegFormer needs images of at least {o.least_size} pixels a side and got {size}: resize the "
                f"images, or build the model with smaller reductions than {o.reductions}"
            )
        return Encoder(o, name="encoder")(image, train)


class Encoder(nn.Module):
    options: Options

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], train: bool) -> list[Float[Array, "b _ _ c"]]:
        o = self.options
        block = nn.remat(Block) if o.remat else Block
        x, maps, before = image.astype(o.dtype), [], 0
        for i in range(STAGES):
            x = PatchEmbed(o, i, name=f"patch_embeddings_{i}")(x)
            for j in range(o.depths[i]):
                rate = o.drop_path * (before + j) / max(1, sum(o.depths) - 1)
                x = block(o, i, rate if train else 0.0, name=f"block_{i}_{j}")(x)
            before += o.depths[i]
            x = _norm(o, f"layer_norm_{i}")(x)
            maps.append(x)
        return maps


class PatchEmbed(nn.Module):
    """Patches that overlap: half as many rows and columns, of the image a quarter."""

    options: Options
    stage: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ d"]:
        o = self.options
        side, stride = PATCHES[self.stage]
        pad = (side // 2, side // 2)
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        conv = partial(nn.Conv, strides=(stride, stride), padding=(pad, pad), kernel_init=init, dtype=o.dtype)
        return _norm(o, "layer_norm")(conv(o.dims[self.stage], (side, side), name="proj")(x))


class Block(nn.Module):
    options: Options
    stage: int
    rate: float  # the chance of each branch to be left out; above 0 in training alone

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        o = self.options
        y = Attention(o, self.stage, name="attention")(_norm(o, "layer_norm_1")(x))
        x = x + self.drop_path(y)
        y = MixFfn(o, name="mlp")(_norm(o, "layer_norm_2")(x))
        return x + self.drop_path(y)

    def drop_path(self, branch: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return drop_path(branch, self.rate, self.make_rng("dropout")) if self.rate else branch


class Attention(nn.Module):
    options: Options
    stage: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        y = SelfAttention(self.options, self.stage, name="self")(x)
        return Projection(self.options, x.shape[-1], "dense", name="output")(y)


class SelfAttention(nn.Module):
    """Every position asks, and a map with fewer rows and columns answers."""

    options: Options
    stage: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        o = self.options
        b, _, _, c = x.shape
        heads, reduction = o.heads[self.stage], o.reductions[self.stage]
        split = lambda y: y.reshape(b, -1, heads, c // heads)  # noqa: E731
        query, read = _dense(o, c, "query")(x), x
        if reduction > 1:
            init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
            read = _norm(o, "layer_norm")(Patches(c, reduction, o.dtype, init, name="sr")(x))
        key, value = _dense(o, c, "key")(read), _dense(o, c, "value")(read)
        return attention(split(query), split(key), split(value)).reshape(x.shape)


class MixFfn(nn.Module):
    """An MLP that looks at the neighbours in between; there is no other position encoding."""

    options: Options

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        o = self.options
        y = _dense(o, int(x.shape[-1] * o.mlp_ratio), "dense1")(x)
        y = ACTIVATIONS[o.activation](Neighbours(o, name="dwconv")(y))
        return _dense(o, x.shape[-1], "dense2")(y)


class Neighbours(nn.Module):
    options: Options

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return Depthwise3x3(self.options.dtype, name="dwconv")(x)


class Depthwise3x3(nn.Module):
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        kernel = self.param("kernel", nn.initializers.normal((2 / 9) ** 0.5), (3, 3, 1, x.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return depthwise(x, kernel) + bias[None, None, None].astype(self.dtype)


class DecodeHead(nn.Module):
    """All stages' maps, made equally wide, resized to the first one's size and mixed."""

    options: Options
    out: int

    @nn.compact
    def __call__(
        self, maps: list[Float[Array, "b _ _ _"]], train: bool
    ) -> tuple[Float[Array, "b h w {self.out}"], Float[Array, "b h w d"]]:
        o = self.options
        wide = [Projection(o, o.decoder_dim, "proj", name=f"linear_c_{i}")(x) for i, x in enumerate(maps)]
        x = Fuse(o, name="linear_fuse")(wide)
        fused = nn.relu(BatchNorm(o.dtype, name="batch_norm")(x, train))
        x = nn.Dropout(o.dropout, deterministic=not train)(fused)
        return Conv1x1(self.out, o.dtype, name="classifier")(x), fused


class Fuse(nn.Module):
    """A 1x1 convolution of all maps resized and concatenated, the coarsest first.

    Each map meets its share of the kernel before it is resized, which is the same, both being linear, with a third of
    the work.
    """

    options: Options

    @nn.compact
    def __call__(self, maps: list[Float[Array, "b _ _ d"]]) -> Float[Array, "b h w d"]:
        d = maps[0].shape[-1]
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        kernel = self.param("kernel", init, (1, 1, len(maps) * d, d))
        shares = jnp.split(kernel[0, 0].astype(self.options.dtype), len(maps))[::-1]
        mixed = [jnp.dot(x, share) for x, share in zip(maps, shares, strict=True)]
        return reduce(jnp.add, [resize(x, maps[0].shape[1:3]) for x in mixed])


class Projection(nn.Module):
    """A linear layer that is a level deeper in the checkpoints."""

    options: Options
    features: int
    inner: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        return _dense(self.options, self.features, self.inner)(x)


def _dense(options: Options, features: int, name: str) -> nn.Dense:
    return dense(features, dtype=options.dtype, kernel_init=nn.initializers.truncated_normal(0.02), name=name)


def _norm(options: Options, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-5, dtype=options.dtype, name=name)


def build_segformer(variant: str = "b0", num_classes: int = 2, binary_logit: bool = True, **overrides) -> Segmenter:
    """`num_classes` counts the background; `overrides` are fields of Options."""
    if num_classes < 2:
        raise ConfigError(f"num_classes counts the background, so it is at least 2; found {num_classes}")
    return Segmenter(options_of(Options, "SegFormer", VARIANTS, variant, overrides), num_classes, binary_logit)


def build_segformer_encoder(variant: str = "b0", **overrides) -> Stages:
    """`overrides` are fields of Options."""
    return Stages(options_of(Options, "SegFormer", VARIANTS, variant, overrides))
