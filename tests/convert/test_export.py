"""What goes back to PyTorch is what PyTorch's own classes load, with all that the source had beside its tensors."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from convert import families
from convert.__main__ import main
from convert.export import export_file
from convert.family import ConvertError, fit
from convert.onto import read
from convert.sources import open_source
from tests.convert.test_config_json import MODELS, VIT
from tests.convert.test_families import CASES, original

DEIT = {name: x for name, x in VIT.items() if name != "num_labels"} | {"num_labels": 4}
MOBILE = ("mobilenetv2", "mobilevit")  # which take seconds
MADE = {name: make for name, make in MODELS.items() if name not in MOBILE} | {
    "convnextv2_hf features": lambda: transformers.ConvNextV2Model(MODELS["convnextv2_hf"]().config),
    "vit_hf distilled": lambda: transformers.DeiTForImageClassificationWithTeacher(transformers.DeiTConfig(**DEIT)),
    "vit_hf features": lambda: transformers.ViTModel(transformers.ViTConfig(**VIT), add_pooling_layer=False),
    "segformer encoder": lambda: transformers.SegformerModel(MODELS["segformer"]().config),
}
DINO = {name: x for name, x in VIT.items() if name != "intermediate_size"} | {"patch_size": 8}
LATER = {name: MODELS[name] for name in MOBILE} | {
    "mobilenetv2 features": lambda: transformers.MobileNetV2Model(MODELS["mobilenetv2"]().config),
    "mobilevit features": lambda: transformers.MobileViTModel(MODELS["mobilevit"]().config),
    "dinov2_hf": lambda: transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**DINO)),
    "dinov2_hf registers": lambda: transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(**DINO)
    ),
}


@pytest.mark.parametrize("name", [*MADE, *(pytest.param(name, marks=pytest.mark.long) for name in LATER)])
def test_transformers_loads_what_is_exported(name, tmp_path):
    """The module by load_state_dict(strict=True) of the .pth, and the folder by from_pretrained of the .safetensors."""
    module, family = (MADE | LATER)[name](), families.get(name.partition(" ")[0])
    with torch.no_grad():
        for key, x in module.state_dict().items():
            if x.is_floating_point() and not key.endswith("mask_token"):  # made anew: zeros
                x.copy_(torch.randn(x.shape))
    (tmp_path / "source").mkdir()
    module.save_pretrained(tmp_path / "source")
    converted = fit(family, open_source(tmp_path / "source"))
    variables = read(converted.variables)

    export_file(family, converted.model, variables, tmp_path / "back.pth")
    options = {"add_pooling_layer": False} if name == "vit_hf features" else {}
    again: Any = type(module)(module.config, **options)
    again.load_state_dict(torch.load(tmp_path / "back.pth", weights_only=True), strict=True)
    equal(again, module)

    folder = tmp_path / "folder"
    folder.mkdir()
    module.config.save_pretrained(folder)
    export_file(family, converted.model, variables, folder / "model.safetensors")
    loaded, about = type(module).from_pretrained(folder, output_loading_info=True, **options)
    assert not about["missing_keys"]
    assert not about["unexpected_keys"]
    equal(loaded, module)


def equal(found: torch.nn.Module, expected: torch.nn.Module) -> None:
    state = expected.state_dict()
    assert found.state_dict().keys() == state.keys()
    for name, x in found.state_dict().items():
        assert torch.equal(x, state[name]), name


def test_names_of_an_older_transformers(tmp_path, monkeypatch):
    """Whose modules are called as in files."""
    monkeypatch.setattr("convert.export.transformers_version", lambda: 4)
    family, module = families.get("vit_hf"), MODELS["vit_hf"]()
    module.save_pretrained(tmp_path)
    converted = fit(family, open_source(tmp_path))
    export_file(family, converted.model, read(converted.variables), tmp_path / "back.pth")
    assert torch.load(tmp_path / "back.pth").keys() == dict(open_source(tmp_path / "model.safetensors")).keys()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_threshold_and_what_was_counted_come_back(suffix, tmp_path, capsys):
    state = original(CASES["can_vgae"]).state_dict()
    for i, name in enumerate(name for name in state if name.endswith("num_batches_tracked")):
        state[name].fill_(1000 + i)
    torch.save({"state_dict": state, "threshold": 0.1234567890123}, tmp_path / "best.pth")
    weights, back = tmp_path / "vgae.safetensors", tmp_path / f"back{suffix}"
    assert main(["can_vgae", "--src", str(tmp_path / "best.pth"), "--dst", str(weights)]) == 0
    assert main(["export", "can_vgae", "--weights", str(weights), "--dst", str(back)]) == 0
    source = open_source(back)
    assert source.keys() == state.keys()
    assert all(np.array_equal(source[name].read(), x.numpy()) for name, x in state.items())
    if suffix == ".pth":
        found = torch.load(back, weights_only=True)
        assert found.keys() == {"state_dict", "threshold"}
        assert found["threshold"] == 0.1234567890123
        original(CASES["can_vgae"]).load_state_dict(found["state_dict"], strict=True)
        assert "load_state_dict(torch.load(PATH)['state_dict'], strict=True)" in capsys.readouterr().out
    else:
        assert source.metadata["threshold"] == "0.1234567890123"


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[1]", "3", "[" * 100_000, '{"x": 3}'),
        *(f'{{"encoder_bns.0.num_batches_tracked": {count}}}' for count in ('"many"', "[1]", "1e400", 2**70)),
    ],
)
def test_counts_that_are_none_are_refused(text, tmp_path):
    case, family = CASES["can_vgae"], families.get("can_vgae")
    torch.save(original(case).state_dict(), tmp_path / "a.pth")
    converted = fit(family, open_source(tmp_path / "a.pth"))
    with pytest.raises(ConvertError, match="num_batches_tracked"):
        export_file(
            family, converted.model, read(converted.variables), tmp_path / "b.pth", {"num_batches_tracked": text}
        )
    assert not (tmp_path / "b.pth").exists()
