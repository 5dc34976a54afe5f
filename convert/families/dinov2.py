"""DINOv2 under Meta's names and timm's: dinov2_vits14_pretrain.pth, vit_small_patch14_reg4_dinov2; DeiT-3 under timm's.

With registers Meta's class token has a position, which timm adds to it once and for all; so their names differ too.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from convert.families import vit
from convert.family import ConvertError, Family, Shapes, build
from convert.table import Row, same
from kdjax.config import Model
from kdjax.models.vision.vit import VARIANTS

NAMES = tuple(name for name in VARIANTS if name.startswith("dinov2"))
SCALE = VARIANTS["dinov2_s14"]["layer_scale"]


def prepared(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """DeiT-3's own files call the scales as BEiT does."""
    return {re.sub(r"(blocks\.\d+)\.gamma_([12])", r"\1.ls\2.gamma", name): x for name, x in tensors.items()}


def rows(model: Model) -> tuple[Row, ...]:
    scales = (same(f"blocks.{{i}}.ls{n}.gamma", rank=1, target=f"blocks_{{i}}/gamma_{n}") for n in (1, 2))
    return (*registers(model), *(row for pair in scales for row in pair), *vit.rows(model))


def registers(model: Model) -> tuple[Row, ...]:
    if not build(model).options.class_position:
        return same("reg_token", rank=3)
    return (Row(("register_tokens",), "params/reg_token", beside={"mask_token": mask_token}, rank=3),)


def mask_token(model: Any) -> np.ndarray:
    """As new."""
    return np.zeros((1, model.options.dim), np.float32)


def model_of(shapes: Shapes) -> Model:
    vit.refuse_strangers(shapes)
    if "blocks.0.ls1.gamma" not in shapes:
        raise ConvertError("it has no LayerScale, as DINOv2 has; use the family vit")
    of_timm = shapes.get("reg_token", (1, 0))[1]
    options = vit.dimensions(shapes) | {"layer_scale": SCALE, "pool": vit.pool(shapes, "token")}
    options |= {"class_position": not of_timm, "registers": of_timm or shapes.get("register_tokens", (1, 0))[1]}
    patches = shapes["pos_embed"][1] - options["class_position"]
    options |= {"image_size": vit.side(patches, options["patch_size"])}
    return vit.model_with("vit", VARIANTS, options | {"num_classes": shapes.get("head.weight", (0,))[0]})


FAMILY = Family(
    name="dinov2",
    told="DINOv2 S, B, L under Meta's and timm's names: dinov2_vitb14_reg4_pretrain.pth, vit_base_patch14_dinov2",
    variants={name: Model("vit", variant=name, num_classes=0) for name in NAMES}
    | {f"timm's {name}": Model("vit", variant=name, class_position=False) for name in NAMES if "reg" in name},
    rows=rows,
    model_of=model_of,
    original=vit.FAMILY.original,
    prepared=prepared,
    stacks=vit.FAMILY.stacks,
    resizing=vit.FAMILY.resizing,
    untold=vit.untold,
    hint=vit.hint,
    dropped=(*vit.FAMILY.dropped, (r"mask_token", "stands for hidden patches in pretraining alone")),
)
