"""ViT and DeiT under transformers' names: google/vit-base-patch16-224, facebook/deit-base-distilled-patch16-224."""

import re
from collections.abc import Mapping
from typing import Any

from convert.config_json import Config, normalisation
from convert.families import vit
from convert.families.vit import bicubic, depth, model_with, positions_for, ratio, side
from convert.family import ConvertError, Family, Shapes, build
from convert.table import Row, conv, fused, linear, norm, same
from kdjax.config import Model
from kdjax.models.vision.vit import VARIANTS

# Names of version 5's modules, and those that its files, as all older ones, have for them.
NEWER = (
    ("layers.", "encoder.layer."),
    ("attention.q_proj.", "attention.attention.query."),
    ("attention.k_proj.", "attention.attention.key."),
    ("attention.v_proj.", "attention.attention.value."),
    ("attention.o_proj.", "attention.output.dense."),
    ("mlp.fc1.", "intermediate.dense."),
    ("mlp.fc2.", "output.dense."),
)


def in_files(name: str) -> str:
    """A version 5 module's tensor under the name that it has in files."""
    match = re.fullmatch(r"((?:vit\.|deit\.)?)layers\.(\d+)\.(.+)", name)
    if not match:
        return name
    rest = match[3]
    for newer, older in NEWER[1:]:
        rest = older + rest.removeprefix(newer) if rest.startswith(newer) else rest
    return f"{match[1]}encoder.layer.{match[2]}.{rest}"


def in_modules(model: Model, name: str) -> str:
    """The inverse."""
    match = re.fullmatch(r"((?:vit\.|deit\.)?)encoder\.layer\.(\d+)\.(.+)", name)
    if not match:
        return name
    rest = match[3]
    newer, older = next((pair for pair in NEWER[1:] if rest.startswith(pair[1])), ("", ""))
    return f"{match[1]}layers.{match[2]}.{newer}{rest.removeprefix(older)}"


def prepared(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {in_files(name): tensor for name, tensor in tensors.items()}


def rows(model: Model) -> tuple[Row, ...]:
    ours = build(model)
    if ours.options.pool != "token":
        raise ConvertError(f"transformers' ViT reads the class token; a model with pool={ours.options.pool!r} is vit's")
    distilled = ours.options.distilled
    at = ("deit." if distilled else "vit.") if ours.num_classes else ""
    layer, block = f"{at}encoder.layer.{{i}}", "blocks_{i}"
    query, key, value = (f"{layer}.attention.attention.{name}" for name in ("query", "key", "value"))
    return (
        *same(f"{at}embeddings.cls_token", rank=3, target="cls_token"),
        *same(f"{at}embeddings.distillation_token", rank=3, target="dist_token"),
        *same(
            f"{at}embeddings.position_embeddings",
            rank=3,
            target="pos_embed",
            resize=positions_for(model, bicubic),
        ),
        *conv(f"{at}embeddings.patch_embeddings.projection", target="patch_embed/proj"),
        *norm(f"{layer}.layernorm_before", target=f"{block}/norm1"),
        *fused(query, key, value, f"{block}/attn/qkv"),
        *linear(f"{layer}.attention.output.dense", target=f"{block}/attn/proj"),
        *norm(f"{layer}.layernorm_after", target=f"{block}/norm2"),
        *linear(f"{layer}.intermediate.dense", target=f"{block}/mlp/fc1"),
        *linear(f"{layer}.output.dense", target=f"{block}/mlp/fc2"),
        *norm(f"{at}layernorm", target="norm"),
        *linear("cls_classifier" if distilled else "classifier", target="head"),
        *linear("distillation_classifier", target="head_dist"),
    )


def model_of(shapes: Shapes) -> Model:
    distilled = any(name.endswith("embeddings.distillation_token") for name in shapes)
    if distilled and "classifier.weight" in shapes:
        raise ConvertError(
            "it has a distillation token and one head (DeiTForImageClassification), and kdjax's DeiT has a head for "
            "each token (DeiTForImageClassificationWithTeacher); for the features alone, save its `deit` module"
        )
    vit.refuse_others(shapes)
    return model_with("vit", VARIANTS, told(shapes) | {"norm_eps": 1e-12})


def told(shapes: Shapes) -> dict[str, Any]:
    """What the shapes tell."""
    at = next((at for at in ("vit.", "deit.") if f"{at}embeddings.cls_token" in shapes), "")
    dim, patch_size = shapes[f"{at}embeddings.patch_embeddings.projection.weight"][::3]
    distilled = f"{at}embeddings.distillation_token" in shapes
    return {
        "dim": dim,
        "depth": depth(shapes, f"{at}encoder.layer"),
        "patch_size": patch_size,
        "mlp_ratio": ratio(dim, shapes[f"{at}encoder.layer.0.intermediate.dense.weight"][0]),
        "qkv_bias": any(name.endswith(".query.bias") for name in shapes),
        "distilled": distilled,
        "layer_scale": 0.0,
        "image_size": side(shapes[f"{at}embeddings.position_embeddings"][1] - (2 if distilled else 1), patch_size),
        "num_classes": shapes.get("cls_classifier.weight" if distilled else "classifier.weight", (0,))[0],
    }


def configured(config: Config, shapes: Shapes) -> dict[str, Any]:
    tensors = told(shapes)
    config.agrees("hidden_size", 768, tensors["dim"])
    config.agrees("num_hidden_layers", 12, tensors["depth"])
    config.agrees("intermediate_size", 3072, int(tensors["dim"] * tensors["mlp_ratio"]))
    config.agrees("qkv_bias", True, tensors["qkv_bias"])
    config.sides("patch_size", 16, tensors["patch_size"])
    if tensors["num_classes"]:
        config.classes(tensors["num_classes"])
    config.only("num_channels", 3)
    heads = config.get("num_attention_heads", 12)
    config.only("head_dim", tensors["dim"] // heads)
    options = {
        "heads": heads,
        "norm_eps": config.get("layer_norm_eps", 1e-12),
        "activation": config.activation("hidden_act", "gelu"),
        "image_size": config.sides("image_size", 224, tensors["image_size"]),
    }
    config.check()
    return options | normalisation(config.path)


FAMILY = Family(
    name="vit_hf",
    told="ViT, DeiT under Hugging Face's names: google/vit-base-patch16-224, facebook/deit-base-distilled-patch16-224",
    variants={name: Model("vit", **{**model.options, "norm_eps": 1e-12}) for name, model in vit.FAMILY.variants.items()}
    | {"features alone": Model("vit", num_classes=0, norm_eps=1e-12)},
    rows=rows,
    model_of=model_of,
    original="convert.originals.vit_hf",
    stacks=vit.FAMILY.stacks,
    prepared=prepared,
    in_modules=in_modules,
    resizing="bicubic, not antialiased, as transformers does",
    model_types=("vit", "deit"),
    configured=configured,
    untold=vit.untold,
    hint=vit.hint,
    dropped=(
        (r"(vit\.|deit\.)?pooler\.dense\..*", "no classifier reads it"),
        (r"(vit\.|deit\.)?embeddings\.mask_token", "stands for hidden patches in pretraining alone"),
    ),
)
