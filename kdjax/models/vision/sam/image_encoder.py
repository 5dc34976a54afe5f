"""SAM's image encoder: a ViT with windowed and global attention and decomposed relative positions.

Kirillov et al., Segment Anything, 2023; Li et al., Exploring Plain ViT Backbones for Object Detection, 2022.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kdjax.config import ConfigError
from kdjax.models.layers.attention import attention
from kdjax.models.layers.dense import dense
from kdjax.models.layers.gelu import gelu
from kdjax.models.vision.sam.options import SamOptions


class ImageEncoder(nn.Module):
    """Normalised image -> embeddings, one per patch.

    Blocks are named `blocks_0`, `blocks_1`, ... With `scan`, the shortest period p of the window/global pattern is
    compiled once: `periods/blocks_j/...` then holds the parameters of blocks j, j+p, j+2p, ... along a leading axis
    (`stack_blocks` and `unstack_blocks` convert).
    """

    options: SamOptions

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b gh gw c"]:
        o = self.options
        if image.shape[1:3] != o.image_hw:
            raise ConfigError(
                f"SAM was built for images of {o.image_hw} pixels and got {image.shape[1:3]}: resize the images, or "
                f"build the model with that image_size (a multiple of the patch size {o.patch_size})"
            )
        x = PatchEmbed(o, name="patch_embed")(image)
        position = self.param("pos_embed", nn.initializers.truncated_normal(0.02), (1, *o.grid, o.dim))
        x = x + jnp.broadcast_to(position.astype(x.dtype), x.shape)
        if o.scan:
            periods = nn.scan(
                Period,
                variable_axes={"params": 0, "lora": 0},
                split_rngs={"params": True},
                length=o.depth // period(o),
            )
            x, _ = periods(o, name="periods")(x, None)
        else:
            for i in range(o.depth):
                x = _block(o)(o, i in o.global_blocks, name=f"blocks_{i}")(x)
        for i, size in enumerate((1, 3)):
            conv = nn.Conv(o.embed_dim, (size, size), use_bias=False, dtype=o.dtype, name=f"neck_{2 * i}")
            x = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, dtype=o.dtype, name=f"neck_{2 * i + 1}")(conv(x))
        return x


class PatchEmbed(nn.Module):
    options: SamOptions

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b gh gw d"]:
        o = self.options
        patch = (o.patch_size, o.patch_size)
        return nn.Conv(o.dim, patch, strides=patch, padding="VALID", dtype=o.dtype, name="proj")(image)


class Period(nn.Module):
    """The blocks that `nn.scan` repeats."""

    options: SamOptions

    @nn.compact
    def __call__(self, x, _):
        for j in range(period(self.options)):
            x = _block(self.options)(self.options, j in self.options.global_blocks, name=f"blocks_{j}")(x)
        return x, None


class Block(nn.Module):
    options: SamOptions
    everywhere: bool  # attends to the whole image, not to a window

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        o = self.options
        y = nn.LayerNorm(epsilon=o.norm_eps, use_fast_variance=False, dtype=o.dtype, name="norm1")(x)
        x = x + Attention(o, 0 if self.everywhere else o.window, name="attn")(y)
        y = nn.LayerNorm(epsilon=o.norm_eps, use_fast_variance=False, dtype=o.dtype, name="norm2")(x)
        return x + Mlp(int(o.dim * o.mlp_ratio), gelu, dtype=o.dtype, name="mlp")(y)


class Mlp(nn.Module):
    hidden: int
    activation: Callable[[jax.Array], jax.Array]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        y = self.activation(dense(self.hidden, dtype=self.dtype, name="lin1")(x))
        return dense(x.shape[-1], dtype=self.dtype, name="lin2")(y)


class Attention(nn.Module):
    """Self-attention over the grid, or within windows of `window` × `window` patches, padded with zeros at the end."""

    options: SamOptions
    window: int  # 0 is the whole grid

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        o = self.options
        b, h, w, d = x.shape
        side = (self.window or h, self.window or w)
        table = {
            axis: self.param(f"rel_pos_{axis}", nn.initializers.zeros, (2 * n - 1, d // o.heads))
            for axis, n in zip("hw", side, strict=True)
        }
        project = dense(3 * d, dtype=o.dtype, name="qkv")
        qkv = project(x)
        extra = [-n % s for n, s in zip((h, w), side, strict=True)]
        if any(extra):
            # What is padded is zero before the projection, so its bias after it; projecting the padding would be waste.
            bias = project.variables["params"]["bias"].astype(qkv.dtype)
            qkv = _pad(qkv, extra, bias)
        q, k, v = jnp.moveaxis(_windows(qkv, side).reshape(-1, *side, 3, o.heads, d // o.heads), 3, 0)
        rows = jnp.einsum("bxynd,xkd->bxynk", q, _relative(table["h"], side[0]).astype(q.dtype))
        columns = jnp.einsum("bxynd,ykd->bxynk", q, _relative(table["w"], side[1]).astype(q.dtype))
        y = attention(*(t.reshape(t.shape[0], -1, *t.shape[3:]) for t in (q, k, v, rows, columns)))
        y = _grid(y.reshape(-1, *side, d), (b, h + extra[0], w + extra[1]))[:, :h, :w]
        return dense(d, dtype=o.dtype, name="proj")(y)


def _block(options: SamOptions) -> type[nn.Module]:
    return nn.remat(Block) if options.remat else Block


def _pad(x: jax.Array, extra: list[int], fill: Float[Array, "c"]) -> jax.Array:
    for axis, n in zip((1, 2), extra, strict=True):
        shape = (*x.shape[:axis], n, *x.shape[axis + 1 :])
        x = jnp.concatenate([x, jnp.broadcast_to(fill[None, None, None], shape)], axis)
    return x


def _windows(x: Float[Array, "b h w c"], side: tuple[int, int]) -> Float[Array, "n sh sw c"]:
    b, h, w, c = x.shape
    x = x.reshape(b, h // side[0], side[0], w // side[1], side[1], c)
    return jnp.swapaxes(x, 2, 3).reshape(-1, *side, c)


def _grid(x: Float[Array, "n sh sw c"], shape: tuple[int, int, int]) -> Float[Array, "b h w c"]:
    b, h, w = shape
    _, sh, sw, c = x.shape
    x = x.reshape(b, h // sh, w // sw, sh, sw, c)
    return jnp.swapaxes(x, 2, 3).reshape(b, h, w, c)


def _relative(table: Float[Array, "t d"], n: int) -> Float[Array, "n n d"]:
    """Row (i, j) is the embedding of the distance from key j to query i."""
    return table[np.arange(n)[:, None] - np.arange(n)[None, :] + n - 1]


def period(options: SamOptions) -> int:
    """Blocks after which the pattern of windowed and global attention repeats; the depth where it never does."""
    pattern = [i in options.global_blocks for i in range(options.depth)]
    lengths = (p for p in range(1, options.depth) if options.depth % p == 0)
    return next((p for p in lengths if pattern == pattern[:p] * (options.depth // p)), options.depth)


def stack_blocks(encoder: dict, period: int) -> dict:
    """Encoder parameters (or LoRA) of separate blocks -> those of a scanned encoder."""
    blocks = [encoder[f"blocks_{i}"] for i in range(sum(name.startswith("blocks_") for name in encoder))]
    rest = {name: tree for name, tree in encoder.items() if not name.startswith("blocks_")}
    stacked = {
        f"blocks_{j}": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks[j::period]) for j in range(period)
    }
    return rest | {"periods": stacked}


def unstack_blocks(encoder: dict) -> dict:
    """The inverse of `stack_blocks`."""
    periods = encoder["periods"]
    rest = {name: tree for name, tree in encoder.items() if name != "periods"}
    count = len(jax.tree.leaves(periods)[0])
    for n in range(count):
        for j in range(len(periods)):
            rest[f"blocks_{n * len(periods) + j}"] = jax.tree.map(lambda leaf, n=n: leaf[n], periods[f"blocks_{j}"])
    return rest
