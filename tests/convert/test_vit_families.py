"""What TinyUSFM, USFM, ViT and DeiT have of their own: names that files differ in, and what no shape tells."""

import importlib
from typing import Any

import jax
import numpy as np
import pytest
import torch

from convert import families
from convert.__main__ import main
from convert.export import export_file
from convert.families import vit_hf
from convert.family import ConvertError, build, fit
from convert.originals import vit as timm
from convert.originals import vit_hf as transformers
from convert.sources import Tensor, open_source
from kdjax.config import Model

SMALL = {"dim": 96, "heads": 6, "depth": 4, "taps": (0, 1, 2, 3)}  # TinyUSFM nano's


def tensor(array) -> Tensor:
    array = np.asarray(array, np.float32)
    return Tensor("", array.shape, array.dtype, lambda: array)


def state(module: torch.nn.Module, at: str = "") -> dict[str, Tensor]:
    made = {name: x for name, x in module.state_dict().items() if not name.endswith("relative_position_index")}
    return {at + name: tensor(x.numpy()) for name, x in made.items()}


def original(family: str, name: str, **options) -> torch.nn.Module:
    return importlib.import_module(families.get(family).original).build(Model(name, **options))


def variables(converted) -> dict[str, np.ndarray]:
    return {slot.target: converted.leaf(slot) for slot in converted.slots}


def equal(found, expected):
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("at", ["", "model.", "module.model.", "backbone."])
@pytest.mark.parametrize("name", ["tinyusfm", "tinyusfm_cls"])
def test_tinyusfm_under_any_prefix(name, at):
    family, module = families.get("tinyusfm"), original("tinyusfm", name, **SMALL, image_size=32)
    found = fit(family, state(module, at))
    assert build(found.model).options == build(Model(name, variant="nano", image_size=32)).options
    equal(variables(found), variables(fit(family, state(module))))


def test_tinyusfm_goes_out_as_the_official_file_is(tmp_path):
    family, model = families.get("tinyusfm"), Model("tinyusfm", variant="nano", image_size=32)
    converted = fit(family, state(original("tinyusfm", "tinyusfm", **SMALL, image_size=32)))
    leaves = jax.tree.map(lambda leaf: leaf.read(), converted.variables)
    export_file(family, model, leaves, tmp_path / "TinyUSFM.pth")
    assert all(name.startswith("model.") for name in open_source(tmp_path / "TinyUSFM.pth"))


def test_of_two_norms_one_is_read():
    family = families.get("tinyusfm")
    for name, other in (("tinyusfm", "fc_norm"), ("tinyusfm_cls", "norm")):
        module = original("tinyusfm", name, **SMALL, image_size=32)
        extra = {f"{other}.weight": tensor(np.ones(96)), f"{other}.bias": tensor(np.ones(96))}
        found = fit(family, {**state(module), **extra})
        assert set(found.dropped) == set(extra)
        equal(variables(found), variables(fit(family, state(module))))


def test_a_timm_classifier_is_a_tinyusfm_that_reads_the_class_token():
    module = timm.build(Model("vit", **SMALL, image_size=32, num_classes=3))
    found = fit(families.get("tinyusfm"), state(module)).model
    assert (found.name, found.options["pool"], found.options["num_classes"]) == ("tinyusfm_cls", "token", 3)


def test_what_no_shape_tells_has_to_be_given():
    options = {"dim": 80, "heads": 5, "depth": 5, "taps": (0, 1, 2, 4), "image_size": (32, 64)}
    module = original("tinyusfm", "tinyusfm_seg", **options)
    with pytest.raises(ConvertError, match="image_size, heads, taps of this tinyusfm_seg; add --set image_size="):
        fit(families.get("tinyusfm"), state(module))
    given = {name: options[name] for name in ("heads", "taps", "image_size")}
    found = fit(families.get("tinyusfm"), state(module), given)
    assert build(found.model) == build(Model("tinyusfm_seg", **options))


def test_positions_that_are_no_square_are_not_resized():
    checkpoint = state(timm.build(Model("vit", **SMALL, image_size=(32, 64))))
    found = fit(families.get("vit"), checkpoint, {"heads": 6, "image_size": 64})
    (slot,) = (slot for slot in found.slots if slot.target == "params/pos_embed")
    with pytest.raises(ConvertError, match="8 patches, no square"):
        found.leaf(slot)


def test_features_alone_of_a_classifier():
    module = timm.build(Model("vit", **SMALL, image_size=32, num_classes=3))
    found = fit(families.get("vit"), state(module), {"heads": 6, "num_classes": 0})
    assert set(found.dropped) == {"head.weight", "head.bias"}


@pytest.mark.parametrize("at", ["", "transformer."])
def test_usfm_expands_the_table_that_its_blocks_share(at):
    family = families.get("usfm")
    options = {"dim": 48, "heads": 4, "depth": 2, "taps": (1,), "image_size": 48}
    own = state(original("usfm", "usfm", **options))
    table = tensor(np.random.default_rng(0).normal(size=(28, 4)))
    tables = [name for name in own if "table" in name]
    expected = variables(fit(family, own | dict.fromkeys(tables, table), {"heads": 4}))
    shared = {name: x for name, x in own.items() if name not in tables}
    shared |= {"rel_pos_bias.relative_position_bias_table": table, "mask_token": tensor(np.ones((1, 1, 48)))}
    found = fit(family, {at + name: x for name, x in shared.items()}, {"heads": 4})
    equal(variables(found), expected)
    assert len(tables) == 2
    assert set(found.dropped) == {"rel_pos_bias.relative_position_bias_table", "mask_token"}
    with pytest.raises(ConvertError, match=r"and blocks\.0\.attn\.relative_position_bias_table too"):
        fit(family, shared | own, {"heads": 4})


def test_usfm_without_scales_and_biases():
    options = {"dim": 48, "heads": 4, "depth": 2, "taps": (0, 1), "image_size": 48}
    options |= {"layer_scale": 0.0, "qkv_bias": False}
    found = fit(families.get("usfm"), state(original("usfm", "usfm", **options)), {"heads": 4})
    assert build(found.model) == build(Model("usfm", **options))


@pytest.mark.parametrize("options", [{}, {"distilled": True}, {"num_classes": 0}])
def test_hugging_face_names_of_any_version(options, tmp_path):
    """What its modules are called now, what save_pretrained writes, and the class it is read back by."""
    options = {**SMALL, "num_classes": 3, "image_size": 32, "norm_eps": 1e-12, **options}
    module: Any = transformers.build(Model("vit", **options))
    family = families.get("vit_hf")
    expected = variables(fit(family, state(module), {"heads": 6}))
    modules = {name: tensor(x.detach().numpy()) for name, x in module.named_parameters()}
    equal(variables(fit(family, modules, {"heads": 6})), expected)
    assert {vit_hf.in_files(name) for name in modules} == set(module.state_dict())

    plain = type(module)(module.config)  # without our names
    plain.load_state_dict(dict(module.named_parameters()), strict=False)
    plain.save_pretrained(tmp_path)
    equal(variables(fit(family, open_source(tmp_path), {"heads": 6})), expected)
    assert set(module.state_dict()) <= set(open_source(tmp_path))


def test_a_pooler_is_left_out():
    module = transformers.build(Model("vit", **SMALL, num_classes=0, image_size=32, norm_eps=1e-12))
    pooler = {"pooler.dense.weight": tensor(np.ones((96, 96))), "pooler.dense.bias": tensor(np.ones(96))}
    assert set(fit(families.get("vit_hf"), {**state(module), **pooler}, {"heads": 6}).dropped) == set(pooler)


def test_what_transformers_does_not_have():
    with pytest.raises(ConvertError, match="reads the class token"):
        families.get("vit_hf").rows(Model("vit", pool="mean"))
    model = Model("vit", **SMALL, distilled=True, num_classes=3, image_size=32)
    two = state(transformers.build(model))
    one = {name.removeprefix("cls_"): x for name, x in two.items() if not name.startswith("distillation_classifier")}
    with pytest.raises(ConvertError, match=r"one head \(DeiTForImageClassification\).*save its `deit` module"):
        fit(families.get("vit_hf"), one)


def test_inspect_names_every_family_that_a_vit_fits(tmp_path, capsys):
    module = timm.build(Model("vit", variant="vit_ti16", depth=2, taps=(0, 1), image_size=32, num_classes=3))
    torch.save(module.state_dict(), tmp_path / "vit.pth")
    assert main(["inspect", str(tmp_path / "vit.pth")]) == 0
    told = [line.partition(" (")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("looks like")]
    assert told == ["looks like tinyusfm: tinyusfm_cls", "looks like vit: vit"]
