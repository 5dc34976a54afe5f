"""SAM as transformers computes it."""

from pathlib import Path

import numpy as np
import torch

from convert.config_json import Config
from convert.originals.transformers_config import described, from_config
from kdjax import registry
from kdjax.config import ConfigError, Model


def build(model: Model, source: Config | None = None) -> torch.nn.Module:
    """The whole of SAM; for `sam_seg`, with a mask token for each class. It is built as `source` describes it, where
    there is one, at our model's image size."""
    o = registry.get("models", model.name)(**model.options).options
    if o.grid[0] != o.grid[1]:
        raise ConfigError(f"transformers builds SAM for square images alone, found image_size {o.image_hw}")
    values = (source or guess(model)).values
    parts = {name: values.get(name) or {} for name in ("vision_config", "prompt_encoder_config")}
    own = {name: {**part, "image_size": o.image_hw[0]} for name, part in parts.items()}
    return from_config("AutoModel", described(source or guess(model), own))


def guess(model: Model) -> Config:
    """As a config.json would describe our model."""
    ours = registry.get("models", model.name)(**model.options)
    o, masks = ours.options, getattr(ours, "num_classes", 4)
    vision = {
        "patch_size": o.patch_size,
        "hidden_size": o.dim,
        "output_channels": o.embed_dim,
        "num_hidden_layers": o.depth,
        "num_attention_heads": o.heads,
        "mlp_ratio": o.mlp_ratio,
        "window_size": o.window,
        "global_attn_indexes": list(o.global_blocks),
        "num_pos_feats": o.embed_dim // 2,
        "layer_norm_eps": o.norm_eps,
    }
    prompts = {"patch_size": o.patch_size, "hidden_size": o.embed_dim, "mask_input_channels": o.mask_channels}
    decoder = {
        "hidden_size": o.embed_dim,
        "mlp_dim": o.decoder_mlp_dim,
        "num_hidden_layers": o.decoder_depth,
        "num_attention_heads": o.decoder_heads,
        "num_multimask_outputs": masks - 1,
        "iou_head_hidden_dim": o.iou_dim,
        "layer_norm_eps": o.decoder_norm_eps,
    }
    parts = {"vision_config": vision, "prompt_encoder_config": prompts, "mask_decoder_config": decoder}
    return Config(Path("our model"), {"model_type": "sam", **parts})


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
