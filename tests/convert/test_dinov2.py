"""Files of DINOv2: what their config.json tells, what is refused, and names that DeiT-3's own files have."""

import json
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from convert import families, verify
from convert.__main__ import main
from convert.family import ConvertError, build, fit
from convert.onto import read
from convert.originals import dinov2_hf, vit
from convert.sources import SourceError, Tensor, open_source
from kdjax.config import ConfigError, Model
from tests.support.quick import QUICK
from tests.support.twins import randomised

SMALL: dict[str, Any] = {"variant": "dinov2_s14", "dim": 24, "heads": 3, "depth": 2, "taps": (0, 1), "image_size": 56}
THEIRS = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 14, "image_size": 56}


def state(module: torch.nn.Module) -> dict[str, Tensor]:
    tensors = {name: x.detach().numpy() for name, x in module.state_dict().items()}
    return {name: Tensor("", x.shape, x.dtype, lambda x=x: x) for name, x in tensors.items()}


@pytest.fixture
def folder(tmp_path):
    """What transformers saves of a classifier with registers; nothing in it is the family's usual value."""
    config = transformers.Dinov2WithRegistersConfig(
        **THEIRS, num_register_tokens=2, hidden_act="relu", layer_norm_eps=1e-3, num_labels=3, mlp_ratio=2
    )
    randomised(transformers.Dinov2WithRegistersForImageClassification(config)).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.long
def test_a_folder_of_transformers_comes_in_and_is_proved(folder, capsys):
    found = fit(families.get("dinov2_hf"), open_source(folder))
    ours = build(found.model)
    o = ours.options
    assert (o.heads, o.activation, o.norm_eps, o.registers, o.pool) == (3, "relu", 1e-3, 2, "token_mean")
    assert (o.mlp_ratio, o.image_hw, ours.num_classes) == (2.0, (56, 56), 3)
    assert set(found.assumed) == {"mean", "std"}
    dst = folder / "w.safetensors"
    assert main(["dinov2_hf", "--src", str(folder), "--dst", str(dst)]) == 0
    check = ["verify", "dinov2_hf", "--src", str(folder), "--weights", str(dst)]
    assert main(check) == 0
    assert "the original is built as" in capsys.readouterr().out
    assert main([*check, "--set", "merge=4", "taps=()"]) == 2
    assert "the original merges no tokens; compare with merge=0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"use_swiglu_ffn": True}, "use_swiglu_ffn: kdjax computes it as false alone, found true"),
        ({"num_register_tokens": 4}, "num_register_tokens: the tensors have 2, found 4"),
        ({"model_type": "vit"}, "says model_type 'vit', expected 'dinov2' or 'dinov2_with_registers'"),
    ],
)
def test_a_config_that_does_not_fit(folder, told, said):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | told))
    with pytest.raises((ConvertError, SourceError), match=said):
        fit(families.get("dinov2_hf"), open_source(folder))


def test_what_is_refused_says_where_to_go():
    tensors = state(vit.build(Model("vit", **SMALL, num_classes=0)))
    plain = {name: x for name, x in tensors.items() if ".ls" not in name}
    with pytest.raises(ConvertError, match="it has no LayerScale, as DINOv2 has; use the family vit"):
        fit(families.get("dinov2"), plain)
    giant = tensors | {"blocks.0.mlp.w12.weight": tensors["blocks.0.mlp.fc1.weight"]}
    with pytest.raises(ConvertError, match="it has SwiGLU, as in the giant of DINOv2, which this family has not"):
        fit(families.get("dinov2"), giant)
    for options in ({"pool": "token", "num_classes": 3}, {"class_position": False, "num_classes": 0}):
        with pytest.raises(ConvertError, match="its classifier reads pool='token_mean', found pool='token'"):
            families.get("dinov2_hf").rows(Model("vit", **SMALL, **options))
    for original in (vit, dinov2_hf):
        with pytest.raises(ConfigError, match="the original merges no tokens; compare with merge=0"):
            original.build(Model("vit", **SMALL | {"taps": ()}, num_classes=0, merge=2))


@pytest.mark.long
def test_deit_3_under_its_own_names():
    module = randomised(vit.build(Model("vit", **SMALL, num_classes=3, class_position=False)))
    names = {"ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2"}
    tensors = {name.replace(end := name[-9:], names.get(end, end)): x for name, x in state(module).items()}
    assert "blocks.1.gamma_2" in tensors
    given = {"heads": 3, "class_position": False, "image_size": 56, "taps": (0, 1)}
    with pytest.raises(ConvertError, match="16 positions are a square, the class token has none, as in FlexiViT"):
        fit(families.get("dinov2"), tensors)
    found = fit(families.get("dinov2"), tensors, given)
    arrays = {name: np.asarray(x.read()) for name, x in state(module).items()}
    differences = verify.verify(families.get("dinov2"), found.model, arrays, read(found.variables), QUICK)
    assert verify.worst(differences).same
