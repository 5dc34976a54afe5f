"""LaDeDa, of any receptive field and width: WildRF_LaDeDa.pth, ForenSynth_LaDeDa.pth, ..."""

from convert.families.vit import depth
from convert.family import ConvertError, Family, Shapes, nearest
from convert.table import Row, batch_norm, conv, linear
from kdjax.config import Model
from kdjax.models.layers.preprocess import PREPROCESSES
from kdjax.models.vision.ladeda import FIELDS, VARIANTS

UNTOLD = ("pooling", "mean", "std")
SPELLINGS = {"preprocess": {"NPR": "npr"}}  # as the original's own options have it


def rows(model: Model) -> tuple[Row, ...]:
    block = "layer{l}.{b}"
    return (
        *conv("conv1", "conv2", *(f"{block}.conv{i}" for i in (1, 2, 3)), f"{block}.downsample.0"),
        *batch_norm("bn1", *(f"{block}.bn{i}" for i in (1, 2, 3)), f"{block}.downsample.1"),
        *linear("fc"),
    )


def model_of(shapes: Shapes) -> Model:
    layers = [f"layer{i + 1}" for i in range(len(FIELDS))]
    wide = [shapes[f"{layer}.0.conv2.weight"][-1] == 3 for layer in layers]
    if wide not in [[True] * (i + 1) + [False] * (len(FIELDS) - i - 1) for i in range(len(FIELDS))]:
        raise ConvertError(f"its layers begin with kernels that give none of the receptive fields {FIELDS}")
    told = {
        "receptive_field": FIELDS[sum(wide) - 1],
        "widths": tuple(shapes[f"{layer}.0.conv2.weight"][0] for layer in layers),
        "depths": tuple(depth(shapes, layer) for layer in layers),
    }
    return Model("ladeda", **nearest("ladeda", VARIANTS, told), preprocess=None)


def hint(shapes: Shapes) -> str:
    return f", one of {', '.join(PREPROCESSES)}; or --images PHOTOGRAPHS, by which its running statistics tell it"


FAMILY = Family(
    name="ladeda",
    told="LaDeDa, detectors of generated images by their patches: WildRF_LaDeDa.pth, ForenSynth_LaDeDa.pth",
    variants={f"LaDeDa{field}": Model("ladeda", receptive_field=field) for field in FIELDS},
    rows=rows,
    model_of=model_of,
    original="convert.originals.ladeda",
    untold=lambda model: UNTOLD,
    spellings=SPELLINGS,
    told_by_photographs="preprocess",
    hint=hint,
)
