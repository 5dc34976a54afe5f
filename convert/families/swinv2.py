"""Swin-V2 under timm's names: swinv2_tiny_window8_256 ...; and its authors', swinv2_tiny_patch4_window8_256.pth ..."""

import re
from collections.abc import Mapping
from typing import Any

from convert.families.vit import ratio
from convert.family import Family, Shapes, nearest
from convert.table import Row, conv, linear, norm, same
from kdjax.config import Model
from kdjax.models.vision.swin import VARIANTS

BLOCK = "layers.{i}.blocks.{j}"
BUFFERS = r"attn_mask|attn\.relative_(coords_table|position_index)"


def rows(model: Model) -> tuple[Row, ...]:
    return (
        *conv("patch_embed.proj"),
        *same(f"{BLOCK}.attn.logit_scale", rank=3),
        *same(f"{BLOCK}.attn.q_bias", f"{BLOCK}.attn.v_bias", rank=1),
        *linear(f"{BLOCK}.attn.cpb_mlp.{{k}}", f"{BLOCK}.attn.qkv", f"{BLOCK}.attn.proj"),
        *linear(f"{BLOCK}.mlp.fc1", f"{BLOCK}.mlp.fc2", "layers.{i}.downsample.reduction"),
        *norm("patch_embed.norm", f"{BLOCK}.norm1", f"{BLOCK}.norm2", "layers.{i}.downsample.norm", "norm"),
        *linear("head.fc", target="head"),
    )


def prepared(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Of the authors' files, whose stages end with what timm's begin with."""
    if "layers.0.downsample.reduction.weight" not in tensors:
        return dict(tensors)
    return {timms(name): tensor for name, tensor in tensors.items()}


def timms(name: str) -> str:
    """The name that timm has for a tensor of the authors'."""
    if match := re.fullmatch(r"layers\.(\d{1,4})\.(downsample\..+)", name):
        return f"layers.{int(match[1]) + 1}.{match[2]}"
    return re.sub(r"head\.(?=weight|bias)", "head.fc.", name)


def model_of(shapes: Shapes) -> Model:
    return model_with(dimensions(shapes) | {"num_classes": shapes.get("head.fc.weight", (0,))[0]} | window(shapes))


def dimensions(shapes: Shapes) -> dict[str, Any]:
    """The options that the shapes tell."""
    return {
        "patch_size": shapes["patch_embed.proj.weight"][-1],
        "dim": (dim := shapes["patch_embed.proj.weight"][0]),
        **stages(shapes, "layers.{}.blocks.{}", "attn.logit_scale"),
        "mlp_ratio": ratio(dim, shapes["layers.0.blocks.0.mlp.fc1.weight"][0]),
    }


def stages(shapes: Shapes, block: str, scale: str) -> dict[str, tuple[int, ...]]:
    """Blocks and heads of each stage; a block is named `block` and the tensor that tells of its heads `scale`."""
    heads: list[int] = []
    depths: list[int] = []
    while f"{block.format(len(depths), 0)}.{scale}" in shapes:
        i, j = len(depths), 0
        while f"{block.format(i, j)}.{scale}" in shapes:
            j += 1
        heads.append(shapes[f"{block.format(i, 0)}.{scale}"][0])
        depths.append(j)
    return {"depths": tuple(depths), "heads": tuple(heads)}


def window(shapes: Shapes) -> dict[str, int]:
    """Older files hold the steps within a window too, 2w - 1 along each axis."""
    steps = shapes.get("layers.0.blocks.0.attn.relative_coords_table", ())
    return {"window": (steps[1] + 1) // 2} if len(steps) == 4 else {}


def model_with(options: Mapping[str, Any]) -> Model:
    """The nearest variant, and what differs from it."""
    classes = {"num_classes": options["num_classes"]}
    told = {name: x for name, x in options.items() if name not in classes}
    return Model("swinv2", **nearest("swinv2", VARIANTS, told), **classes)


FAMILY = Family(
    name="swinv2",
    told="Swin-V2 under timm's names, swinv2_tiny_window8_256, or its authors', swinv2_tiny_patch4_window8_256.pth",
    variants={name: Model("swinv2", variant=name) for name in VARIANTS},
    rows=rows,
    model_of=model_of,
    original="convert.originals.swinv2",
    prepared=prepared,
    untold=lambda model: ("window", "pretrained_windows", "image_size", "mean", "std"),
    dropped=(
        (rf"layers\.[0-9]+\.blocks\.[0-9]+\.({BUFFERS})", "follows from the window"),
        (r"head\.fc\..*", "features alone were asked for, --set num_classes=0"),
    ),
)
