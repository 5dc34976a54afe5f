"""Files of the published MobileViTs and MobileNet-V2s: each fits its variant; what fits none is refused in words."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from convert import families
from convert.family import Converted, ConvertError, build, fit
from convert.originals import mobilenetv2, mobilevit
from convert.sources import Tensor
from kdjax.config import Model
from kdjax.models.vision import mobilenet
from kdjax.models.vision import mobilevit as vit

KINDS: dict[str, Any] = {
    "mobilevit": (mobilevit, transformers.MobileViTForImageClassification),
    "mobilenetv2": (mobilenetv2, transformers.MobileNetV2ForImageClassification),
}
PARAMETERS = {"mobilevit": vit.PARAMETERS, "mobilenetv2": mobilenet.PARAMETERS}


def state(model: Model) -> dict[str, torch.Tensor]:
    """Of transformers' module, without numbers."""
    original, kind = KINDS[model.name]
    with torch.device("meta"):
        return kind(original.described(original.guess(build(model)), {})).state_dict()


def fitted(name: str, tensors: dict[str, torch.Tensor]) -> Converted:
    kept = {key: tuple(x.shape) for key, x in tensors.items() if not key.endswith("num_batches_tracked")}
    return fit(families.get(name), {key: Tensor(key, shape, np.dtype("float32"), list) for key, shape in kept.items()})


@pytest.mark.long
@pytest.mark.parametrize(("name", "variant"), [(name, variant) for name in KINDS for variant in PARAMETERS[name]])
def test_files_of_every_variant_fit(name, variant):
    """Which have as many parameters as published, and so have ours: every tensor has its place."""
    tensors = state(Model(name, variant=variant))
    counted = [x.numel() for key, x in tensors.items() if key.endswith(("weight", "bias"))]
    assert sum(counted) == PARAMETERS[name][variant]
    assert fitted(name, tensors).model.options == {"variant": variant, "num_classes": 1000}


def test_widths_that_no_multiplier_makes_are_refused():
    tensors = state(Model("mobilenetv2", multiplier=0.1, num_classes=2))
    tensors["mobilenet_v2.layer.3.reduce_1x1.convolution.weight"] = torch.empty((72, 48, 1, 1), device="meta")
    with pytest.raises(
        ConvertError, match=r"widths \(8, 8, .*72.*\) are no multiple, rounded to eights, of \(32, 16, 24"
    ):
        fitted("mobilenetv2", tensors)


def test_a_segmenter_without_a_last_map_is_refused():
    tensors = state(Model("mobilevit", dims=(4, 4, 4), widths=(8,) * 7, num_classes=2))
    tensors = {key: x for key, x in tensors.items() if "conv_1x1_exp" not in key}
    with pytest.raises(ConvertError, match=r"there is no 'mobilevit\.conv_1x1_exp\.convolution\.weight'"):
        fitted("mobilevit", tensors)
