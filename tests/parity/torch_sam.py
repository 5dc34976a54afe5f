"""The original SAM at any dimensions, with weights that leave nothing at zero."""

import importlib
import importlib.util
import sys
from functools import partial

import torch

from kdjax.models.sam import MEAN, STD, SamOptions


def modeling():
    """segment_anything's models alone: importing the whole package would need torchvision as well."""
    if "segment_anything" not in sys.modules:
        spec = importlib.util.find_spec("segment_anything")
        assert spec is not None
        sys.modules["segment_anything"] = importlib.util.module_from_spec(spec)
    return importlib.import_module("segment_anything.modeling")


def original(options: SamOptions, masks: int = 4, seed: int = 0) -> torch.nn.Module:
    """segment_anything's Sam built like `options`, in eval mode."""
    original, o = modeling(), options
    torch.manual_seed(seed)
    sam = original.Sam(
        image_encoder=original.ImageEncoderViT(
            img_size=max(o.image_hw),
            patch_size=o.patch_size,
            embed_dim=o.dim,
            depth=o.depth,
            num_heads=o.heads,
            mlp_ratio=o.mlp_ratio,
            out_chans=o.embed_dim,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=o.window,
            global_attn_indexes=o.global_blocks,
        ),
        prompt_encoder=original.PromptEncoder(o.embed_dim, o.grid, o.image_hw, o.mask_channels),
        mask_decoder=original.MaskDecoder(
            transformer_dim=o.embed_dim,
            transformer=original.TwoWayTransformer(o.decoder_depth, o.embed_dim, o.decoder_heads, o.decoder_mlp_dim),
            num_multimask_outputs=masks - 1,
            iou_head_hidden_dim=o.iou_dim,
        ),
        pixel_mean=[255 * x for x in MEAN],
        pixel_std=[255 * x for x in STD],
    ).eval()
    if o.grid[0] != o.grid[1]:  # the original builds squares only, but computes with whatever its tables are
        encoder = sam.image_encoder
        encoder.pos_embed = torch.nn.Parameter(torch.zeros(1, *o.grid, o.dim))
        for i in o.global_blocks:
            for name, n in zip(("rel_pos_h", "rel_pos_w"), o.grid, strict=True):
                setattr(encoder.blocks[i].attn, name, torch.nn.Parameter(torch.zeros(2 * n - 1, o.dim // o.heads)))
    for name, parameter in sam.named_parameters():
        if parameter.ndim < 2:  # norms around one, biases around zero
            torch.nn.init.normal_(parameter, float(name.endswith("weight")), 0.2)
        elif "pos" in name:
            torch.nn.init.normal_(parameter, 0.0, 0.3)
    return sam
