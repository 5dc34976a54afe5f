"""ViT and DeiT as transformers computes them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from convert.config_json import THEIRS, Config
from convert.families.vit_hf import in_files
from convert.originals.transformers_config import described, from_config, named_as_in_files
from convert.originals.vit import refuse_merging
from kdjax import registry
from kdjax.config import ConfigError, Model


def build(model: Model, source: Config | None = None) -> torch.nn.Module:
    """Its state dict has the names that are in files, whatever the version's modules are called. It is built as
    `source` describes it, where there is one, at our model's image size."""
    ours = registry.get("models", model.name)(**model.options)
    o = ours.options
    refuse_merging(o)
    if o.pool != "token":
        raise ConfigError(f"transformers' ViT reads the class token, found pool={o.pool!r}")
    settings = described(source or guess(ours), {"image_size": o.image_hw})
    settings.taps = list(o.taps)
    if not ours.num_classes:
        module = from_config("AutoModel", settings, add_pooling_layer=False)
    else:
        kind = "DeiTForImageClassificationWithTeacher" if o.distilled else "ViTForImageClassification"
        settings.architectures = [kind]
        module = from_config("AutoModelForImageClassification", settings)
    return named_as_in_files(module, in_files)


def guess(ours: Any) -> Config:
    """As a config.json would describe our model."""
    o = ours.options
    values = {
        "model_type": "deit" if o.distilled else "vit",
        "hidden_size": o.dim,
        "num_hidden_layers": o.depth,
        "num_attention_heads": o.heads,
        "intermediate_size": int(o.dim * o.mlp_ratio),
        "hidden_act": THEIRS[o.activation],
        "patch_size": o.patch_size,
        "qkv_bias": o.qkv_bias,
        "layer_norm_eps": o.norm_eps,
        "num_labels": ours.num_classes,
    }
    return Config(Path("our model"), values)


def outputs(module: Any, image: np.ndarray) -> dict[str, np.ndarray]:
    """The endpoints of our models for normalised images [b, h, w, 3], channels last."""
    pixels = torch.from_numpy(np.moveaxis(image, -1, 1).copy())
    base = getattr(module, module.base_model_prefix, module)
    states = module(pixels, output_hidden_states=True)
    size, first = module.config.patch_size, 2 if type(base).__name__ == "DeiTModel" else 1
    grid = (image.shape[1] // size, image.shape[2] // size)
    blocks = {f"block_{i}": states.hidden_states[i + 1][:, first:].unflatten(1, grid) for i in module.config.taps}
    tokens = base(pixels).last_hidden_state
    found = blocks | {"tokens": tokens, "features": tokens[:, 0]}
    heads = {"logits": "logits", "logits_class": "cls_logits", "logits_distilled": "distillation_logits"}
    found |= {ours: states[theirs] for ours, theirs in heads.items() if theirs in states}
    return {name: x.numpy() for name, x in found.items()}
