"""TinyUSFM: the official checkpoints/TinyUSFM.pth, segmenters and classifiers trained from it, and kdjax's students."""

from dataclasses import replace
from typing import Any

from convert.families import vit
from convert.families.vit import dimensions, encoder_rows, model_with, pool, side, untold
from convert.family import Family, Shapes
from convert.table import Row, batch_norm, conv, linear
from kdjax.config import Model
from kdjax.models.vision.tinyusfm import VARIANTS


def rows(model: Model) -> tuple[Row, ...]:
    if model.name == "tinyusfm_seg":
        return (*encoder_rows(model, "backbone."), *segmenter_rows())
    plain = encoder_rows(model)
    return plain if model.name == "tinyusfm" else inside("model", (*plain, *linear("head")))


def inside(module: str, rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """The same tensors, for a model of ours that has them in a module of its own."""
    return tuple(replace(row, target=row.target.replace("/", f"/{module}/", 1)) for row in rows)


def segmenter_rows() -> tuple[Row, ...]:
    """Neck and head."""
    levels = [f"decode_head.{name}.{{i}}" for name in ("lateral_convs", "fpn_convs")]
    return (
        *conv("neck.projections.{i}", "decode_head.conv_seg", *(f"{level}.0" for level in levels)),
        *batch_norm(*(f"{level}.1" for level in levels)),
    )


def model_of(shapes: Shapes) -> Model:
    name, further = kind_of("tinyusfm", shapes)
    at = "backbone." if name == "tinyusfm_seg" else ""
    vit.refuse_others({name.removeprefix(at): shape for name, shape in shapes.items()})
    options = dimensions(shapes, at) | further
    # A ViT with a norm and a head reads the class token.
    options["pool"] = pool(shapes, "mean", at)
    if name == "tinyusfm_cls":
        options["pool"] = "fc_norm" if "fc_norm.weight" in shapes else "token"
    options["image_size"] = side(shapes[f"{at}pos_embed"][1] - 1, options["patch_size"])
    return model_with(name, VARIANTS, options)


def kind_of(name: str, shapes: Shapes) -> tuple[str, dict[str, Any]]:
    """The model on an encoder, and the options that it has beside the encoder's."""
    if any(name.startswith("decode_head.") for name in shapes):
        out, inside = shapes["decode_head.conv_seg.weight"][:2]
        further = {"neck_dim": shapes["neck.projections.0.weight"][0], "head_dim": inside}
        return f"{name}_seg", further | {"num_classes": 2 if out == 1 else out}
    if "head.weight" in shapes:
        return f"{name}_cls", {"num_classes": shapes["head.weight"][0]}
    return name, {}


def stacks(*modules: str) -> tuple[tuple[str, str], ...]:
    """Of models built with scan=True, the encoder in any of these modules."""
    return tuple((f"params/{at}blocks/{{rest}}", f"params/{at}blocks_{{i}}/{{rest}}") for at in modules)


FAMILY = Family(
    name="tinyusfm",
    told="TinyUSFM: the official TinyUSFM.pth, segmenters, classifiers, students of kdjax, any timm ViT of its width",
    variants={
        "segmenter": Model("tinyusfm_seg"),
        "classifier": Model("tinyusfm_cls"),
        "encoder": Model("tinyusfm"),
    },
    rows=rows,
    model_of=model_of,
    original="convert.originals.tinyusfm",
    stacks=stacks("backbone/", "model/", ""),
    resizing=vit.FAMILY.resizing,
    hint=vit.hint,
    untold=lambda model: (*untold(model), *(("pool",) if model.name == "tinyusfm_seg" else ())),
    dropped=(
        (r"(backbone\.)?(fc_)?norm\..*", "the original has both norms and reads one of them"),
        (r"(dist_norm|head_dist)\..*", "the original never reads it"),
    ),
    exported=lambda model, name: name if model.name == "tinyusfm_seg" else f"model.{name}",
)
