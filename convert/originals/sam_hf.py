"""SAM as transformers computes it."""

import numpy as np
import torch

from kdjax import registry
from kdjax.config import ConfigError, Model


def build(model: Model) -> torch.nn.Module:
    """The whole of SAM; for `sam_seg`, with a mask token for each class."""
    from transformers import SamConfig, SamModel

    ours = registry.get("models", model.name)(**model.options)
    o, masks = ours.options, getattr(ours, "num_classes", 4)
    if o.grid[0] != o.grid[1]:
        raise ConfigError(f"transformers builds SAM for square images alone, found image_size {o.image_hw}")
    size = {"image_size": o.image_hw[0], "patch_size": o.patch_size}
    vision = {
        "hidden_size": o.dim,
        "output_channels": o.embed_dim,
        "num_hidden_layers": o.depth,
        "num_attention_heads": o.heads,
        "mlp_ratio": o.mlp_ratio,
        "window_size": o.window,
        "global_attn_indexes": list(o.global_blocks),
        "num_pos_feats": o.embed_dim // 2,
    }
    prompts = {"hidden_size": o.embed_dim, "mask_input_channels": o.mask_channels}
    decoder = {
        "hidden_size": o.embed_dim,
        "mlp_dim": o.decoder_mlp_dim,
        "num_hidden_layers": o.decoder_depth,
        "num_attention_heads": o.decoder_heads,
        "num_multimask_outputs": masks - 1,
        "iou_head_hidden_dim": o.iou_dim,
        "layer_norm_eps": 1e-5,  # as the weights were trained; transformers would have taken 1e-6
    }
    config = SamConfig(vision_config=vision | size, prompt_encoder_config=prompts | size, mask_decoder_config=decoder)
    return SamModel(config).eval()


def outputs(module: torch.nn.Module, image: np.ndarray) -> dict[str, np.ndarray]:
    """The endpoints of our models for a normalised image [1, h, w, 3] without prompts, channels last."""
    embeddings = module.get_image_embeddings(torch.from_numpy(np.moveaxis(image, -1, 1).copy()))
    _, dense = module.prompt_encoder(None, None, None, None)
    positions = module.get_image_wide_positional_embeddings()
    # Each call answers some of the masks: the first one, or all others.
    clear, others = (module.mask_decoder(embeddings, positions, None, dense, many)[:2] for many in (False, True))
    found = {2: (clear,), 4: (others,)}.get(module.mask_decoder.num_mask_tokens, (clear, others))
    masks, iou = (torch.cat(parts, dim=2) for parts in zip(*found, strict=True))
    last = lambda x: np.moveaxis(x.numpy(), 1, -1)  # noqa: E731
    return {
        "image_embeddings": last(embeddings),
        "low_res_logits": last(masks[:, 0]),
        "iou_predictions": iou[:, 0].numpy(),
    }
