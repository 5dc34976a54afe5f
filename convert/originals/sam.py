"""SAM as segment_anything computes it."""

import importlib
import importlib.util
import sys
from functools import partial

import numpy as np
import torch

from kdjax import registry
from kdjax.config import Model
from kdjax.models.vision.sam import MEAN, STD, SamOptions


def modeling():
    """segment_anything's models alone: importing the whole package would need torchvision as well."""
    if "segment_anything" not in sys.modules:
        spec = importlib.util.find_spec("segment_anything")
        if spec is None:
            raise ModuleNotFoundError("segment_anything is not installed: pip install segment-anything")
        sys.modules["segment_anything"] = importlib.util.module_from_spec(spec)
    return importlib.import_module("segment_anything.modeling")


def build(model: Model) -> torch.nn.Module:
    """The whole of SAM; for `sam_seg`, with a mask token for each class."""
    ours = registry.get("models", model.name)(**model.options)
    return build_like(ours.options, getattr(ours, "num_classes", 4))


def build_like(options: SamOptions, masks: int = 4) -> torch.nn.Module:
    """In eval mode. Tables of positions are as large as the grid, which may have two sides."""
    original, o = modeling(), options
    whole = original.Sam(
        image_encoder=original.ImageEncoderViT(
            img_size=max(o.image_hw),
            patch_size=o.patch_size,
            embed_dim=o.dim,
            depth=o.depth,
            num_heads=o.heads,
            mlp_ratio=o.mlp_ratio,
            out_chans=o.embed_dim,
            norm_layer=partial(torch.nn.LayerNorm, eps=o.norm_eps),
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
    for layer in whole.mask_decoder.transformer.layers:
        for norm in (layer.norm1, layer.norm2, layer.norm3, layer.norm4):
            norm.eps = o.decoder_norm_eps
    if o.grid[0] != o.grid[1]:  # the original builds squares only, but computes with whatever its tables are
        encoder = whole.image_encoder
        encoder.pos_embed = torch.nn.Parameter(torch.zeros(1, *o.grid, o.dim))
        for i in o.global_blocks:
            for name, n in zip(("rel_pos_h", "rel_pos_w"), o.grid, strict=True):
                setattr(encoder.blocks[i].attn, name, torch.nn.Parameter(torch.zeros(2 * n - 1, o.dim // o.heads)))
    return whole


def outputs(module: torch.nn.Module, image: np.ndarray) -> dict[str, np.ndarray]:
    """The endpoints of our models for a normalised image [1, h, w, 3] without prompts, channels last."""
    embeddings = module.image_encoder(torch.from_numpy(np.moveaxis(image, -1, 1).copy()))
    sparse, dense = module.prompt_encoder(None, None, None)
    positions = dense_positions(module.prompt_encoder)
    masks, iou = module.mask_decoder.predict_masks(embeddings, positions, sparse, dense)
    count = masks.shape[1]
    keep = slice(1, 4) if count == 4 else slice(0, 1) if count == 2 else slice(None)
    last = lambda x: np.moveaxis(x.numpy(), 1, -1)  # noqa: E731
    return {
        "image_embeddings": last(embeddings),
        "low_res_logits": last(masks[:, keep]),
        "iou_predictions": iou[:, keep].numpy(),
    }


def dense_positions(prompts: torch.nn.Module) -> torch.Tensor:
    """As `get_dense_pe`, whose grid is in float32, also of a model in float64."""
    matrix = prompts.pe_layer.positional_encoding_gaussian_matrix
    rows, columns = ((torch.arange(n, dtype=matrix.dtype) + 0.5) / n for n in prompts.image_embedding_size)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return prompts.pe_layer._pe_encoding(torch.stack([x, y], dim=-1)).permute(2, 0, 1)[None]
