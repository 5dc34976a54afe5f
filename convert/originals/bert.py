"""BERT and DistilBERT as transformers computes them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from convert.config_json import THEIRS, Config
from convert.families.bert import prepared
from convert.originals.transformers_config import described, from_config, named_as_in_files
from kdjax import registry
from kdjax.config import Model


def build(model: Model, source: Config | None = None) -> torch.nn.Module:
    """Its state dict has the names of the encoder alone. It is built as `source` describes it, where there is one."""
    ours = registry.get("models", model.name)(**model.options)
    own = {"num_labels": ours.num_classes} if ours.num_classes else {}
    settings = described(source or guess(model.name, ours), own)
    settings.pool = ours.options.pool
    if ours.num_classes:
        module = from_config("AutoModelForSequenceClassification", settings)
    else:
        module = from_config("AutoModel", settings, **{"add_pooling_layer": False} if model.name == "bert" else {})
    return named_as_in_files(module, lambda name: next(iter(prepared({name: None}, f"{model.name}."))))


def guess(kind: str, ours: Any) -> Config:
    """As a config.json would describe our model."""
    o = ours.options
    values = {"model_type": kind, "vocab_size": o.vocab_size, "max_position_embeddings": o.positions}
    hidden = int(o.dim * o.mlp_ratio)
    if kind == "distilbert":
        values |= {"dim": o.dim, "n_layers": o.depth, "n_heads": o.heads, "hidden_dim": hidden}
        return Config(Path("our model"), values | {"activation": THEIRS[o.activation]})
    values |= {"hidden_size": o.dim, "num_hidden_layers": o.depth, "num_attention_heads": o.heads}
    values |= {"intermediate_size": hidden, "hidden_act": THEIRS[o.activation], "layer_norm_eps": o.norm_eps}
    return Config(Path("our model"), values)


def outputs(module: Any, input_ids: np.ndarray, attention_mask: np.ndarray) -> dict[str, np.ndarray]:
    """The endpoints of our models for tokens [b, n]."""
    ids, mask = (torch.from_numpy(np.array(x)).long() for x in (input_ids, attention_mask))
    states = module(ids, attention_mask=mask, output_hidden_states=True)
    _, *layers = states.hidden_states
    there = mask[..., None].to(layers[-1].dtype)
    mean = (layers[-1] * there).sum(1) / there.sum(1)
    features = layers[-1][:, 0] if module.config.pool == "token" else mean
    found = {"tokens": layers[-1], "features": features, **{f"layer_{i}": x for i, x in enumerate(layers)}}
    found |= {"logits": states.logits} if "logits" in states else {}
    return {name: x.numpy() for name, x in found.items()}
