"""What a SAM can be built with, and the variants that have names."""

from dataclasses import dataclass
from typing import Any, ClassVar

from kdjax.models.inputs import PatchOptions

MEAN = (123.675 / 255, 116.28 / 255, 103.53 / 255)
STD = (58.395 / 255, 57.12 / 255, 57.375 / 255)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamOptions(PatchOptions):
    """The dimensions of a SAM and how it computes; the defaults are those of every published variant."""

    family: ClassVar[str] = "SAM"

    dim: int  # width of the image encoder
    depth: int
    heads: int
    global_blocks: tuple[int, ...]  # the blocks that attend to the whole image; the others stay within a window
    image_size: int | tuple[int, int] = 1024  # pixels, (height, width) where they differ
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    window: int = 14  # side in patches
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6  # of the image encoder's blocks
    embed_dim: int = 256  # channels of the image embeddings, prompts and mask tokens
    mask_channels: int = 16  # hidden channels of the mask prompt's encoder
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048
    decoder_norm_eps: float = 1e-5  # of its layers; Hugging Face's SAM has 1e-6
    iou_dim: int = 256  # hidden width of the head that predicts each mask's IoU
    dtype: Any = "float32"  # of the computation; parameters stay float32
    # Recompute each encoder block in the backward pass: less memory, more time. On a CPU only together with scan, for
    # XLA merges the two computations of a block there that are not in loops of their own.
    remat: bool = False
    scan: bool = False  # compile one period of the encoder blocks and loop over it; renames them (ImageEncoder)

    def faults(self) -> list[str]:
        faults = PatchOptions.faults(self)  # super() does not know a class that was made anew for its slots
        if self.heads < 1 or self.dim % self.heads:
            faults.append(f"heads: expected a divisor of dim {self.dim}, found {self.heads}")
        if self.embed_dim % (2 * self.decoder_heads) or self.embed_dim % 8:
            # the decoder halves its width in cross-attention and divides it by 8 where it upscales
            faults.append(f"embed_dim: expected a multiple of 8 and of 2 * decoder_heads, found {self.embed_dim}")
        if any(not 0 <= i < self.depth for i in self.global_blocks):
            faults.append(f"global_blocks: expected block numbers below depth {self.depth}, found {self.global_blocks}")
        return faults


VARIANTS: dict[str, dict[str, Any]] = {
    "vit_t": {  # ours, to train from nothing on a CPU
        "dim": 128,
        "depth": 4,
        "heads": 4,
        "global_blocks": (1, 3),
        "image_size": 128,
        "patch_size": 8,
        "window": 8,
        "embed_dim": 64,
        "mask_channels": 8,
        "decoder_heads": 4,
        "decoder_mlp_dim": 256,
        "iou_dim": 64,
    },
    "vit_b": {"dim": 768, "depth": 12, "heads": 12, "global_blocks": (2, 5, 8, 11)},
    "vit_l": {"dim": 1024, "depth": 24, "heads": 16, "global_blocks": (5, 11, 17, 23)},
    "vit_h": {"dim": 1280, "depth": 32, "heads": 16, "global_blocks": (7, 15, 23, 31)},
}
