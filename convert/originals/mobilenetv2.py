"""MobileNet-V2 as transformers computes it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from convert.config_json import THEIRS, Config
from convert.originals.published import Published, classifier
from convert.originals.transformers_config import described
from kdjax import registry
from kdjax.config import Model
from kdjax.models.vision.mobilenet import ENDS


def build(model: Model, source: Config | None = None) -> Published:
    """As `source` describes it, where there is one."""
    ours = registry.get("models", model.name)(**model.options)
    module: Any = classifier(described(source or guess(ours), {}), ours.num_classes, "mobilenet_v2")
    module.pool = ours.options.pool
    return module


def guess(ours: Any) -> Config:
    """As a config.json would describe our model."""
    o = ours.options
    values = {
        "model_type": "mobilenet_v2",
        "depth_multiplier": o.multiplier,
        "finegrained_output": o.full_last,
        "expand_ratio": o.expand_ratio,
        "output_stride": o.output_stride,
        "tf_padding": o.tf_padding,
        "hidden_act": THEIRS[o.activation],
        "layer_norm_eps": o.norm_eps,
        "classifier_dropout_prob": o.dropout,
        "image_size": max(o.image_hw),
        "num_labels": ours.num_classes,
    }
    return Config(Path("our model"), values)


def outputs(module: Published, image: np.ndarray) -> dict[str, np.ndarray]:
    """The endpoints of our models for normalised images [b, h, w, 3], channels last."""
    inner = getattr(module.module, "mobilenet_v2", module.module)
    x = inner.conv_stem(torch.from_numpy(np.moveaxis(image, -1, 1).copy()))
    maps = [x]
    for i, layer in enumerate(inner.layer):
        x = layer(x)
        if i in ENDS:
            maps.append(x)
    x = inner.conv_1x1(x)
    features = x[:, 0].flatten(1) if module.pool == "channel" else x.mean((2, 3))
    found = {f"stage_{i}": x.permute(0, 2, 3, 1) for i, x in enumerate(maps)} | {"features": features}
    if hasattr(module.module, "classifier"):
        found["logits"] = module.module.classifier(features)
    return {name: x.detach().numpy() for name, x in found.items()}
