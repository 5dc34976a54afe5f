"""MobileNet-V2 under transformers' names: google/mobilenet_v2_1.0_224, _1.4_224, _0.75_160, _0.35_96."""

from collections.abc import Mapping
from typing import Any

from convert.config_json import Config, normalisation
from convert.families.vit import ratio
from convert.family import ConvertError, Family, Shapes, build, nearest
from convert.table import Row, batch_norm, conv, linear, path
from kdjax.config import Model
from kdjax.models.vision.mobilenet import FIRST, LAST, LAYERS, STEM, VARIANTS, scaled

BASE = "mobilenet_v2."  # before all names but the classifier's; a model without one goes without
ALONE = ("conv_stem.", "layer.", "conv_1x1.")  # what the names of such a model begin with
LAYER = "layer.{i}"
WIDTHS = (STEM, FIRST, *(width for width, _ in LAYERS))  # of a model whose multiplier is 1
UNTOLD = ("output_stride", "tf_padding", "activation", "norm_eps", "mean", "std")


def rows(model: Model) -> tuple[Row, ...]:
    stem = [f"conv_stem.{part}" for part in ("first_conv", "conv_3x3", "reduce_1x1")]
    layers = [*stem, *(f"{LAYER}.{part}" for part in ("expand_1x1", "conv_3x3", "reduce_1x1")), "conv_1x1"]
    return (
        *(row for x in layers for row in conv(f"{BASE}{x}.convolution", target=path(f"{x}.convolution"))),
        *(row for x in layers for row in batch_norm(f"{BASE}{x}.normalization", target=path(f"{x}.normalization"))),
        *linear("classifier"),
    )


def prepared(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Of a model that was saved alone, under the names that it has in one with a classifier."""
    return {BASE + name if name.startswith(ALONE) else name: tensor for name, tensor in tensors.items()}


def in_modules(model: Model, name: str) -> str:
    return name if build(model).num_classes else name.removeprefix(BASE)


def model_of(shapes: Shapes) -> Model:
    """The published variant that is the nearest, and what differs from it."""
    options = nearest("mobilenetv2", VARIANTS, told(shapes))
    return Model("mobilenetv2", **options, num_classes=shapes.get("classifier.weight", (0,))[0])


def told(shapes: Shapes) -> dict[str, Any]:
    """What the shapes tell."""
    widths = widths_of(shapes)
    multiplier = multiplier_of(widths)
    wide, narrow = shapes[f"{BASE}{LAYER.format(i=len(LAYERS) - 1)}.expand_1x1.convolution.weight"][:2]
    last = shapes[f"{BASE}conv_1x1.convolution.weight"][0]
    return {
        "multiplier": multiplier,
        "full_last": last == LAST if multiplier < 1 else True,
        "expand_ratio": ratio(narrow, wide),
    }


def widths_of(shapes: Shapes) -> tuple[int, ...]:
    ends = ("conv_stem.first_conv", "conv_stem.reduce_1x1", *(f"{LAYER}.reduce_1x1" for _ in LAYERS))
    names = (f"{BASE}{end.format(i=i - 2)}.convolution.weight" for i, end in enumerate(ends))
    return tuple(shapes[name][0] for name in names)


def multiplier_of(widths: tuple[int, ...]) -> float:
    """The one that makes these widths of the usual ones."""
    published = [options["multiplier"] for options in VARIANTS.values()]
    quotients = [ours / usual for ours, usual in zip(widths, WIDTHS, strict=True)]
    for multiplier in (*published, *reversed(quotients)):
        if fits(widths, multiplier):
            return multiplier
    raise ConvertError(f"its widths {widths} are no multiple, rounded to eights, of {WIDTHS}, as all its variants' are")


def fits(widths: tuple[int, ...], multiplier: float) -> bool:
    return widths == tuple(scaled(width, multiplier) for width in WIDTHS)


def configured(config: Config, shapes: Shapes) -> dict[str, Any]:
    multiplier = config.get("depth_multiplier", 1.0)
    if not fits(widths := widths_of(shapes), multiplier):
        config.fault("depth_multiplier", f"the tensors have {multiplier_of(widths)}", multiplier)
    config.only("depth_divisible_by", 8)
    config.only("min_depth", 8)
    config.only("num_channels", 3)
    config.only("first_layer_is_expansion", True)
    if labels := shapes.get("classifier.weight"):
        config.classes(labels[0])
    options = {
        "multiplier": float(multiplier),
        "expand_ratio": float(config.get("expand_ratio", 6.0)),
        "output_stride": config.get("output_stride", 32),
        "tf_padding": config.get("tf_padding", True),
        "activation": config.activation("hidden_act", "relu6"),
        "norm_eps": config.get("layer_norm_eps", 1e-3),
        "image_size": config.sides("image_size", 224, None),
    }
    config.check()
    return options | normalisation(config.path)


FAMILY = Family(
    name="mobilenetv2",
    told="MobileNet-V2 under Hugging Face's names: google/mobilenet_v2_1.0_224 ...",
    variants={name: Model("mobilenetv2", variant=name) for name in VARIANTS},
    rows=rows,
    model_of=model_of,
    original="convert.originals.mobilenetv2",
    prepared=prepared,
    in_modules=in_modules,
    model_types=("mobilenet_v2",),
    configured=configured,
    untold=lambda model: UNTOLD,
    dropped=((r"classifier\..*", "features alone were asked for, --set num_classes=0"),),
)
