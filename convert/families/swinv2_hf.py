"""Swin-V2 under transformers' names: microsoft/swinv2-tiny-patch4-window8-256 ..."""

from collections.abc import Mapping
from typing import Any

from convert.config_json import Config, normalisation
from convert.families import swinv2
from convert.families.swinv2 import model_with, stages
from convert.families.vit import ratio
from convert.family import Family, Shapes, build
from convert.table import FUSED, Row, conv, linear, norm, same
from kdjax.config import Model

BASE = "swinv2."  # before all names but the classifier's; a model without one goes without
EMBED = f"{BASE}embeddings"
STAGE = f"{BASE}encoder.layers.{{}}"
BLOCK, OURS = f"{STAGE.format('{i}')}.blocks.{{j}}", "layers_{i}/blocks_{j}"


def rows(model: Model) -> tuple[Row, ...]:
    attention, attn = f"{BLOCK}.attention.self", f"{OURS}/attn"
    weights = (f"{attention}.query.weight", f"{attention}.key.weight", f"{attention}.value.weight")
    merging = [(f"{STAGE.format(i)}.downsample", f"layers_{i + 1}/downsample") for i in range(last_stage(model))]
    return (
        *conv(f"{EMBED}.patch_embeddings.projection", target="patch_embed/proj"),
        *norm(f"{EMBED}.norm", target="patch_embed/norm"),
        *same(f"{attention}.logit_scale", rank=3, target=f"{attn}/logit_scale"),
        *linear(f"{attention}.continuous_position_bias_mlp.{{k}}", target=f"{attn}/cpb_mlp_{{k}}"),
        Row(weights, f"params/{attn}/qkv/kernel", FUSED),
        *same(f"{attention}.query.bias", rank=1, target=f"{attn}/q_bias"),
        *same(f"{attention}.value.bias", rank=1, target=f"{attn}/v_bias"),
        *linear(f"{BLOCK}.attention.output.dense", target=f"{attn}/proj"),
        *norm(f"{BLOCK}.layernorm_before", target=f"{OURS}/norm1"),
        *linear(f"{BLOCK}.intermediate.dense", target=f"{OURS}/mlp/fc1"),
        *linear(f"{BLOCK}.output.dense", target=f"{OURS}/mlp/fc2"),
        *norm(f"{BLOCK}.layernorm_after", target=f"{OURS}/norm2"),
        *(row for theirs, ours in merging for row in linear(f"{theirs}.reduction", target=f"{ours}/reduction")),
        *(row for theirs, ours in merging for row in norm(f"{theirs}.norm", target=f"{ours}/norm")),
        *norm(f"{BASE}layernorm", target="norm"),
        *linear("classifier", target="head"),
    )


def last_stage(model: Model) -> int:
    return len(build(model).options.depths) - 1


def prepared(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Of a model that was saved alone, under the names that it has in one with a classifier."""
    alone = ("embeddings.", "encoder.", "layernorm.")
    return {BASE + name if name.startswith(alone) else name: tensor for name, tensor in tensors.items()}


def in_modules(model: Model, name: str) -> str:
    return name if build(model).num_classes else name.removeprefix(BASE)


def model_of(shapes: Shapes) -> Model:
    """transformers pads maps that no whole number of windows covers, and takes its mask from the scores twice."""
    options = told(shapes) | {"num_classes": shapes.get("classifier.weight", (0,))[0]}
    return model_with(options | {"pad_windows": True, "mask": 200.0})


def told(shapes: Shapes) -> dict[str, Any]:
    """What the shapes tell."""
    dim, patch_size = shapes[f"{EMBED}.patch_embeddings.projection.weight"][::3]
    hidden = shapes[f"{BLOCK.format(i=0, j=0)}.intermediate.dense.weight"][0]
    return {
        "patch_size": patch_size,
        "dim": dim,
        **stages(shapes, STAGE + ".blocks.{}", "attention.self.logit_scale"),
        "mlp_ratio": ratio(dim, hidden),
    }


def configured(config: Config, shapes: Shapes) -> dict[str, Any]:
    tensors = told(shapes)
    config.agrees("embed_dim", 96, tensors["dim"])
    config.agrees("depths", (2, 2, 6, 2), tensors["depths"])
    config.agrees("num_heads", (3, 6, 12, 24), tensors["heads"])
    config.agrees("mlp_ratio", 4.0, tensors["mlp_ratio"])
    config.sides("patch_size", 4, tensors["patch_size"])
    config.only("num_channels", 3)
    config.only("qkv_bias", True)
    config.only("use_absolute_embeddings", False)
    config.only("layer_norm_eps", 1e-5)
    if labels := shapes.get("classifier.weight"):
        config.classes(labels[0])
    before = config.get("pretrained_window_sizes", (0, 0, 0, 0))
    options = {
        "window": config.get("window_size", 7),
        "pretrained_windows": before if any(before) else (),
        "activation": config.activation("hidden_act", "gelu"),
        "image_size": config.sides("image_size", 224, None),
    }
    config.check()
    return options | normalisation(config.path)


FAMILY = Family(
    name="swinv2_hf",
    told="Swin-V2 under Hugging Face's names: microsoft/swinv2-tiny-patch4-window8-256",
    variants={
        name: Model("swinv2", **model.options, pad_windows=True, mask=200.0)
        for name, model in swinv2.FAMILY.variants.items()
    },
    rows=rows,
    model_of=model_of,
    original="convert.originals.swinv2_hf",
    prepared=prepared,
    in_modules=in_modules,
    model_types=("swinv2",),
    configured=configured,
    untold=lambda model: (*swinv2.FAMILY.untold(model), "activation"),
    dropped=(
        (r"swinv2\.embeddings\.mask_token|decoder\..*", "what it was pretrained with: images with hidden patches"),
        (r"classifier\..*", "features alone were asked for, --set num_classes=0"),
    ),
)
