"""Tiny-LaDeDa: WildRF_Tiny_LaDeDa.pth, ForenSynth_Tiny_LaDeDa.pth, and others of its shape."""

from dataclasses import replace

from convert.families import ladeda
from convert.family import Shapes
from convert.table import Row, batch_norm, conv, linear
from kdjax.config import Model


def rows(model: Model) -> tuple[Row, ...]:
    return (
        *conv("conv1", "conv2", "layer1.0.conv1", "layer1.0.conv2"),
        *batch_norm("bn1", "layer1.0.bn1", "layer1.0.bn2"),
        *linear("fc"),
    )


def model_of(shapes: Shapes) -> Model:
    width = shapes["conv1.weight"][0]
    return Model("tiny_ladeda", **({"width": width} if width != 8 else {}), preprocess=None)


FAMILY = replace(
    ladeda.FAMILY,
    name="tiny_ladeda",
    told="Tiny-LaDeDa, 1,297 parameters: WildRF_Tiny_LaDeDa.pth, ForenSynth_Tiny_LaDeDa.pth",
    variants={"Tiny-LaDeDa": Model("tiny_ladeda")},
    rows=rows,
    model_of=model_of,
)
