"""Plain vision transformers: ViT (arXiv 2010.11929), DeiT (arXiv 2012.12877), DINOv2 (arXiv 2304.07193; with registers,
arXiv 2309.16588), and what BEiT (arXiv 2106.08254) changes.

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
from kdjax.models.layers.token_merging import merged
from kdjax.models.options import options_of

POOLS = ("token", "mean", "fc_norm", "token_mean")
MOST = 4096  # patches of an image with relative positions: each pair of them has a place in a table

_TI: dict[str, Any] = {"dim": 192, "depth": 12, "heads": 3, "taps": (2, 5, 8, 11)}
_S = _TI | {"dim": 384, "heads": 6}
_B = _TI | {"dim": 768, "heads": 12}
_L = {"dim": 1024, "depth": 24, "heads": 16, "taps": (5, 11, 17, 23)}
_DINO = {"patch_size": 14, "image_size": 518, "layer_scale": 1e-5}
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
    "dinov2_s14": _S | _DINO,
    "dinov2_b14": _B | _DINO,
    "dinov2_l14": _L | _DINO,
    "dinov2_s14_reg4": _S | _DINO | {"registers": 4},
    "dinov2_b14_reg4": _B | _DINO | {"registers": 4},
    "dinov2_l14_reg4": _L | _DINO | {"registers": 4},
}

# Parameters as published: at 224 pixels with 1000 classes; of DINOv2 at 518 pixels with none, the token that stands for
# hidden patches in pretraining not counted.
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
    "dinov2_s14": 22_056_192,
    "dinov2_b14": 86_579_712,
    "dinov2_l14": 304_367_616,
    "dinov2_s14_reg4": 22_057_728,
    "dinov2_b14_reg4": 86_582_784,
    "dinov2_l14_reg4": 304_371_712,
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
    layer_scale: float = 0.0  # BEiT, DINOv2: what the learned scale of each branch starts from; 0 for none
    # What `features` are: "token" is the class token after `norm`, "mean" the mean of the patches after `norm`,
    # "fc_norm" their mean before it, normalised; "token_mean" are the first two, side by side.
    pool: str = "token"
    distilled: bool = False  # DeiT: a second token, with a head of its own, that learns from the teacher
    registers: int = 0  # tokens for what no patch needs, before the patches, without positions
    class_position: bool = True  # whether `pos_embed` has a row for the class token; timm's DINOv2 with registers: none
    merge: int = 0  # ToMe (arXiv 2210.09461): so many patches, or half of those left, join others in each block
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
        if self.relative and (self.registers or self.merge or not self.class_position):
            faults.append("relative: expected registers=0, merge=0 and class_position, for its tables are of the grid")
        faults += self.merge_faults()
        if self.distilled and (self.relative or self.pool != "token"):
            faults.append("distilled: expected absolute positions and pool='token', for both heads read their tokens")
        if not 0 <= self.drop_path < 1:
            faults.append(f"drop_path: expected a rate in [0, 1), found {self.drop_path}")
        return faults + activation_faults(self.activation)

    def merge_faults(self) -> list[str]:
        patches, faults = math.prod(self.grid), []
        if self.merge > patches // 2:
            faults.append(f"merge: expected at most half of the {patches:,} patches, found {self.merge}")
        if self.merge and self.taps:
            faults.append(
                f"taps: expected () where tokens merge, found {self.taps}: block_i would be no map; features, tokens "
                "and, with classes, logits remain"
            )
        if self.merge and self.scan:
            faults.append("scan: expected False where tokens merge, for each block then has fewer of them")
        return faults

    @property
    def before(self) -> int:
        """Tokens before the patches: class, distillation, registers."""
        return 1 + self.distilled + self.registers

    @property
    def merges(self) -> list[int]:
        """How many patches join others in each block."""
        left, counts = math.prod(self.grid), []
        for _ in range(self.depth):
            counts.append(min(self.merge, left // 2))
            left -= counts[-1]
        return counts


class Vit(nn.Module):
    """Image -> tokens, and with `num_classes` one of them.

    Endpoints: `tokens` [b, 1 + gh gw, d], class token first, then where there are such the one for the teacher
    (`distilled`) and `registers`, normalised where there is a `norm`, fewer where they `merge`; `features` [b, d], see
    Options.pool (token_mean: [b, 2 d]); `block_i` [b, gh, gw, d] for each block i of `taps`, the patches alone, before
    `norm`. With `num_classes` also `logits` [b, k], the head's answer to `features`; distilled, their mean with the
    second token's, and each alone: `logits_class`, `logits_distilled`.
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
        x = self.with_tokens(PatchEmbed(o, name="patch_embed")(image))
        x, size, after = _blocks(o, x, train)
        out = {f"block_{i}": after[i][:, o.before :].reshape(len(x), *o.grid, o.dim) for i in o.taps}
        patches = lambda x: _mean(x[:, o.before :], None if size is None else size[:, o.before :])  # noqa: E731
        if o.pool == "fc_norm":
            features = _norm(o, "fc_norm")(patches(x))
        else:
            x = _norm(o, "norm")(x)
            features = {
                "token": lambda: x[:, 0],
                "mean": lambda: patches(x),
                "token_mean": lambda: jnp.concatenate([x[:, 0], patches(x)], axis=1),
            }[o.pool]()
        out |= {"features": features, "tokens": x}
        if self.num_classes:
            out["logits"] = nn.Dense(self.num_classes, dtype=o.dtype, name="head")(features)
        if self.num_classes and o.distilled:
            second = nn.Dense(self.num_classes, dtype=o.dtype, name="head_dist")(x[:, 1])
            out |= {"logits_class": out["logits"], "logits_distilled": second}
            out["logits"] = (out["logits"] + second) / 2
        return out

    def with_tokens(self, patches: Float[Array, "b n d"]) -> Float[Array, "b m d"]:
        """The patches with the tokens before them, all but the registers with their positions."""
        o = self.options

        def learned(name: str, n: int) -> Float[Array, "1 n d"]:
            return jnp.asarray(self.param(name, nn.initializers.truncated_normal(0.02), (1, n, o.dim)), patches.dtype)

        first = [learned(name, 1) for name in ("cls_token", "dist_token")[: 2 if o.distilled else 1]]
        if not o.relative:
            placed = len(first) if o.class_position else 0
            positions = learned("pos_embed", placed + patches.shape[1])
            first[:placed] = [token + positions[:, i : i + 1] for i, token in enumerate(first[:placed])]
            patches = patches + positions[:, placed:]
        registers = [learned("reg_token", o.registers)] if o.registers else []
        before = jnp.concatenate([*first, *registers], axis=1)
        return jnp.concatenate([jnp.broadcast_to(before, (len(patches), *before.shape[1:])), patches], axis=1)


def _mean(x: Float[Array, "b n d"], size: Float[Array, "b n"] | None) -> Float[Array, "b d"]:
    """Of the patches, each counted as often as it stands for one."""
    if size is None:
        return x.mean(axis=1)
    share = size / size.sum(axis=1, keepdims=True)
    return jnp.einsum("bnd,bn->bd", x, share.astype(x.dtype))


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
    merge: int = 0

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], rate: Any, size: Float[Array, "b n"] | None = None) -> Any:
        """The tokens [b, n, d]; where they merge, [b, n - merge, d] and how many patches each stands for."""
        o = self.options
        attended = Attention(o, name="attn")(_norm(o, "norm1")(x), size)
        y, *key = attended if size is not None else (attended,)
        x = x + self.drop_path(self.scaled(y, "gamma_1"), rate)
        if self.merge and size is not None:
            x, size = merged(x, size, key[0], self.merge, o.before)
        x = x + self.drop_path(self.scaled(Mlp(o, name="mlp")(_norm(o, "norm2")(x)), "gamma_2"), rate)
        return x if size is None else (x, size)

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
    def __call__(self, x: Float[Array, "b n d"], size: Float[Array, "b n"] | None = None) -> Any:
        """[b, n, d]; of tokens that stand for `size` patches each, also their keys [b, n, c], the mean of all heads."""
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
        y = attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], bias=bias, count=size)
        y = _dense(o, o.dim, "proj")(y.reshape(x.shape))
        return y if size is None else (y, qkv[:, :, 1].mean(axis=2))


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


def _blocks(o: Options, x: Float[Array, "b n d"], train: bool) -> tuple[Float[Array, "b m d"], Any, Any]:
    """The tokens after the last block, where they merge how many patches each stands for, and the tokens after each."""
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
        x, after = loop(block(o, train, name="blocks"), x, jnp.array(rates))
        return x, None, after
    after, size = [], jnp.ones(x.shape[:2]) if o.merge else None
    for i, (rate, merge) in enumerate(zip(rates, o.merges, strict=True)):
        x = block(o, train, merge, name=f"blocks_{i}")(x, rate, size)
        x, size = x if o.merge else (x, None)
        after.append(x)
    return x, size, after


def build_vit(variant: str = "vit_b16", num_classes: int = 1000, **overrides) -> Vit:
    """Without classes, features alone; `overrides` are fields of Options. Where tokens merge, there are no `taps`."""
    if num_classes < 0:
        raise ConfigError(f"num_classes: expected at least 0, for features alone, found {num_classes}")
    if overrides.get("merge"):
        overrides = {"taps": ()} | overrides
    return Vit(options_of(Options, "ViT", VARIANTS, variant, overrides), num_classes)
