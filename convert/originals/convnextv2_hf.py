"""ConvNeXt-V2 as transformers computes it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from convert.config_json import THEIRS, Config
from convert.originals.transformers_config import described, from_config
from kdjax import registry
from kdjax.config import Model


def build(model: Model, source: Config | None = None) -> Any:
    """In eval mode; as `source` describes it, where there is one."""
    ours = registry.get("models", model.name)(**model.options)
    settings = described(source or guess(ours), {})
    return from_config("AutoModelForImageClassification" if ours.num_classes else "AutoModel", settings)


def guess(ours: Any) -> Config:
    """As a config.json would describe our model."""
    o = ours.options
    values = {
        "model_type": "convnextv2",
        "hidden_sizes": list(o.dims),
        "depths": list(o.depths),
        "hidden_act": THEIRS[o.activation],
        "layer_norm_eps": o.head_norm_eps,
        "drop_path_rate": o.drop_path,
        "image_size": max(o.image_hw),
        "num_labels": ours.num_classes,
    }
    return Config(Path("our model"), values)


def outputs(module: Any, image: np.ndarray) -> dict[str, np.ndarray]:
    """The endpoints of our models for normalised images [b, h, w, 3], channels last."""
    base, classifier = getattr(module, "convnextv2", module), getattr(module, "classifier", None)
    out = base(torch.from_numpy(np.moveaxis(image, -1, 1).copy()), output_hidden_states=True)
    _, *stages = out.hidden_states  # after the stem, and after each stage
    found = {f"stage_{i}": np.moveaxis(x.detach().numpy(), 1, -1) for i, x in enumerate(stages)}
    found["features"] = out.pooler_output.detach().numpy()
    if classifier is not None:
        found["logits"] = classifier(out.pooler_output).detach().numpy()
    return found
