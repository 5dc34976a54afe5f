"""TinyUSFM (arXiv 2510.19239): a small ViT for ultrasound images, plain, as a classifier and as a segmenter.

Module names follow the original's: `backbone/blocks_3/attn/qkv`, `decode_head/fpn_convs_0_1` (its BatchNorm).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.config import ConfigError
from kdjax.models.attention import attention
from kdjax.models.bilinear import bilinear
from kdjax.models.inputs import ImageInput
from kdjax.models.options import options_of

SCALES = (4.0, 2.0, 1.0, 0.5)  # of the neck's four maps, relative to the grid of patches

VARIANTS: dict[str, dict[str, Any]] = {
    "tiny": {"dim": 192, "depth": 12, "heads": 12, "taps": (3, 5, 7, 11)},
    "nano": {"dim": 96, "depth": 4, "heads": 6, "taps": (0, 1, 2, 3), "neck_dim": 24, "head_dim": 32},  # ours
}

# Parameters of the published variant at 224 pixels: the encoder with its norm, and the segmenter of two classes.
PARAMETERS = {"tiny": (5_524_416, 6_179_073)}


@dataclass(frozen=True, slots=True)
class Options:
    """The dimensions of a TinyUSFM and how it computes; the defaults are those of the published variant."""

    dim: int  # width of the tokens
    depth: int
    heads: int
    taps: tuple[int, ...]  # the blocks, counted from 0, whose outputs the segmenter reads
    image_size: int | tuple[int, int] = 224  # pixels, (height, width) where they differ
    patch_size: int = 16
    mlp_ratio: float = 4.0
    drop_path: float = 0.1  # the last block's chance to be skipped; it grows linearly from 0 at the first
    dropout: float = 0.1  # of whole channels, before the segmenter's last convolution
    neck_dim: int = 48
    head_dim: int = 128
    dtype: Any = "float32"  # of the computation; parameters stay float32
    remat: bool = False  # recompute each block in the backward pass: less memory, more time
    scan: bool = False  # compile one block and loop over it; `blocks` then stacks all blocks' parameters

    def __post_init__(self):
        wrong = []
        if any(side <= 0 or side % self.patch_size for side in self.image_hw):
            wrong.append(
                f"image_size: expected a multiple of the patch size {self.patch_size}, found {self.image_size}"
            )
        elif min(self.grid) < 2:
            wrong.append(
                f"image_size: expected at least two patches of {self.patch_size} a side, found {self.image_size}"
            )
        if self.dim % self.heads:
            wrong.append(f"heads: expected a divisor of dim {self.dim}, found {self.heads}")
        if any(not 0 <= i < self.depth for i in self.taps) or list(self.taps) != sorted(self.taps):
            wrong.append(f"taps: expected block numbers below depth {self.depth} in order, found {self.taps}")
        for name in ("drop_path", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                wrong.append(f"{name}: expected a rate in [0, 1), found {getattr(self, name)}")
        if wrong:
            raise ConfigError("TinyUSFM cannot be built:\n  " + "\n  ".join(wrong))

    @property
    def image_hw(self) -> tuple[int, int]:
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        h, w = self.image_hw
        return h // self.patch_size, w // self.patch_size

    @property
    def input_spec(self) -> ImageInput:
        height, width = self.image_hw
        if height != width:
            raise ConfigError(f"image_size: training and prediction use square images, found {height} x {width}")
        return ImageInput(height)


class Encoder(nn.Module):
    """Image -> tokens.

    Endpoints: `tokens` [b, 1 + gh gw, d], class token first, after the final norm; `features` [b, d], the mean of
    the others; `block_i` [b, gh, gw, d] for each block i of `taps`, class token and norm left out. With
    `num_classes`, `features` is what the head reads: the mean of the last block's tokens, normalised; `logits` [b, k].
    """

    options: Options
    num_classes: int = 0

    inputs: ClassVar[tuple[str, ...]] = ("image",)

    @property
    def endpoints(self) -> tuple[str, ...]:
        head = ("logits", "features") if self.num_classes else ("tokens", "features")
        return (*head, *(f"block_{i}" for i in self.options.taps))

    @property
    def input_spec(self) -> ImageInput:
        return self.options.input_spec

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], train: bool = False) -> dict[str, Array]:
        o = self.options
        if image.shape[1:3] != o.image_hw:
            raise ValueError(
                f"TinyUSFM was built for images of {o.image_hw} pixels and got {image.shape[1:3]}: resize the images, "
                f"or build the model with that image_size (a multiple of the patch size {o.patch_size})"
            )
        x = PatchEmbed(o, name="patch_embed")(image)
        first = self.param("cls_token", nn.initializers.truncated_normal(0.02), (1, 1, o.dim))
        position = self.param("pos_embed", nn.initializers.truncated_normal(0.02), (1, 1 + x.shape[1], o.dim))
        x = jnp.concatenate([jnp.broadcast_to(first.astype(x.dtype), (len(x), 1, o.dim)), x], axis=1)
        x, after = _blocks(o, x + position.astype(x.dtype), train)
        out = {f"block_{i}": after[i][:, 1:].reshape(len(x), *o.grid, o.dim) for i in o.taps}
        norm = lambda name: nn.LayerNorm(epsilon=1e-6, dtype=o.dtype, name=name)  # noqa: E731
        if self.num_classes:
            features = norm("fc_norm")(x[:, 1:].mean(axis=1))
            return {
                **out,
                "features": features,
                "logits": nn.Dense(self.num_classes, dtype=o.dtype, name="head")(features),
            }
        tokens = norm("norm")(x)
        return {**out, "tokens": tokens, "features": tokens[:, 1:].mean(axis=1)}


class Classifier(nn.Module):
    """Image -> one of `num_classes`. Endpoints: `logits` [b, k], `features` [b, d] (the head's input), `block_i`."""

    options: Options
    num_classes: int

    inputs: ClassVar[tuple[str, ...]] = ("image",)

    @property
    def endpoints(self) -> tuple[str, ...]:
        return ("logits", "features", *(f"block_{i}" for i in self.options.taps))

    @property
    def input_spec(self) -> ImageInput:
        return self.options.input_spec

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], train: bool = False) -> dict[str, Array]:
        return Encoder(self.options, self.num_classes, name="model")(image, train)


class Segmenter(nn.Module):
    """Image -> a map per class; of two classes the foreground alone.

    Endpoints: `logits` [b, h, w, k] at the input's size, k = 1 for two classes; `fused` [b, 4 gh, 4 gw, head_dim],
    what the last convolution reads; `neck_0` .. `neck_3` [b, s gh, s gw, neck_dim] with s = 4, 2, 1, 1/2; and the
    encoder's `tokens`, `features`, `block_i`.
    """

    options: Options
    num_classes: int = 2

    inputs: ClassVar[tuple[str, ...]] = ("image",)

    @property
    def endpoints(self) -> tuple[str, ...]:
        necks = tuple(f"neck_{i}" for i in range(len(SCALES)))
        return ("logits", "fused", *necks, "tokens", "features", *(f"block_{i}" for i in self.options.taps))

    @property
    def input_spec(self) -> ImageInput:
        return self.options.input_spec

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], train: bool = False) -> dict[str, Array]:
        o = self.options
        # The encoder's final norm is in the checkpoints, but the maps are read before it.
        out = Encoder(o, name="backbone")(image, train)
        maps = Neck(o, name="neck")([out[f"block_{i}"] for i in o.taps])
        k = 1 if self.num_classes == 2 else self.num_classes
        logits, fused = DecodeHead(o, k, name="decode_head")(maps, train)
        necks = {f"neck_{i}": x for i, x in enumerate(maps)}
        return {**out, **necks, "fused": fused, "logits": bilinear(logits, o.image_hw)}


class PatchEmbed(nn.Module):
    options: Options

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b n d"]:
        o = self.options
        patch = (o.patch_size, o.patch_size)
        x = nn.Conv(o.dim, patch, strides=patch, padding="VALID", dtype=o.dtype, name="proj")(image)
        return x.reshape(len(x), -1, o.dim)


class Block(nn.Module):
    options: Options
    train: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], rate: Any) -> Float[Array, "b n d"]:
        o = self.options
        y = nn.LayerNorm(epsilon=1e-6, dtype=o.dtype, name="norm1")(x)
        x = x + self.drop_path(Attention(o, name="attn")(y), rate)
        y = nn.LayerNorm(epsilon=1e-6, dtype=o.dtype, name="norm2")(x)
        return x + self.drop_path(Mlp(o, name="mlp")(y), rate)

    def drop_path(self, branch: Float[Array, "b n d"], rate: Any) -> Float[Array, "b n d"]:
        """Zero for a share `rate` of the examples, the others scaled up to keep the mean (arXiv 1603.09382)."""
        if not self.train or self.options.drop_path == 0:
            return branch
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, (len(branch), 1, 1))
        return jnp.where(keep, branch / (1 - rate), 0).astype(branch.dtype)


class Attention(nn.Module):
    options: Options

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        o = self.options
        qkv = _dense(o, 3 * o.dim, "qkv")(x).reshape(*x.shape[:2], 3, o.heads, o.dim // o.heads)
        y = attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        return _dense(o, o.dim, "proj")(y.reshape(x.shape))


class Mlp(nn.Module):
    options: Options

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        o = self.options
        y = _dense(o, int(o.dim * o.mlp_ratio), "fc1")(x)
        # torch's formula; jax.nn.gelu has erfc here, several times as costly and no better where it matters
        y = 0.5 * y * (1 + jax.lax.erf(y * 0.5**0.5))
        return _dense(o, o.dim, "fc2")(y)


class Neck(nn.Module):
    """Maps of one size -> a pyramid of four."""

    options: Options

    @nn.compact
    def __call__(self, maps: list[Float[Array, "b gh gw d"]]) -> list[Float[Array, "b _ _ c"]]:
        o = self.options
        projected = [Conv1x1(o.neck_dim, o.dtype, name=f"projections_{i}")(x) for i, x in enumerate(maps)]
        return [scaled(x, scale) for x, scale in zip(projected, SCALES, strict=True)]


class DecodeHead(nn.Module):
    """A feature pyramid network: from coarse to fine, then all levels summed at the finest size."""

    options: Options
    out: int

    @nn.compact
    def __call__(
        self, maps: list[Float[Array, "b _ _ c"]], train: bool
    ) -> tuple[Float[Array, "b h w {self.out}"], Float[Array, "b h w d"]]:
        o = self.options
        lateral = partial(Conv1x1, o.head_dim, o.dtype)
        fpn = partial(nn.Conv, o.head_dim, (3, 3), dtype=o.dtype)
        levels = [self.conv_bn_relu(lateral, x, f"lateral_convs_{i}", train) for i, x in enumerate(maps)]
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] += bilinear(levels[i], levels[i - 1].shape[1:3])
        levels = [self.conv_bn_relu(fpn, x, f"fpn_convs_{i}", train) for i, x in enumerate(levels)]
        fused = reduce(jnp.add, [bilinear(x, levels[0].shape[1:3]) for x in levels])
        x = nn.Dropout(o.dropout, broadcast_dims=(1, 2), deterministic=not train)(fused)
        return Conv1x1(self.out, o.dtype, name="conv_seg")(x), fused

    def conv_bn_relu(
        self, conv: Callable[..., nn.Module], x: Float[Array, "b h w c"], name: str, train: bool
    ) -> Float[Array, "b h w d"]:
        x = conv(name=f"{name}_0")(x)
        return nn.relu(BatchNorm(self.options.dtype, name=f"{name}_1")(x, train))


class Conv1x1(nn.Module):
    """As nn.Conv, but a matrix product: XLA has the gradient of its kernel as a convolution by a map-sized window."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (1, 1, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = jnp.dot(x.astype(self.dtype), kernel[0, 0].astype(self.dtype))
        return y + bias[None, None, None].astype(self.dtype)


class BatchNorm(nn.Module):
    """As PyTorch's, which Flax's is not: the running variance is the unbiased one."""

    dtype: Any
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        c = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (c,))
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        mean, var = running_mean.value, running_var.value
        if train:
            wide = x.astype(jnp.float32)
            mean = wide.mean(axis=(0, 1, 2))
            var = jnp.square(wide - mean[None, None, None]).mean(axis=(0, 1, 2))
            if not self.is_initializing():
                n = x.size // c
                for running, new in ((running_mean, mean), (running_var, var * (n / max(1, n - 1)))):
                    running.value = self.momentum * running.value + (1 - self.momentum) * new
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        offset = bias - mean * factor
        return (x * factor[None, None, None] + offset[None, None, None]).astype(self.dtype)


def _dense(options: Options, features: int, name: str) -> nn.Dense:
    return nn.Dense(features, dtype=options.dtype, kernel_init=nn.initializers.truncated_normal(0.02), name=name)


def _blocks(o: Options, x: Float[Array, "b n d"], train: bool) -> tuple[Float[Array, "b n d"], Any]:
    """The tokens after the last block, and after each."""
    block = nn.remat(Block) if o.remat else Block
    rates = [o.drop_path * i / max(1, o.depth - 1) for i in range(o.depth)]
    if o.scan:

        def step(block: nn.Module, x: jax.Array, rate: jax.Array) -> tuple[jax.Array, jax.Array]:
            x = block(x, rate)
            return x, x

        loop = nn.scan(
            step,
            variable_axes={"params": 0, "lora": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            length=o.depth,
        )
        return loop(block(o, train, name="blocks"), x, jnp.array(rates))
    after = []
    for i, rate in enumerate(rates):
        x = block(o, train, name=f"blocks_{i}")(x, rate)
        after.append(x)
    return x, after


def scaled(x: Float[Array, "b h w c"], scale: float) -> Float[Array, "b _ _ c"]:
    """Bilinear by a factor, half-pixel centres, no antialiasing: torch's `interpolate(scale_factor=...)`."""
    h, w = x.shape[1:3]
    if scale >= 1:
        return bilinear(x, (int(h * scale), int(w * scale)))
    # 0.5 samples midway between pairs of pixels; of an odd side it leaves the last pixel out
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    return x.reshape(len(x), h // 2, 2, w // 2, 2, -1).mean(axis=(2, 4))


def build_tinyusfm(variant: str = "tiny", **overrides) -> Encoder:
    """The encoder; `overrides` are fields of Options."""
    return Encoder(_options(variant, overrides))


def build_tinyusfm_cls(variant: str = "tiny", num_classes: int = 2, **overrides) -> Classifier:
    """`overrides` are fields of Options."""
    if num_classes < 2:
        raise ConfigError(f"num_classes: expected at least 2, found {num_classes}")
    return Classifier(_options(variant, overrides), num_classes)


def build_tinyusfm_seg(variant: str = "tiny", num_classes: int = 2, **overrides) -> Segmenter:
    """`num_classes` counts the background; `overrides` are fields of Options."""
    if num_classes < 2:
        raise ConfigError(f"num_classes counts the background, so it is at least 2; found {num_classes}")
    options = _options(variant, overrides)
    if len(options.taps) != len(SCALES):
        raise ConfigError(f"taps: the segmenter reads {len(SCALES)} blocks, found {options.taps}")
    return Segmenter(options, num_classes)


def _options(variant: str, overrides: dict[str, Any]) -> Options:
    return options_of(Options, "TinyUSFM", VARIANTS, variant, overrides)
