"""What ConvNeXt-V2's files differ in among themselves: their authors' names, and layers that timm has as
convolutions."""

import re

import numpy as np
import pytest

from convert import families
from convert.family import Converted, ConvertError, build, fit, leaves
from convert.sources import Tensor
from convert.table import slots
from kdjax.config import Model

FAMILY = families.get("convnextv2")
SMALL = {"dims": (8, 12, 16, 20), "depths": (1, 1, 1, 1), "num_classes": 3}
TIMMS = (  # timm's names -> those of the authors' files
    (r"stem\.", "downsample_layers.0."),
    (r"stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
    (r"stages\.(\d)\.blocks\.(\d)\.(?:mlp\.)?", r"stages.\1.\2."),
    (r"conv_dw", "dwconv"),
    (r"fc([12])", r"pwconv\1"),
    (r"grn\.weight", "grn.gamma"),
    (r"grn\.bias", "grn.beta"),
    (r"head\.norm", "norm"),
    (r"head\.fc", "head"),
)


def state(model: Model) -> dict[str, np.ndarray]:
    """Random, under timm's names."""
    draw = np.random.default_rng(0)
    shapes = {name: shape for slot in slots(FAMILY.rows(model), leaves(model)) for name, shape in slot.shapes.items()}
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def fitted(arrays: dict[str, np.ndarray], **options) -> Converted:
    return fit(FAMILY, {name: Tensor(name, x.shape, x.dtype, x.copy) for name, x in arrays.items()}, options)


def variables(converted: Converted) -> dict[str, np.ndarray]:
    return {slot.target: converted.leaf(slot) for slot in converted.slots}


def equal(found: Converted, expected: Converted) -> None:
    assert build(found.model) == build(expected.model)
    mine, theirs = variables(found), variables(expected)
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(x, theirs[name]) for name, x in mine.items())


@pytest.mark.parametrize("dims", [SMALL["dims"], (40, 12, 16, 20)])
def test_the_authors_names(dims):
    """They have linear layers in every variant, and the norm's parameters as maps."""
    arrays = state(Model("convnextv2", **SMALL | {"dims": dims}))
    theirs = {}
    for name, x in arrays.items():
        for ours, other in TIMMS:
            name = re.sub(ours, other, name)
        theirs[name] = x.reshape(1, 1, 1, -1) if ".grn." in name else x.reshape(x.shape[:2]) if "pwconv" in name else x
    assert theirs.keys() & arrays.keys() == set()
    equal(fitted(theirs), fitted(arrays))


def test_convolutions_and_linear_layers_are_one():
    arrays = state(Model("convnextv2", **SMALL))
    assert arrays["stages.0.blocks.0.mlp.fc1.weight"].shape == (32, 8)
    convolved = {name: x[..., None, None] if re.search(r"fc[12]\.weight", name) else x for name, x in arrays.items()}
    equal(fitted(convolved), fitted(arrays))
    name = "stages.0.blocks.0.mlp.fc1.weight"
    with pytest.raises(ConvertError, match=rf"shape of {name}: expected \[32, 8\], found \[32, 8, 3, 3\]"):
        fitted(convolved | {name: np.zeros((32, 8, 3, 3), np.float32)})


def test_a_block_that_is_missing_is_named():
    arrays = state(Model("convnextv2", **SMALL | {"depths": (1, 1, 3, 1)}))
    with pytest.raises(
        ConvertError, match=r"stages\.2\.blocks are numbered up to 2, and there is no stages\.2\.blocks\.1"
    ):
        fitted({name: x for name, x in arrays.items() if not name.startswith("stages.2.blocks.1.")})


def test_features_alone_of_a_classifier():
    found = fitted(state(Model("convnextv2", **SMALL)), num_classes=0)
    assert set(found.dropped) == {"head.fc.weight", "head.fc.bias"}


@pytest.mark.parametrize("name", ["stages.0.blocks.0.gamma", "stages.0.0.gamma"])
def test_the_first_version_is_refused(name):
    arrays = state(Model("convnextv2", **SMALL))
    with pytest.raises(ConvertError, match=rf"a ConvNeXt of the first version, with LayerScale.*: {name}"):
        fitted({n: x for n, x in arrays.items() if ".grn." not in n} | {name: np.ones(8, np.float32)})
