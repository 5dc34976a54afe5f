"""MobileViT under transformers' names: apple/mobilevit-xx-small, -x-small, -small."""

from collections.abc import Mapping
from typing import Any

from convert.config_json import Config, normalisation, preprocessing
from convert.families.vit import ratio
from convert.family import Family, Shapes, build, nearest
from convert.table import CONV, How, Row, batch_norm, conv, linear, norm, path
from kdjax.config import Model
from kdjax.models.vision.mobilevit import RESIDUALS, STAGES, VARIANTS

BASE = "mobilevit."  # before all names but the classifier's; a model without one goes without
ALONE = ("conv_stem.", "encoder.", "conv_1x1_exp.")  # what the names of such a model begin with
PARTS = ("expand_1x1", "conv_3x3", "reduce_1x1")  # of an inverted residual
LAYER = "encoder.layer.{i}"
BLOCK = f"{LAYER}.transformer.layer.{{j}}"
# The stem's kernel: the published weights see blue first, our images have red first.
FROM_BGR = How(
    "conv from BGR",
    lambda x: CONV.together(x)[:, :, ::-1],
    lambda leaf: CONV.apart(leaf[:, :, ::-1]),
    CONV.rank,
)
UNTOLD = ("heads", "patch_size", "activation", "norm_eps", "mean", "std")


def rows(model: Model) -> tuple[Row, ...]:
    residuals = [f"{at}.{part}" for at in (f"{LAYER}.layer.{{j}}", f"{LAYER}.downsampling_layer") for part in PARTS]
    around = [f"{LAYER}.{part}" for part in ("conv_kxk", "conv_projection", "fusion")]
    norms = [f"{BLOCK}.layernorm_before", f"{BLOCK}.layernorm_after", f"{LAYER}.layernorm"]
    dense = {f"attention.attention.{part}": f"attention.{part}" for part in ("query", "key", "value")}
    dense |= {f"{part}.dense": part for part in ("attention.output", "intermediate", "output")}
    layers = [*residuals, *around, "conv_1x1_exp"]
    return (
        Row((f"{BASE}conv_stem.convolution.weight",), "params/conv_stem/convolution/kernel", FROM_BGR),
        *(row for x in (*layers, f"{LAYER}.conv_1x1") for row in placed(conv, f"{x}.convolution")),
        *(row for x in ("conv_stem", *layers) for row in placed(batch_norm, f"{x}.normalization")),
        *(row for x in norms for row in placed(norm, x)),
        *(row for x, ours in dense.items() for row in placed(linear, f"{BLOCK}.{x}", f"{BLOCK}.{ours}")),
        *linear("classifier"),
    )


def placed(kind: Any, name: str, ours: str = "") -> tuple[Row, ...]:
    """Rows of a layer, ours at the same path or that of `ours`."""
    return kind(BASE + name, target=path(ours or name))


def prepared(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Of a model that was saved alone, under the names that it has in one with a classifier."""
    return {BASE + name if name.startswith(ALONE) else name: tensor for name, tensor in tensors.items()}


def in_modules(model: Model, name: str) -> str:
    return name if build(model).num_classes else name.removeprefix(BASE)


def model_of(shapes: Shapes) -> Model:
    """The published variant that is the nearest, and what differs from it."""
    options = nearest("mobilevit", VARIANTS, told(shapes))
    return Model("mobilevit", **options, num_classes=shapes.get("classifier.weight", (0,))[0])


def told(shapes: Shapes) -> dict[str, Any]:
    """What the shapes tell."""
    stages, transformers = range(STAGES), range(len(RESIDUALS), STAGES)
    at = [BASE + LAYER.format(i=i) for i in stages]
    ends = [f"{at[i]}.layer.{depth - 1}.reduce_1x1" for i, depth in enumerate(RESIDUALS)]
    ends = [f"{BASE}conv_stem", *ends, *(f"{at[i]}.fusion" for i in transformers), f"{BASE}conv_1x1_exp"]
    last = f"{at[-1]}.transformer.layer.0"
    wide, narrow = shapes[f"{at[-1]}.downsampling_layer.expand_1x1.convolution.weight"][:2]
    dims = tuple(shapes[f"{at[i]}.layernorm.weight"][0] for i in transformers)
    return {
        "dims": dims,
        "widths": tuple(shapes[f"{end}.convolution.weight"][0] for end in ends),
        "expand_ratio": ratio(narrow, wide),
        "mlp_ratio": ratio(dims[-1], shapes[f"{last}.intermediate.dense.weight"][0]),
        "qkv_bias": f"{last}.attention.attention.query.bias" in shapes,
    }


def configured(config: Config, shapes: Shapes) -> dict[str, Any]:
    tensors = told(shapes)
    config.agrees("hidden_sizes", (144, 192, 240), tensors["dims"])
    config.agrees("neck_hidden_sizes", (16, 32, 64, 96, 128, 160, 640), tensors["widths"])
    config.agrees("mlp_ratio", 2.0, tensors["mlp_ratio"])
    config.agrees("qkv_bias", True, tensors["qkv_bias"])
    config.only("num_channels", 3)
    config.only("conv_kernel_size", 3)
    config.only("output_stride", 32)
    if labels := shapes.get("classifier.weight"):
        config.classes(labels[0])
    options = {
        "expand_ratio": float(config.get("expand_ratio", 4.0)),
        "heads": config.get("num_attention_heads", 4),
        "patch_size": config.get("patch_size", 2),
        "activation": config.activation("hidden_act", "silu"),
        "norm_eps": config.get("layer_norm_eps", 1e-5),
        "image_size": config.sides("image_size", 256, None),
    }
    config.check()
    images = preprocessing(config.path)
    images.only("do_flip_channel_order", True)
    images.check()
    return options | normalisation(config.path, usual=False)


FAMILY = Family(
    name="mobilevit",
    told="MobileViT under Hugging Face's names: apple/mobilevit-xx-small, -x-small, -small",
    variants={name: Model("mobilevit", variant=name) for name in VARIANTS},
    rows=rows,
    model_of=model_of,
    original="convert.originals.mobilevit",
    prepared=prepared,
    in_modules=in_modules,
    model_types=("mobilevit",),
    configured=configured,
    untold=lambda model: UNTOLD,
    dropped=((r"classifier\..*", "features alone were asked for, --set num_classes=0"),),
)
