"""Plain vision transformers: ViT (arXiv 2010.11929), DeiT (arXiv 2012.12877), and what BEiT (arXiv 2106.08254) changes.

Module names follow timm's: `patch_embed/proj`, `blocks_3/attn/qkv`.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kdjax.config import ConfigError, nearest
from kdjax.models.inputs import ImageInput, PatchOptions
from kdjax.models.layers.activation import ACTIVATIONS, activation_faults
from kdjax.models.layers.attention import attention
from kdjax.models.layers.dense import dense
from kdjax.models.layers.droppath import drop_path
from kdjax.models.layers.precision import at_least_float32
from kdjax.models.options import options_of

POOLS = ("token", "mean", "fc_norm")
MOST = 4096  # patches of an image with relative positions: each pair of them has a place in a table

_TI: dict[str, Any] = {"dim": 192, "depth": 12, "heads": 3, "taps": (2, 5, 8, 11)}
_S = _TI | {"dim": 384, "heads": 6}
_B = _TI | {"dim": 768, "heads": 12}
_L = {"dim": 1024, "depth": 24, "heads": 16, "taps": (5, 11, 17, 23)}
_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # ViT brings [0, 1] to [-1, 1]; DeiT has ImageNet's

VARIANTS: dict[str, dict[str, Any]] = {
    "vit_ti16": _TI | _HALF,
    "vit_s16": _S | _HALF,
    "vit_b16": _B | _HALF,
    "vit_b32": _B | _HALF | {"patch_size": 32},
    "vit_l16": _L | _HALF,
    "deit_ti16": _TI,
    "deit_s16": _S,
    "deit_b16": _B,
    "deit_ti16_distilled": _TI | {"distilled": True},
    "deit_s16_distilled": _S | {"distilled": True},
    "deit_b16_distilled": _B | {"distilled": True},
}

# Parameters at 224 pixels with 1000 classes, as published.
PARAMETERS = {
    "vit_ti16": 5_717_416,
    "vit_s16": 22_050_664,
    "vit_b16": 86_567_656,
    "vit_b32": 88_224_232,
    "vit_l16": 304_326_632,
    "deit_ti16": 5_717_416,
    "deit_s16": 22_050_664,
    "deit_b16": 86_567_656,
    "deit_ti16_distilled": 5_910_800,
    "deit_s16_distilled": 22_436_432,
    "deit_b16_distilled": 87_338_192,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(PatchOptions):
    """The dimensions of a plain ViT and how it computes."""

    family: ClassVar[str] = "ViT"

    dim: int  # width of the tokens
    depth: int
    heads: int
    taps: tuple[int, ...]  # the blocks, counted from 0, whose outputs are endpoints
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    relative: bool = False  # BEiT: each block has a table of biases by relative position, instead of `pos_embed`
    layer_scale: float = 0.0  # BEiT: what the learned scale of each branch starts from; 0 for none
    # What `features` are: "token" is the class token after `norm`, "mean" the mean of the patches after `norm`,
    # "fc_norm" their mean before it, normalised.
    pool: str = "token"
    distilled: bool = False  # DeiT: a second token, with a head of its own, that learns from the teacher
    norm_eps: float = 1e-6  # as in timm; Hugging Face's ViT has 1e-12
    activation: str = "gelu"  # of the MLPs
    drop_path: float = 0.0  # the last block's chance to be skipped; it grows linearly from 0 at the first
    dtype: Any = "float32"  # of the computation; parameters stay float32
    remat: bool = False  # recompute each block in the backward pass: less memory, more time
    scan: bool = False  # compile one block and loop over it; `blocks` then stacks all blocks' parameters

    def faults(self) -> list[str]:
        faults = PatchOptions.faults(self)  # super() does not know a class that was made anew for its slots
        if self.heads < 1 or self.dim % self.heads:
            faults.append(f"heads: expected a divisor of dim {self.dim}, found {self.heads}")
        if any(not 0 <= i < self.depth for i in self.taps) or list(self.taps) != sorted(self.taps):
            faults.append(f"taps: expected block numbers below depth {self.depth} in order, found {self.taps}")
        if self.relative and math.prod(self.grid) > MOST:
            faults.append(f"image_size: expected at most {MOST:,} patches, whose pairs are counted, found {self.grid}")
        if self.pool not in POOLS:
            faults.append(f"pool: no {self.pool!r}; {nearest(self.pool, POOLS)}")
        if self.distilled and (self.relative or self.pool != "token"):
            faults.append("distilled: expected absolute positions and pool='token', for both heads read their tokens")
        if not 0 <= self.drop_path < 1:
            faults.append(f"drop_path: expected a rate in [0, 1), found {self.drop_path}")
        return faults + activation_faults(self.activation)


class Vit(nn.Module):
    """Image -> tokens, and with `num_classes` one of them.

    Endpoints: `tokens` [b, 1 + gh gw, d], class token first (distilled: 2 + gh gw, the second one for the teacher),
    normalised where there is a `norm`; `features` [b, d], see Options.pool; `block_i` [b, gh, gw, d] for each block i
    of `taps`, the patches alone, before `norm`. With `num_classes` also `logits` [b, k], the head's answer to
    `features`; distilled, their mean with the second token's, and each alone: `logits_class`, `logits_distilled`.
    """

    options: Options
    num_classes: int = 0

    @property
    def endpoints(self) -> tuple[str, ...]:
        heads = ("logits", "logits_class", "logits_distilled")[: 3 if self.options.distilled else 1]
        blocks = (f"block_{i}" for i in self.options.taps)
        return (*(heads if self.num_classes else ()), "features", "tokens", *blocks)

    @property
    def inputs(self) -> dict[str, ImageInput]:
        return self.options.inputs

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], train: bool = False) -> dict[str, Array]:
        o = self.options
        o.check(image)
        x = PatchEmbed(o, name="patch_embed")(image)

        def learned(name: str, n: int) -> Float[Array, "1 n d"]:
            return jnp.asarray(self.param(name, nn.initializers.truncated_normal(0.02), (1, n, o.dim)), x.dtype)

        first = [learned(name, 1) for name in ("cls_token", "dist_token")[: 2 if o.distilled else 1]]
        x = jnp.concatenate([*(jnp.broadcast_to(token, (len(x), 1, o.dim)) for token in first), x], axis=1)
        if not o.relative:
            x = x + learned("pos_embed", x.shape[1])
        x, after = _blocks(o, x, train)
        out = {f"block_{i}": after[i][:, len(first) :].reshape(len(x), *o.grid, o.dim) for i in o.taps}
        patches = lambda x: x[:, len(first) :].mean(axis=1)  # noqa: E731
        if o.pool == "fc_norm":
            features = _norm(o, "fc_norm")(patches(x))
        else:
            x = _norm(o, "norm")(x)
            features = patches(x) if o.pool == "mean" else x[:, 0]
        out |= {"features": features, "tokens": x}
        if self.num_classes:
            out["logits"] = nn.Dense(self.num_classes, dtype=o.dtype, name="head")(features)
        if self.num_classes and o.distilled:
            second = nn.Dense(self.num_classes, dtype=o.dtype, name="head_dist")(x[:, 1])
            out |= {"logits_class": out["logits"], "logits_distilled": second}
            out["logits"] = (out["logits"] + second) / 2
        return out


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
        x = x + self.drop_path(self.scaled(Attention(o, name="attn")(_norm(o, "norm1")(x)), "gamma_1"), rate)
        return x + self.drop_path(self.scaled(Mlp(o, name="mlp")(_norm(o, "norm2")(x)), "gamma_2"), rate)

    def scaled(self, branch: Float[Array, "b n d"], name: str) -> Float[Array, "b n d"]:
        """LayerScale (arXiv 2103.17239)."""
        if not self.options.layer_scale:
            return branch
        gamma = self.param(name, nn.initializers.constant(self.options.layer_scale), (branch.shape[-1],))
        return branch * gamma[None, None].astype(branch.dtype)

    def drop_path(self, branch: Float[Array, "b n d"], rate: Any) -> Float[Array, "b n d"]:
        if not self.train or self.options.drop_path == 0:
            return branch
        return drop_path(branch, rate, self.make_rng("dropout"))


class Attention(nn.Module):
    options: Options

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        o = self.options
        qkv = _dense(o, 3 * o.dim, "qkv", use_bias=o.qkv_bias and not o.relative)(x)
        bias = None
        if o.relative:
            if o.qkv_bias:  # BEiT's keys have none
                q, v = (self.param(name, nn.initializers.zeros, (o.dim,)) for name in ("q_bias", "v_bias"))
                qkv += jnp.concatenate([q, jnp.zeros_like(q), v])[None, None].astype(qkv.dtype)
            row = relative_positions(o.grid)
            table = self.param("relative_position_bias_table", nn.initializers.zeros, (row.max() + 1, o.heads))
            bias = jnp.moveaxis(table[row], -1, 0)
        qkv = qkv.reshape(*x.shape[:2], 3, o.heads, o.dim // o.heads)
        y = attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], bias=bias)
        return _dense(o, o.dim, "proj")(y.reshape(x.shape))


class Mlp(nn.Module):
    options: Options

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        o = self.options
        y = _dense(o, int(o.dim * o.mlp_ratio), "fc1")(x)
        return _dense(o, o.dim, "fc2")(_gelu(y) if o.activation == "gelu" else ACTIVATIONS[o.activation](y))


def _gelu(x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    """The exact GELU, written out: its slope is kept, not computed anew, which at this width is the faster way."""
    wide = at_least_float32(x)
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


def relative_positions(grid: tuple[int, int]) -> Int[np.ndarray, "n n"]:
    """The row of BEiT's table for each query and key; token 0 is the class token, the patches follow in rows.

    For patches (y, x) and (v, u) of an h × w grid it is (y - v + h - 1) (2w - 1) + x - u + w - 1. The last three rows
    are for the class token asking a patch, a patch asking the class token, and the class token asking itself.
    """
    h, w = grid
    y, x = (axis.reshape(-1) for axis in np.indices(grid))
    distances = (2 * h - 1) * (2 * w - 1)
    row = np.full((1 + h * w, 1 + h * w), distances + 2)
    row[0, 1:] = distances
    row[1:, 0] = distances + 1
    row[1:, 1:] = (y[:, None] - y[None] + h - 1) * (2 * w - 1) + x[:, None] - x[None] + w - 1
    return row


def _norm(o: Options, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=o.norm_eps, dtype=o.dtype, name=name)


def _dense(o: Options, features: int, name: str, use_bias: bool = True) -> nn.Dense:
    initial = nn.initializers.truncated_normal(0.02)
    return dense(features, use_bias=use_bias, dtype=o.dtype, kernel_init=initial, name=name)


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


def build_vit(variant: str = "vit_b16", num_classes: int = 1000, **overrides) -> Vit:
    """Without classes, features alone; `overrides` are fields of Options."""
    if num_classes < 0:
        raise ConfigError(f"num_classes: expected at least 0, for features alone, found {num_classes}")
    return Vit(options_of(Options, "ViT", VARIANTS, variant, overrides), num_classes)
