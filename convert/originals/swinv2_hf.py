"""Swin-V2 as transformers computes it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from convert.config_json import THEIRS, Config
from convert.originals.published import Published, classifier
from convert.originals.swinv2 import steps
from convert.originals.transformers_config import described
from kdjax import registry
from kdjax.config import ConfigError, Model


def build(model: Model, source: Config | None = None) -> Published:
    """As `source` describes it, where there is one, at our model's image size."""
    ours = registry.get("models", model.name)(**model.options)
    o = ours.options
    settings = described(source or guess(ours), {"image_size": list(o.image_hw)})
    module = classifier(settings, ours.num_classes, "swinv2")
    for i, stage in enumerate(base(module).encoder.layers):
        for j, block in enumerate(stage.blocks):
            windows = o.windows(i, j % 2 == 1)
            theirs, mine = (block.window_size, block.shift_size), (windows.size, windows.shift)
            if any((n, n) != sides for n, sides in zip(theirs, mine, strict=True)):
                raise ConfigError(
                    f"stage {i}: transformers has square windows alone, of {theirs[0]}, shifted by {theirs[1]}, where "
                    f"kdjax has {mine[0]}, shifted by {mine[1]}; compare at an image_size whose maps are no smaller "
                    "than a window, or square, and halve evenly"
                )
    return module


def base(module: Published) -> Any:
    return getattr(module.module, "swinv2", module.module)


def guess(ours: Any) -> Config:
    """As a config.json would describe our model."""
    o = ours.options
    values = {
        "model_type": "swinv2",
        "embed_dim": o.dim,
        "depths": list(o.depths),
        "num_heads": list(o.heads),
        "window_size": o.window,
        "pretrained_window_sizes": list(o.pretrained_windows or [0] * len(o.depths)),
        "patch_size": o.patch_size,
        "mlp_ratio": o.mlp_ratio,
        "hidden_act": THEIRS[o.activation],
        "num_labels": ours.num_classes,
        "drop_path_rate": o.drop_path,
    }
    return Config(Path("our model"), values)


def outputs(module: Published, image: np.ndarray) -> dict[str, np.ndarray]:
    """The endpoints of our models for normalised images [b, h, w, 3], channels last."""
    inner = base(module)
    own = next(inner.parameters())
    for stage, before in zip(inner.encoder.layers, inner.config.pretrained_window_sizes, strict=True):
        for block in stage.blocks:  # made in float32, where the rest may be in float64
            attention = block.attention.self
            attention.relative_coords_table = steps(tuple(attention.window_size), before).to(own)[None]
    x, size = inner.embeddings(torch.from_numpy(np.moveaxis(image, -1, 1).copy()))
    told = {"output_hidden_states": True, "output_hidden_states_before_downsampling": True}
    y = inner.encoder(x, size, **told)
    features = inner.layernorm(y.last_hidden_state).mean(dim=1)
    found = {f"stage_{i}": map.permute(0, 2, 3, 1) for i, map in enumerate(y.reshaped_hidden_states[1:])}
    found |= {"features": features}
    if hasattr(module.module, "classifier"):
        found["logits"] = module.module.classifier(features)
    return {name: x.detach().numpy() for name, x in found.items()}
