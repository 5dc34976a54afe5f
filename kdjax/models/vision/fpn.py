"""A segmenter on a plain ViT: four of its maps, made a pyramid, meet in a feature pyramid network (arXiv 1612.03144).

Module names follow TinyUSFM's: `neck/projections_2`, `decode_head/fpn_convs_0_1` (its BatchNorm).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.config import ConfigError
from kdjax.models.inputs import ImageInput
from kdjax.models.layers.batch_norm import BatchNorm
from kdjax.models.layers.conv1x1 import Conv1x1
from kdjax.models.layers.resize import resize
from kdjax.models.vision import vit
from kdjax.models.vision.vit import Vit

SCALES = (4.0, 2.0, 1.0, 0.5)  # of the neck's four maps, relative to the grid of patches


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(vit.Options):
    """Those of the ViT and of the segmenter on it, which reads the blocks of `taps`."""

    dropout: float = 0.1  # of whole channels, before the last convolution
    neck_dim: int = 48
    head_dim: int = 128

    def faults(self) -> list[str]:
        faults = vit.Options.faults(self)
        if not 0 <= self.dropout < 1:
            faults.append(f"dropout: expected a rate in [0, 1), found {self.dropout}")
        return faults


class Segmenter(nn.Module):
    """Image -> a map per class; of two classes the foreground alone.

    Endpoints: `logits` [b, h, w, k] at the input's size, k = 1 for two classes; `fused` [b, 4 gh, 4 gw, head_dim],
    what the last convolution reads; `neck_0` .. `neck_3` [b, s gh, s gw, neck_dim] with s = 4, 2, 1, 1/2; and the
    backbone's `tokens`, `features`, `block_i`.
    """

    options: Options
    num_classes: int = 2

    @property
    def endpoints(self) -> tuple[str, ...]:
        necks = tuple(f"neck_{i}" for i in range(len(SCALES)))
        return ("logits", "fused", *necks, "tokens", "features", *(f"block_{i}" for i in self.options.taps))

    @property
    def inputs(self) -> dict[str, ImageInput]:
        return self.options.inputs

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], train: bool = False) -> dict[str, Array]:
        o = self.options
        # The encoder's final norm is in the checkpoints, but the maps are read before it.
        out = Vit(o, name="backbone")(image, train)
        maps = Neck(o, name="neck")([out[f"block_{i}"] for i in o.taps])
        k = 1 if self.num_classes == 2 else self.num_classes
        logits, fused = DecodeHead(o, k, name="decode_head")(maps, train)
        necks = {f"neck_{i}": x for i, x in enumerate(maps)}
        return {**out, **necks, "fused": fused, "logits": resize(logits, o.image_hw)}


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
            levels[i - 1] += resize(levels[i], levels[i - 1].shape[1:3])
        levels = [self.conv_bn_relu(fpn, x, f"fpn_convs_{i}", train) for i, x in enumerate(levels)]
        fused = reduce(jnp.add, [resize(x, levels[0].shape[1:3]) for x in levels])
        x = nn.Dropout(o.dropout, broadcast_dims=(1, 2), deterministic=not train)(fused)
        return Conv1x1(self.out, o.dtype, name="conv_seg")(x), fused

    def conv_bn_relu(
        self, conv: Callable[..., nn.Module], x: Float[Array, "b h w c"], name: str, train: bool
    ) -> Float[Array, "b h w d"]:
        x = conv(name=f"{name}_0")(x)
        return nn.relu(BatchNorm(self.options.dtype, name=f"{name}_1")(x, train))


def scaled(x: Float[Array, "b h w c"], scale: float) -> Float[Array, "b _ _ c"]:
    """Bilinear by a factor, half-pixel centres, no antialiasing: torch's `interpolate(scale_factor=...)`."""
    h, w = x.shape[1:3]
    if scale >= 1:
        return resize(x, (int(h * scale), int(w * scale)))
    # 0.5 samples midway between pairs of pixels; of an odd side it leaves the last pixel out
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    return x.reshape(len(x), h // 2, 2, w // 2, 2, -1).mean(axis=(2, 4))


def segmenter(options: Options, num_classes: int) -> Segmenter:
    """`num_classes` counts the background."""
    faults = []
    if num_classes < 2:
        faults.append(f"num_classes counts the background, so it is at least 2; found {num_classes}")
    if len(options.taps) != len(SCALES):
        faults.append(f"taps: the segmenter reads {len(SCALES)} blocks, found {options.taps}")
    if min(options.grid) < 2:  # half of it would be nothing
        faults.append(
            f"image_size: expected at least two patches of {options.patch_size} a side, found {options.image_size}"
        )
    if faults:
        raise ConfigError(f"{options.family} cannot be built:\n  " + "\n  ".join(faults))
    return Segmenter(options, num_classes)
