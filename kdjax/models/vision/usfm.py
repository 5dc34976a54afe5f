"""USFM (Jiao et al., Medical Image Analysis 96, 2024): a foundation model for ultrasound images, a BEiT-like ViT-B/16.

Module names follow the original's: `blocks_3/attn/q_bias`, `blocks_3/attn/relative_position_bias_table`,
`blocks_3/gamma_1`. There are no absolute positions; the tables' sizes depend on the image's.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from kdjax.config import ConfigError
from kdjax.models.options import options_of
from kdjax.models.vision import fpn
from kdjax.models.vision.vit import Vit

VARIANTS: dict[str, dict[str, Any]] = {
    "base": {"dim": 768, "depth": 12, "heads": 12, "taps": (3, 5, 7, 11)},
}

# Parameters at 224 pixels: the encoder with its norm, and the segmenter of two classes.
PARAMETERS = {"base": (85_761_984, 86_527_233)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(fpn.Options):
    """The dimensions of a USFM and how it computes; the defaults are those of the published variant."""

    family: ClassVar[str] = "USFM"

    relative: bool = True
    layer_scale: float = 0.1
    pool: str = "fc_norm"
    drop_path: float = 0.1


def build_usfm(variant: str = "base", **overrides) -> Vit:
    """The encoder; `overrides` are fields of Options."""
    return Vit(_options(variant, overrides))


def build_usfm_cls(variant: str = "base", num_classes: int = 2, **overrides) -> Vit:
    """`overrides` are fields of Options."""
    if num_classes < 2:
        raise ConfigError(f"num_classes: expected at least 2, found {num_classes}")
    return Vit(_options(variant, overrides), num_classes)


def build_usfm_seg(variant: str = "base", num_classes: int = 2, **overrides) -> fpn.Segmenter:
    """USFM under TinyUSFM's neck and head, which is ours: teacher and student then have the same endpoints.

    `num_classes` counts the background; `overrides` are fields of Options.
    """
    return fpn.segmenter(_options(variant, overrides), num_classes)


def _options(variant: str, overrides: dict[str, Any]) -> Options:
    return options_of(Options, "USFM", VARIANTS, variant, overrides)
