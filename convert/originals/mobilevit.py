"""MobileViT as transformers computes it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from convert.config_json import THEIRS, Config
from convert.originals.published import Published, classifier
from convert.originals.transformers_config import described
from kdjax import registry
from kdjax.config import Model


def build(model: Model, source: Config | None = None) -> Published:
    """As `source` describes it, where there is one."""
    ours = registry.get("models", model.name)(**model.options)
    module: Any = classifier(described(source or guess(ours), {}), ours.num_classes, "mobilevit")
    module.pool = ours.options.pool
    return module


def guess(ours: Any) -> Config:
    """As a config.json would describe our model."""
    o = ours.options
    values = {
        "model_type": "mobilevit",
        "hidden_sizes": list(o.dims),
        "neck_hidden_sizes": list(o.widths),
        "expand_ratio": o.expand_ratio,
        "num_attention_heads": o.heads,
        "mlp_ratio": o.mlp_ratio,
        "qkv_bias": o.qkv_bias,
        "patch_size": o.patch_size,
        "hidden_act": THEIRS[o.activation],
        "layer_norm_eps": o.norm_eps,
        "hidden_dropout_prob": o.dropout,
        "classifier_dropout_prob": o.dropout,
        "image_size": max(o.image_hw),
        "num_labels": ours.num_classes,
    }
    return Config(Path("our model"), values)


def outputs(module: Published, image: np.ndarray) -> dict[str, np.ndarray]:
    """The endpoints of our models for images [b, h, w, 3], channels last: RGB, which its processor turns."""
    inner = getattr(module.module, "mobilevit", module.module)
    y = inner(torch.from_numpy(np.moveaxis(image[..., ::-1], -1, 1).copy()), output_hidden_states=True)
    features = y.last_hidden_state[:, 0].flatten(1) if module.pool == "channel" else y.pooler_output
    found = {f"stage_{i}": x.permute(0, 2, 3, 1) for i, x in enumerate(y.hidden_states)} | {"features": features}
    if hasattr(module.module, "classifier"):
        found["logits"] = module.module.classifier(features)
    return {name: x.detach().numpy() for name, x in found.items()}
