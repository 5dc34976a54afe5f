"""DINOv2 as transformers computes it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from convert.config_json import THEIRS, Config
from convert.families.dinov2_hf import in_files
from convert.originals.transformers_config import described, from_config, named_as_in_files
from convert.originals.vit import refuse_merging
from kdjax import registry
from kdjax.config import Model


def build(model: Model, source: Config | None = None) -> torch.nn.Module:
    """Its state dict has the names that are in files. It is built as `source` describes it, where there is one, at our
    model's image size, whose positions it takes as they are: it would resize those of a square."""
    ours = registry.get("models", model.name)(**model.options)
    o = ours.options
    refuse_merging(o)
    own = {"image_size": o.image_hw} if o.registers else {"image_size": o.image_hw, "use_mask_token": True}
    settings = described(source or guess(ours), own)
    settings.taps = list(o.taps)
    settings.mean_too = o.pool == "token_mean"
    module = from_config("AutoModelForImageClassification" if ours.num_classes else "AutoModel", settings)
    embeddings = base(module).embeddings
    embeddings.interpolate_pos_encoding = lambda *grid: embeddings.position_embeddings
    return named_as_in_files(module, in_files)


def guess(ours: Any) -> Config:
    """As a config.json would describe our model."""
    o = ours.options
    values = {
        "model_type": "dinov2_with_registers" if o.registers else "dinov2",
        "hidden_size": o.dim,
        "num_hidden_layers": o.depth,
        "num_attention_heads": o.heads,
        "mlp_ratio": int(o.mlp_ratio) if o.mlp_ratio == int(o.mlp_ratio) else o.mlp_ratio,  # it takes no 4.0
        "hidden_act": THEIRS[o.activation],
        "patch_size": o.patch_size,
        "qkv_bias": o.qkv_bias,
        "layer_norm_eps": o.norm_eps,
        "num_labels": ours.num_classes,
    }
    return Config(Path("our model"), values | ({"num_register_tokens": o.registers} if o.registers else {}))


def base(module: Any) -> Any:
    """The encoder of a classifier; itself where there is none."""
    return getattr(module, module.base_model_prefix, module)


def outputs(module: Any, image: np.ndarray) -> dict[str, np.ndarray]:
    """The endpoints of our models for normalised images [b, h, w, 3], channels last."""
    pixels = torch.from_numpy(np.moveaxis(image, -1, 1).copy())
    settings, states = module.config, module(pixels, output_hidden_states=True)
    first = 1 + getattr(settings, "num_register_tokens", 0)
    grid = (image.shape[1] // settings.patch_size, image.shape[2] // settings.patch_size)
    found = {f"block_{i}": states.hidden_states[i + 1][:, first:].unflatten(1, grid) for i in settings.taps}
    tokens = base(module)(pixels).last_hidden_state
    mean = [tokens[:, first:].mean(dim=1)] if settings.mean_too else []
    found |= {"tokens": tokens, "features": torch.cat([tokens[:, 0], *mean], dim=1)}
    if "logits" in states:
        found["logits"] = states.logits
    return {name: x.numpy() for name, x in found.items()}
