"""TinyUSFM (arXiv 2510.19239): a small ViT for ultrasound images, plain, as a classifier and as a segmenter.

Module names follow the original's: `backbone/blocks_3/attn/qkv`, `decode_head/fpn_convs_0_1` (its BatchNorm).
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from kdjax.config import ConfigError
from kdjax.models.inputs import ImageInput
from kdjax.models.options import options_of
from kdjax.models.vision import fpn
from kdjax.models.vision.vit import Vit

VARIANTS: dict[str, dict[str, Any]] = {
    "tiny": {"dim": 192, "depth": 12, "heads": 12, "taps": (3, 5, 7, 11)},
    "nano": {"dim": 96, "depth": 4, "heads": 6, "taps": (0, 1, 2, 3), "neck_dim": 24, "head_dim": 32},  # ours
}

# Parameters of the published variant at 224 pixels: the encoder with its norm, and the segmenter of two classes.
PARAMETERS = {"tiny": (5_524_416, 6_179_073)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(fpn.Options):
    """The dimensions of a TinyUSFM and how it computes; the defaults are those of the published variant."""

    family: ClassVar[str] = "TinyUSFM"

    pool: str = "mean"
    drop_path: float = 0.1


class Classifier(nn.Module):
    """Image -> one of `num_classes`. Endpoints as those of Vit; `features` [b, d] are the head's input."""

    options: Options
    num_classes: int

    @property
    def endpoints(self) -> tuple[str, ...]:
        return ("logits", "features", "tokens", *(f"block_{i}" for i in self.options.taps))

    @property
    def inputs(self) -> dict[str, ImageInput]:
        return self.options.inputs

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], train: bool = False) -> dict[str, Array]:
        return Vit(self.options, self.num_classes, name="model")(image, train)


def build_tinyusfm(variant: str = "tiny", **overrides) -> Vit:
    """The encoder; `overrides` are fields of Options."""
    return Vit(_options(variant, overrides))


def build_tinyusfm_cls(variant: str = "tiny", num_classes: int = 2, **overrides) -> Classifier:
    """`overrides` are fields of Options."""
    if num_classes < 2:
        raise ConfigError(f"num_classes: expected at least 2, found {num_classes}")
    return Classifier(_options(variant, {"pool": "fc_norm"} | overrides), num_classes)


def build_tinyusfm_seg(variant: str = "tiny", num_classes: int = 2, **overrides) -> fpn.Segmenter:
    """`num_classes` counts the background; `overrides` are fields of Options."""
    return fpn.segmenter(_options(variant, overrides), num_classes)


def _options(variant: str, overrides: dict[str, Any]) -> Options:
    return options_of(Options, "TinyUSFM", VARIANTS, variant, overrides)
