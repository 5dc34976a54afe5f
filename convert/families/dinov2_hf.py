"""DINOv2 under transformers' names: facebook/dinov2-base, facebook/dinov2-with-registers-base, and classifiers."""

from collections.abc import Mapping
from typing import Any

from convert.config_json import Config, normalisation
from convert.families import dinov2, vit, vit_hf
from convert.family import ConvertError, Family, Shapes, build
from convert.table import Row, conv, fused, linear, norm, same
from kdjax.config import Model
from kdjax.models.vision.vit import VARIANTS

BASES = ("dinov2.", "dinov2_with_registers.")  # what a classifier calls the encoder
NEWER = tuple(pair for pair in vit_hf.NEWER if pair[0].startswith("attention."))


def in_files(name: str) -> str:
    """A version 5 module's tensor under the name that it has in files."""
    return _renamed(name, *((newer, older) for newer, older in NEWER))


def in_modules(model: Model, name: str) -> str:
    """The inverse."""
    return _renamed(name, *((older, newer) for newer, older in NEWER))


def _renamed(name: str, *pairs: tuple[str, str]) -> str:
    return next((name.replace(old, new) for old, new in pairs if f".{old}" in name), name)


def prepared(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {in_files(name): tensor for name, tensor in tensors.items()}


def rows(model: Model) -> tuple[Row, ...]:
    ours = build(model)
    o = ours.options
    if o.pool not in (("token_mean",) if ours.num_classes else ("token", "token_mean")) or not o.class_position:
        raise ConvertError(
            "transformers' DINOv2 has a position of the class token, and its classifier reads pool='token_mean', found "
            f"pool={o.pool!r}, class_position={o.class_position}; the names of other models are dinov2's"
        )
    at = BASES[o.registers > 0] if ours.num_classes else ""
    layer, block = f"{at}encoder.layer.{{i}}", "blocks_{i}"
    query, key, value = (f"{layer}.attention.attention.{name}" for name in ("query", "key", "value"))
    hidden = {f"{at}embeddings.mask_token": dinov2.mask_token}
    resize = vit.positions_for(model, vit.antialiased if o.registers else vit.bicubic)
    return (
        Row((f"{at}embeddings.cls_token",), "params/cls_token", beside=hidden, rank=3),
        *same(f"{at}embeddings.register_tokens", rank=3, target="reg_token"),
        *same(f"{at}embeddings.position_embeddings", rank=3, target="pos_embed", resize=resize),
        *conv(f"{at}embeddings.patch_embeddings.projection", target="patch_embed/proj"),
        *norm(f"{layer}.norm1", target=f"{block}/norm1"),
        *fused(query, key, value, f"{block}/attn/qkv"),
        *linear(f"{layer}.attention.output.dense", target=f"{block}/attn/proj"),
        *same(f"{layer}.layer_scale1.lambda1", rank=1, target=f"{block}/gamma_1"),
        *norm(f"{layer}.norm2", target=f"{block}/norm2"),
        *linear(f"{layer}.mlp.fc1", target=f"{block}/mlp/fc1"),
        *linear(f"{layer}.mlp.fc2", target=f"{block}/mlp/fc2"),
        *same(f"{layer}.layer_scale2.lambda1", rank=1, target=f"{block}/gamma_2"),
        *norm(f"{at}layernorm", target="norm"),
        *linear("classifier", target="head"),
    )


def model_of(shapes: Shapes) -> Model:
    vit.refuse_strangers(shapes)
    return vit.model_with("vit", VARIANTS, told(shapes))


def told(shapes: Shapes) -> dict[str, Any]:
    """What the shapes tell."""
    at = next((at for at in BASES if f"{at}embeddings.cls_token" in shapes), "")
    dim, patch_size = shapes[f"{at}embeddings.patch_embeddings.projection.weight"][::3]
    classes = shapes.get("classifier.weight", (0,))[0]
    return {
        "dim": dim,
        "depth": vit.depth(shapes, f"{at}encoder.layer"),
        "patch_size": patch_size,
        "mlp_ratio": vit.ratio(dim, shapes[f"{at}encoder.layer.0.mlp.fc1.weight"][0]),
        "qkv_bias": any(name.endswith(".query.bias") for name in shapes),
        "layer_scale": dinov2.SCALE,
        "registers": shapes.get(f"{at}embeddings.register_tokens", (1, 0))[1],
        "pool": "token_mean" if classes else "token",
        "image_size": vit.side(shapes[f"{at}embeddings.position_embeddings"][1] - 1, patch_size),
        "num_classes": classes,
    }


def configured(config: Config, shapes: Shapes) -> dict[str, Any]:
    tensors = told(shapes)
    config.agrees("hidden_size", 768, tensors["dim"])
    config.agrees("num_hidden_layers", 12, tensors["depth"])
    config.agrees("mlp_ratio", 4, tensors["mlp_ratio"])
    config.agrees("qkv_bias", True, tensors["qkv_bias"])
    config.sides("patch_size", 14, tensors["patch_size"])
    if tensors["registers"]:
        config.agrees("num_register_tokens", 4, tensors["registers"])
    if tensors["num_classes"]:
        config.classes(tensors["num_classes"])
    config.only("num_channels", 3)
    config.only("use_swiglu_ffn", False)
    options = {
        "heads": config.get("num_attention_heads", 12),
        "norm_eps": config.get("layer_norm_eps", 1e-6),
        "activation": config.activation("hidden_act", "gelu"),
        "image_size": config.sides("image_size", 224, tensors["image_size"]),
    }
    config.check()
    return options | normalisation(config.path)


FAMILY = Family(
    name="dinov2_hf",
    told="DINOv2 S, B, L under Hugging Face's names: facebook/dinov2-base, facebook/dinov2-with-registers-base",
    variants={name: Model("vit", variant=name, num_classes=0) for name in dinov2.NAMES}
    | {f"{name} with a classifier": Model("vit", variant=name, pool="token_mean") for name in dinov2.NAMES},
    rows=rows,
    model_of=model_of,
    original="convert.originals.dinov2_hf",
    stacks=vit.FAMILY.stacks,
    prepared=prepared,
    in_modules=in_modules,
    resizing="bicubic, as transformers does: with registers antialiased, without not",
    model_types=("dinov2", "dinov2_with_registers"),
    configured=configured,
    untold=vit.untold,
    hint=vit.hint,
    dropped=((r"classifier\..*", "features alone were asked for, --set num_classes=0"),),
)
