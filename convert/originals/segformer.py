"""SegFormer as transformers computes it."""

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from convert.config_json import THEIRS, Config
from convert.originals.published import Published
from convert.originals.transformers_config import described, from_config
from kdjax import registry
from kdjax.config import ConfigError, Model


def build(model: Model, source: Config | None = None) -> Published:
    """In eval mode; as `source` describes it, where there is one."""
    encoder = model.name == "segformer_encoder"
    # a sequence instead of a map is another form of the same numbers
    settings = described(source or guess(model), {"reshape_last_stage": True})
    module = from_config("AutoModel" if encoder else "AutoModelForSemanticSegmentation", settings)
    return Published(module, "segformer." if encoder else "").eval()


def guess(model: Model) -> Config:
    """As a config.json would describe our model."""
    ours = registry.get("models", model.name)(**model.options)
    o, classes = ours.options, getattr(ours, "num_classes", 2)
    if o.mlp_ratio != int(o.mlp_ratio):
        raise ConfigError(f"transformers builds SegFormer with whole mlp_ratio alone, found {o.mlp_ratio}")
    values = {
        "model_type": "segformer",
        "hidden_sizes": list(o.dims),
        "depths": list(o.depths),
        "num_attention_heads": list(o.heads),
        "sr_ratios": list(o.reductions),
        "mlp_ratios": [int(o.mlp_ratio)] * len(o.dims),
        "hidden_act": THEIRS[o.activation],
        "decoder_hidden_size": o.decoder_dim,
        "num_labels": 1 if classes == 2 and getattr(ours, "binary_logit", True) else classes,
        "drop_path_rate": o.drop_path,
        "classifier_dropout_prob": o.dropout,
    }
    return Config(Path("our model"), values)


def outputs(module: Published, image: np.ndarray) -> dict[str, np.ndarray]:
    """The endpoints of our models for normalised images [b, h, w, 3], channels last."""
    read, head = [], getattr(module.module, "decode_head", None)
    if head is not None:
        watch = head.classifier.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    out = module.module(torch.from_numpy(np.moveaxis(image, -1, 1).copy()), output_hidden_states=True)
    found = {f"stage_{i}": x for i, x in enumerate(out.hidden_states)}
    if head is not None:
        watch.remove()
        logits = F.interpolate(out.logits, image.shape[1:3], mode="bilinear", align_corners=False)
        found |= {"fused": read[0], "low_res_logits": out.logits, "logits": logits}
    return {name: np.moveaxis(x.detach().numpy(), 1, -1) for name, x in found.items()}
