"""ConvNeXt-V2 under transformers' names: facebook/convnextv2-tiny-1k-224, -atto- to -huge-22k-512."""

from typing import Any

from convert.config_json import Config, normalisation
from convert.families import convnextv2
from convert.families.convnextv2 import UNTOLD, depths, widths
from convert.family import Family, Shapes, build, nearest
from convert.table import How, Row, conv, linear, norm
from kdjax.config import Model
from kdjax.models.vision.convnext import STAGES, STEM, VARIANTS

EPS = 1e-12  # of the last norm, where the authors and timm have 1e-6
# Of the global response norm: [1, 1, 1, d] and [d].
MAP = How("map", lambda x: x.reshape(-1), lambda leaf: (leaf.reshape(1, 1, 1, -1),), 4)


def rows(model: Model) -> tuple[Row, ...]:
    at = "convnextv2." if build(model).num_classes else ""
    stage, layer, block = f"{at}encoder.stages.{{i}}", f"{at}encoder.stages.{{i}}.layers.{{j}}", "stages_{i}/blocks_{j}"
    return (
        *conv(f"{at}embeddings.patch_embeddings", target="stem_0"),
        *norm(f"{at}embeddings.layernorm", target="stem_1"),
        *norm(f"{stage}.downsampling_layer.0", target="stages_{i}/downsample_0"),
        *conv(f"{stage}.downsampling_layer.1", target="stages_{i}/downsample_1"),
        *conv(f"{layer}.dwconv", target=f"{block}/conv_dw"),
        *norm(f"{layer}.layernorm", target=f"{block}/norm"),
        *linear(f"{layer}.pwconv1", target=f"{block}/mlp/fc1"),
        Row((f"{layer}.grn.weight",), f"params/{block}/mlp/grn/scale", MAP),
        Row((f"{layer}.grn.bias",), f"params/{block}/mlp/grn/bias", MAP),
        *linear(f"{layer}.pwconv2", target=f"{block}/mlp/fc2"),
        *norm(f"{at}layernorm", target="head/norm"),
        *linear("classifier", target="head/fc"),
    )


def model_of(shapes: Shapes) -> Model:
    options = nearest("convnextv2", VARIANTS, told(shapes))
    return Model("convnextv2", **options, num_classes=labels(shapes), head_norm_eps=EPS)


def told(shapes: Shapes) -> dict[str, Any]:
    at = "convnextv2." if labels(shapes) else ""
    down = f"{at}encoder.stages.{{}}.downsampling_layer.1.weight"
    return {
        "dims": widths(shapes, f"{at}embeddings.patch_embeddings.weight", down),
        "depths": depths(shapes, f"{at}encoder.stages.{{}}.layers"),
    }


def labels(shapes: Shapes) -> int:
    return shapes.get("classifier.weight", (0,))[0]


def configured(config: Config, shapes: Shapes) -> dict[str, Any]:
    tensors = told(shapes)
    config.agrees("hidden_sizes", (96, 192, 384, 768), tensors["dims"])
    config.agrees("depths", (3, 3, 9, 3), tensors["depths"])
    config.only("num_stages", STAGES)
    config.only("num_channels", 3)
    config.sides("patch_size", STEM, STEM)
    if count := labels(shapes):
        config.classes(count)
    options = {
        "activation": config.activation("hidden_act", "gelu"),
        "head_norm_eps": config.get("layer_norm_eps", EPS),
        "image_size": config.sides("image_size", 224, None),
    }
    config.check()
    return options | normalisation(config.path)


FAMILY = Family(
    name="convnextv2_hf",
    told="ConvNeXt-V2 under Hugging Face's names: facebook/convnextv2-tiny-1k-224 ...",
    variants={
        name: Model("convnextv2", **{**model.options, "head_norm_eps": EPS})
        for name, model in convnextv2.FAMILY.variants.items()
    }
    | {"features alone": Model("convnextv2", num_classes=0, head_norm_eps=EPS)},
    rows=rows,
    model_of=model_of,
    original="convert.originals.convnextv2_hf",
    model_types=("convnextv2",),
    configured=configured,
    untold=lambda model: UNTOLD,
)
