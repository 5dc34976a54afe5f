"""SAM (Kirillov et al., Segment Anything, 2023): promptable, and as a plain segmenter the way SAMed does it.

Module names follow the original's: `image_encoder/blocks_3/attn/qkv`, `mask_decoder/transformer/layers_0/mlp`.
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from kdjax.config import ConfigError
from kdjax.models.inputs import ImageInput
from kdjax.models.layers.resize import resize
from kdjax.models.options import options_of
from kdjax.models.vision.sam.image_encoder import ImageEncoder
from kdjax.models.vision.sam.mask_decoder import MaskDecoder
from kdjax.models.vision.sam.options import MEAN, STD, VARIANTS, SamOptions
from kdjax.models.vision.sam.prompt_encoder import PromptEncoder

MOST = 256  # classes of a segmenter: each has a network of its own

__all__ = ["MEAN", "PARAMETERS", "STD", "VARIANTS", "Sam", "SamOptions", "SamSegmenter", "build_sam", "build_sam_seg"]

# Parameters of the image encoder, and of all of SAM: as published, and of ours.
PARAMETERS = {
    "vit_t": (901_760, 1_094_114),
    "vit_b": (89_670_912, 93_735_472),
    "vit_l": (308_278_272, 312_342_832),
    "vit_h": (637_026_048, 641_090_608),
}


class Sam(nn.Module):
    """Image and prompts -> masks. Prompts are as in PromptEncoder; one image may have several sets of them.

    Endpoints: `low_res_logits` [p, 4 gh, 4 gw, m] with m = 3 ambiguous masks or, where not `multimask_output`, the
    one for clear prompts; `iou_predictions` [p, m]; `image_embeddings` [b, gh, gw, 256]. See `geometry` for images of
    other sizes than the model's, and for masks at theirs.
    """

    options: SamOptions

    endpoints: ClassVar[tuple[str, ...]] = ("low_res_logits", "iou_predictions", "image_embeddings")

    @property
    def inputs(self) -> dict[str, ImageInput]:
        return self.options.inputs

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "b h w 3"],
        points: tuple[Num[Array, "p n 2"], Num[Array, "p n"]] | None = None,
        boxes: Num[Array, "p 4"] | None = None,
        masks: Float[Array, "p mh mw 1"] | None = None,
        multimask_output: bool = True,
        train: bool = False,
    ) -> dict[str, Array]:
        embeddings = ImageEncoder(self.options, name="image_encoder")(image)
        prompts, dense, positions = PromptEncoder(self.options, name="prompt_encoder")(points, boxes, masks)
        b, p = len(embeddings), len(prompts)
        if b != p and 1 not in (b, p):
            raise ConfigError(f"expected a set of prompts per image, or one image, found {p} sets for {b} images")
        prompts, dense, of_each = (jnp.broadcast_to(x, (max(b, p), *x.shape[1:])) for x in (prompts, dense, embeddings))
        keep = (1, 4) if multimask_output else (0, 1)
        logits, iou = MaskDecoder(self.options, 4, name="mask_decoder")(of_each, positions, prompts, dense, keep)
        return {"low_res_logits": logits, "iou_predictions": iou, "image_embeddings": embeddings}


class SamSegmenter(nn.Module):
    """Image -> a map per class, without prompts (Zhang and Liu, SAMed, 2023).

    There are `num_classes` mask tokens, background included. Of two classes the foreground alone is answered, by token
    0; of more, every token is a class. Endpoints: `logits` [b, h, w, k] at the input's size, `low_res_logits`
    [b, 4 gh, 4 gw, k], `image_embeddings` [b, gh, gw, 256], `iou_predictions` [b, k], where k is 1 for two classes.
    """

    options: SamOptions
    num_classes: int

    endpoints: ClassVar[tuple[str, ...]] = ("logits", "low_res_logits", "image_embeddings", "iou_predictions")

    @property
    def inputs(self) -> dict[str, ImageInput]:
        return self.options.inputs

    def setup(self):
        self.image_encoder = ImageEncoder(self.options)
        self.prompt_encoder = PromptEncoder(self.options)
        self.mask_decoder = MaskDecoder(self.options, self.num_classes)

    def __call__(self, image: Float[Array, "b h w 3"], train: bool = False) -> dict[str, Array]:
        embeddings = self.image_encoder(image)
        return {**self.decode(embeddings), "image_embeddings": embeddings}

    def decode(self, embeddings: Float[Array, "b eh ew c"]) -> dict[str, Array]:
        """The mask decoder alone, on image embeddings of any grid, which may be a student's: the other endpoints."""
        embeddings = resize(embeddings, self.options.grid)
        prompts, dense, positions = self.prompt_encoder()
        prompts, dense = (jnp.broadcast_to(x, (len(embeddings), *x.shape[1:])) for x in (prompts, dense))
        keep = (0, 1 if self.num_classes == 2 else self.num_classes)
        logits, iou = self.mask_decoder(embeddings, positions, prompts, dense, keep)
        return {"logits": resize(logits, self.options.image_hw), "low_res_logits": logits, "iou_predictions": iou}


def build_sam(variant: str = "vit_b", **overrides) -> Sam:
    """`overrides` are fields of SamOptions."""
    return Sam(options_of(SamOptions, "SAM", VARIANTS, variant, overrides))


def build_sam_seg(variant: str = "vit_b", num_classes: int = 2, **overrides) -> SamSegmenter:
    """`num_classes` counts the background; `overrides` are fields of SamOptions."""
    if not 2 <= num_classes <= MOST:
        raise ConfigError(f"num_classes counts the background: expected from 2 to {MOST}, found {num_classes}")
    return SamSegmenter(options_of(SamOptions, "SAM", VARIANTS, variant, overrides), num_classes)
