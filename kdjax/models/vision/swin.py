"""Swin transformers, version 2 (Liu et al., arXiv 2111.09883): attention in windows, which every second block shifts.

Module names follow timm's: `patch_embed/proj`, `layers_2/blocks_0/attn/cpb_mlp_0`, `layers_1/downsample/reduction`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kdjax.config import ConfigError
from kdjax.models.inputs import ImageInput, PatchOptions
from kdjax.models.layers.activation import ACTIVATIONS, activation_faults
from kdjax.models.layers.dense import dense
from kdjax.models.layers.droppath import drop_path
from kdjax.models.layers.precision import at_least_float32
from kdjax.models.layers.windows import Windows, cosine_attention, cut, joined, relative
from kdjax.models.options import options_of

_T: dict[str, Any] = {"dim": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24), "window": 8, "image_size": 256}
_S = _T | {"depths": (2, 2, 18, 2)}
_B = _S | {"dim": 128, "heads": (4, 8, 16, 32)}
_L = _S | {"dim": 192, "heads": (6, 12, 24, 48), "window": 12, "image_size": 192}  # published with 22,000 classes alone

VARIANTS: dict[str, dict[str, Any]] = {"tiny": _T, "small": _S, "base": _B, "large": _L}

# Parameters with 1000 classes, as published; windows and image sizes change nothing.
PARAMETERS = {"tiny": 28_347_154, "small": 49_728_418, "base": 87_918_816, "large": 196_739_932}

CPB = 512  # hidden units of the network that makes biases of positions
NEAREST = 8.0  # relative positions go to ± 8 before their logarithm is taken, to base 8
STEEPEST = 100.0  # that cosines are multiplied by


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(PatchOptions):
    """The dimensions of a Swin-V2, a value per stage where they are tuples, and how it computes."""

    family: ClassVar[str] = "Swin-V2"

    image_size: int | tuple[int, int] = 256
    patch_size: int = 4
    dim: int  # width of the first stage; each further one has twice as many channels on half as many rows and columns
    depths: tuple[int, ...]  # blocks
    heads: tuple[int, ...]
    window: int  # positions a side; where a map is smaller, it is the window
    # What the windows were when the biases of positions were learned, where they are others now; 0: as now.
    pretrained_windows: tuple[int, ...] = ()
    pad_windows: bool = False  # maps that no whole number of windows covers are padded, as transformers does
    mlp_ratio: float = 4.0
    activation: str = "gelu"  # of the MLPs
    mask: float = (
        100.0  # is taken from scores of positions that no window has side by side; transformers takes it twice
    )
    drop_path: float = 0.1  # the last block's chance to be skipped; it grows linearly from 0 at the first
    dtype: Any = "float32"  # of the computation; parameters stay float32
    remat: bool = False  # recompute each block in the backward pass: less memory, more time

    def faults(self) -> list[str]:
        faults = PatchOptions.faults(self)  # super() does not know a class that was made anew for its slots
        n = len(self.depths)
        for name in ("depths", "heads"):
            sizes = getattr(self, name)
            if not sizes or len(sizes) != n or min(sizes) < 1:
                faults.append(f"{name}: expected a positive number per stage, {max(1, n)} as in depths, found {sizes}")
        if not faults and any(self.width(i) % heads for i, heads in enumerate(self.heads)):
            widths = tuple(map(self.width, range(n)))
            faults.append(f"heads: expected divisors of the stages' widths {widths}, found {self.heads}")
        if len(self.pretrained_windows) not in (0, n):
            faults.append(f"pretrained_windows: expected a number per stage or none, found {self.pretrained_windows}")
        if not 0 <= self.drop_path < 1:
            faults.append(f"drop_path: expected a rate in [0, 1), found {self.drop_path}")
        return faults + activation_faults(self.activation) or self.window_faults()

    def window_faults(self) -> list[str]:
        """Of each stage whose map is no whole number of windows."""
        if self.pad_windows:
            return []
        cut = {i: self.windows(i) for i in range(len(self.depths))}
        odd = [f"stage {i} has a map of {w.map}" for i, w in cut.items() if w.padding != (0, 0)]
        if not odd:
            return []
        step = self.patch_size * 2 ** (len(self.depths) - 1)
        return [
            f"window: expected a divisor of every map that it does not cover, found {self.window}, and "
            f"{', '.join(odd)}: build it for an image_size of which {self.window} x {step} = {self.window * step} is a "
            "divisor, with another window, or with pad_windows=True, as transformers pads"
        ]

    def width(self, stage: int) -> int:
        return self.dim * 2**stage

    def windows(self, stage: int, shifted: bool = False) -> Windows:
        """How the map of a stage is cut; one that is a window itself is not shifted along that axis."""
        h, w = (-(-side // 2**stage) for side in self.grid)
        return Windows.of((h, w), self.window, shifted)


class Swin(nn.Module):
    """Image -> a map per stage, and their mean.

    Endpoints: `stage_i` [b, h/s, w/s, dim 2^i] with s = 4, 8, 16, 32 where `patch_size` is 4, sizes rounded up, after
    each stage's blocks; `features` [b, d], the mean of the last one after `norm`. With `num_classes` also
    `logits` [b, k].
    """

    options: Options
    num_classes: int = 0

    @property
    def endpoints(self) -> tuple[str, ...]:
        stages = (f"stage_{i}" for i in range(len(self.options.depths)))
        return (*(("logits",) if self.num_classes else ()), "features", *stages)

    @property
    def inputs(self) -> dict[str, ImageInput]:
        return self.options.inputs

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], train: bool = False) -> dict[str, Array]:
        o = self.options
        o.check(image)
        x, out = PatchEmbed(o, name="patch_embed")(image), {}
        for i in range(len(o.depths)):
            x = out[f"stage_{i}"] = Stage(o, i, train, name=f"layers_{i}")(x)
        out["features"] = _norm(o, "norm")(x).mean((1, 2))
        if self.num_classes:
            out["logits"] = _dense(o, self.num_classes, "head")(out["features"])
        return out


class PatchEmbed(nn.Module):
    options: Options

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b _ _ d"]:
        o = self.options
        patch = (o.patch_size, o.patch_size)
        return _norm(o, "norm")(nn.Conv(o.dim, patch, patch, "VALID", dtype=o.dtype, name="proj")(image))


class Stage(nn.Module):
    options: Options
    stage: int
    train: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ d"]:
        o, i = self.options, self.stage
        if i:
            x = PatchMerging(o, name="downsample")(x)
        block = nn.remat(Block) if o.remat else Block
        for j in range(o.depths[i]):
            rate = o.drop_path * (sum(o.depths[:i]) + j) / max(1, sum(o.depths) - 1)
            x = block(o, i, j % 2 == 1, rate if self.train else 0.0, name=f"blocks_{j}")(x)
        return x


class PatchMerging(nn.Module):
    """Four neighbours become one position of twice the width; zeros lie beyond an odd edge."""

    options: Options

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ d"]:
        b, h, w, c = x.shape
        x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0))) if h % 2 or w % 2 else x
        x = x.reshape(b, -(-h // 2), 2, -(-w // 2), 2, c).transpose(0, 1, 3, 4, 2, 5)  # down before across
        x = _dense(self.options, 2 * c, "reduction", use_bias=False)(x.reshape(*x.shape[:3], 4 * c))
        return _norm(self.options, "norm")(x)


class Block(nn.Module):
    """Both branches are normalised behind, by norms that start from 0: at first the block does nothing."""

    options: Options
    stage: int
    shifted: bool
    rate: float  # the chance of each branch to be left out; above 0 in training alone

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        o, zeros = self.options, nn.initializers.zeros
        y = Attention(o, self.stage, self.shifted, name="attn")(x)
        x = x + self.drop_path(_norm(o, "norm1", scale_init=zeros)(y))
        return x + self.drop_path(_norm(o, "norm2", scale_init=zeros)(Mlp(o, name="mlp")(x)))

    def drop_path(self, branch: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return drop_path(branch, self.rate, self.make_rng("dropout")) if self.rate else branch


class Attention(nn.Module):
    """Cosines of queries and keys, each head with a scale of its own, and a bias made of their relative position."""

    options: Options
    stage: int
    shifted: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        o, c = self.options, x.shape[-1]
        heads, windows = o.heads[self.stage], o.windows(self.stage, self.shifted)
        scale = self.param("logit_scale", nn.initializers.constant(np.log(10)), (heads, 1, 1))
        q_bias, v_bias = (self.param(name, nn.initializers.zeros, (c,)) for name in ("q_bias", "v_bias"))
        y = cut(x, windows)
        qkv = _dense(o, 3 * c, "qkv", use_bias=False)(y)
        qkv += jnp.concatenate([q_bias, jnp.zeros_like(q_bias), v_bias])[None, None].astype(qkv.dtype)
        steep = jnp.exp(jnp.minimum(at_least_float32(scale), np.log(STEEPEST)))
        apart = None if windows.shift == (0, 0) else o.mask * windows.apart()
        qkv = qkv.reshape(*y.shape[:2], 3, heads, c // heads)
        y = cosine_attention(qkv, steep[:, 0, 0], self.bias(windows), apart, examples=len(x))
        return joined(_dense(o, c, "proj")(y.reshape(*y.shape[:2], c)), windows, x.shape[1:3])

    def bias(self, windows: Windows) -> Float[Array, "heads n n"]:
        """16 σ of a small network's answer to log-spaced relative positions."""
        o = self.options
        before = (o.pretrained_windows or (0,) * len(o.depths))[self.stage]
        x = jnp.asarray(positions(windows.size, (before, before) if before else windows.size), o.dtype)
        x = nn.relu(nn.Dense(CPB, dtype=o.dtype, name="cpb_mlp_0")(x))
        x = nn.Dense(o.heads[self.stage], use_bias=False, dtype=o.dtype, name="cpb_mlp_2")(x)
        return relative(16 * nn.sigmoid(at_least_float32(x)), windows.size)


class Mlp(nn.Module):
    options: Options

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        o, c = self.options, x.shape[-1]
        y = ACTIVATIONS[o.activation](_dense(o, int(c * o.mlp_ratio), "fc1")(x))
        return _dense(o, c, "fc2")(y)


def positions(window: tuple[int, int], pretrained: tuple[int, int]) -> Float[np.ndarray, "th tw 2"]:
    """All 2h - 1 × 2w - 1 steps from a key of the window to a query: sign(x) log₂(1 + 8 |x| / (p - 1)) / log₂ 8."""
    steps = [8 * np.arange(1 - n, n) / max(1, p - 1) for n, p in zip(window, pretrained, strict=True)]
    spaced = [np.sign(x) * np.log2(1 + np.abs(x)) / 3 for x in steps]
    return np.stack(np.meshgrid(*spaced, indexing="ij"), axis=-1)


def _norm(o: Options, name: str, **options: Any) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-5, dtype=o.dtype, name=name, **options)


def _dense(o: Options, features: int, name: str, use_bias: bool = True) -> nn.Dense:
    return dense(
        features, use_bias=use_bias, dtype=o.dtype, kernel_init=nn.initializers.truncated_normal(0.02), name=name
    )


def build_swinv2(variant: str = "tiny", num_classes: int = 1000, **overrides) -> Swin:
    """Without classes, features alone; `overrides` are fields of Options."""
    if num_classes < 0:
        raise ConfigError(f"num_classes: expected at least 0, for features alone, found {num_classes}")
    return Swin(options_of(Options, "Swin-V2", VARIANTS, variant, overrides), num_classes)
