"""What a config.json beside the weights says is followed, checked against the tensors, or refused by name."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from convert import config_json, families, verify
from convert.__main__ import main
from convert.family import Converted, ConvertError, build, fit
from convert.onto import read
from convert.sources import SourceError, open_source
from kdjax.config import Model
from kdjax.models.layers.activation import ACTIVATIONS
from tests.support.quick import QUICK

VIT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 6, "intermediate_size": 48}
VIT |= {"image_size": 32, "num_labels": 3, "hidden_act": "relu", "layer_norm_eps": 1e-3}
MIT = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [2, 4, 6, 16]}
MIT |= {"sr_ratios": [4, 2, 2, 1], "mlp_ratios": [2, 2, 2, 2], "decoder_hidden_size": 12, "num_labels": 3}
MIT |= {"hidden_act": "gelu_new"}
SIZE = {"image_size": 40, "patch_size": 8}
SAM = {
    "vision_config": SIZE
    | {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "output_channels": 32}
    | {"window_size": 3, "global_attn_indexes": [1], "mlp_dim": 96, "num_pos_feats": 16, "layer_norm_eps": 1e-4},
    "prompt_encoder_config": SIZE | {"hidden_size": 32, "mask_input_channels": 8},
    "mask_decoder_config": {"hidden_size": 32, "mlp_dim": 48, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
}
NEXT = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1], "num_labels": 3, "hidden_act": "relu"}
NEXT |= {"layer_norm_eps": 1e-3, "image_size": 64}
SWIN = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4, "pretrained_window_sizes": [3, 2]}
SWIN |= {"image_size": 32, "num_labels": 3, "hidden_act": "relu"}
MOBILE = {"hidden_sizes": [8, 12, 16], "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32], "num_attention_heads": 2}
MOBILE |= {"expand_ratio": 2.5, "patch_size": 4, "hidden_act": "relu", "layer_norm_eps": 1e-3, "num_labels": 3}
NET = {"depth_multiplier": 0.1, "finegrained_output": False, "output_stride": 16, "tf_padding": False, "num_labels": 3}
NET |= {"hidden_act": "relu", "layer_norm_eps": 1e-5, "image_size": 64}
MODELS = {
    "swinv2_hf": lambda: transformers.Swinv2ForImageClassification(transformers.Swinv2Config(**SWIN)),
    "convnextv2_hf": lambda: transformers.ConvNextV2ForImageClassification(transformers.ConvNextV2Config(**NEXT)),
    "mobilenetv2": lambda: transformers.MobileNetV2ForImageClassification(transformers.MobileNetV2Config(**NET)),
    "mobilevit": lambda: transformers.MobileViTForImageClassification(transformers.MobileViTConfig(**MOBILE)),
    "vit_hf": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**VIT)),
    "segformer": lambda: transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(**MIT)),
    "sam_hf": lambda: transformers.SamModel(transformers.SamConfig(**SAM)),
}
TOLD = {
    "swinv2_hf": {"window": 4, "pretrained_windows": (3, 2), "activation": "relu", "image_size": 32, "heads": (2, 4)},
    "convnextv2_hf": {"activation": "relu", "head_norm_eps": 1e-3, "image_hw": (64, 64)},
    "mobilenetv2": {"multiplier": 0.1, "full_last": False, "output_stride": 16, "tf_padding": False}
    | {"activation": "relu", "norm_eps": 1e-5, "image_hw": (64, 64)},
    "mobilevit": {"heads": 2, "expand_ratio": 2.5, "patch_size": 4, "activation": "relu", "norm_eps": 1e-3},
    "vit_hf": {"heads": 6, "activation": "relu", "norm_eps": 1e-3, "image_hw": (32, 32)},
    "segformer": {"heads": (2, 4, 6, 16), "activation": "gelu_tanh", "dims": (8, 16, 24, 32)},
    "sam_hf": {"heads": 4, "norm_eps": 1e-4, "decoder_heads": 2, "decoder_norm_eps": 1e-6, "global_blocks": (1,)},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """name -> what transformers saves, with weights that leave nothing at zero."""
    made = {}
    for name, make in MODELS.items():
        torch.manual_seed(0)
        module, made[name] = make(), tmp_path_factory.mktemp(name)
        with torch.no_grad():
            for key, x in module.state_dict().items():
                if x.is_floating_point():
                    x.copy_(torch.rand(x.shape) if key.endswith("var") else 0.3 * torch.randn(x.shape))
        module.save_pretrained(made[name])
    return made


def copied(folder: Path, into: Path, **changed: Any) -> Path:
    """The folder with another config.json."""
    (into / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    config = json.loads((folder / "config.json").read_text())
    for name, value in changed.items():
        part, _, inner = name.rpartition("__")
        (config[part] if part else config)[inner] = value
    (into / "config.json").write_text(json.dumps(config))
    return into


def converted(name: str, folder: Path, **options: Any) -> Converted:
    return fit(families.get(name), open_source(folder), options)


@pytest.mark.parametrize("name", MODELS)
def test_options_are_the_configs(folders, name):
    found = converted(name, folders[name])
    options = build(found.model).options
    assert {option: getattr(options, option) for option in TOLD[name]} == TOLD[name]
    assert not found.assumed.keys() & TOLD[name].keys()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("vit_hf", {"heads": 3}),
        pytest.param("swinv2_hf", {"pretrained_windows": (4, 2)}, marks=pytest.mark.long),
        pytest.param("segformer", {"heads": (1, 2, 3, 4)}, marks=pytest.mark.long),
        pytest.param("sam_hf", {"decoder_norm_eps": 1e-5}, marks=pytest.mark.long),
    ],
)
def test_the_original_is_built_by_the_config_and_not_by_our_guess(folders, name, wrong):
    found = converted(name, folders[name])
    arrays, variables = verify.original_tensors(found), read(found.variables)

    def compared(model: Model) -> verify.Difference:
        return verify.worst(verify.verify(found.family, model, arrays, variables, QUICK, found.config))

    assert compared(found.model).same
    assert not compared(converted(name, folders[name], **wrong).model).same


@pytest.mark.parametrize("name", config_json.ACTIVATIONS)
def test_activations_are_those_of_transformers(name):
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    expected = transformers.activations.ACT2FN[name](torch.from_numpy(x)).numpy()
    found = ACTIVATIONS[config_json.ACTIVATIONS[name]](jnp.asarray(x))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_without_a_config_what_no_tensor_tells_is_assumed(folders, tmp_path):
    (tmp_path / "model.safetensors").write_bytes((folders["vit_hf"] / "model.safetensors").read_bytes())
    found = converted("vit_hf", tmp_path, heads=3)
    assert found.config is None
    assert found.assumed == {"norm_eps": 1e-12, "activation": "gelu", "mean": (0.5,) * 3, "std": (0.5,) * 3}
    (tmp_path / "config.json").write_text('{"stages": {}}')  # of something else
    assert converted("vit_hf", tmp_path, heads=3).assumed == found.assumed


def test_options_given_by_hand_come_last(folders):
    assert build(converted("vit_hf", folders["vit_hf"], heads=3).model).options.heads == 3


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("vit_hf", {"hidden_act": "mish"}, 'hidden_act: kdjax has gelu, .*, found "mish"'),
        ("vit_hf", {"num_hidden_layers": 4}, "num_hidden_layers: the tensors have 2, found 4"),
        ("vit_hf", {"image_size": 64}, "image_size: the tensors have 32, found 64"),
        ("vit_hf", {"patch_size": [16, 8]}, r"patch_size: the tensors have 16, found \[16, 8\]"),
        ("vit_hf", {"num_attention_heads": "six"}, 'num_attention_heads: expected a value such as 12, found "six"'),
        ("vit_hf", {"layer_norm_eps": -1}, "layer_norm_eps: expected a value such as 1e-12, found -1"),
        ("vit_hf", {"id2label": {"0": "a"}}, "id2label: the tensors have 3 labels, found 1"),
        ("convnextv2_hf", {"patch_size": 2}, "patch_size: the tensors have 4, found 2"),
        ("convnextv2_hf", {"num_stages": 3}, "num_stages: kdjax computes it as 4 alone, found 3"),
        ("convnextv2_hf", {"depths": [1, 1, 3, 1]}, r"depths: the tensors have \[1, 1, 1, 1\], found \[1, 1, 3, 1\]"),
        ("mobilenetv2", {"depth_multiplier": 0.7}, r"depth_multiplier: the tensors have 0\.\d+, found 0\.7"),
        ("mobilenetv2", {"first_layer_is_expansion": False}, "first_layer_is_expansion: kdjax computes it as true"),
        ("mobilenetv2", {"min_depth": 16}, "min_depth: kdjax computes it as 8 alone, found 16"),
        ("mobilevit", {"output_stride": 16}, "output_stride: kdjax computes it as 32 alone, found 16"),
        ("mobilevit", {"conv_kernel_size": 5}, "conv_kernel_size: kdjax computes it as 3 alone"),
        ("mobilevit", {"hidden_sizes": [8, 12, 8]}, r"hidden_sizes: the tensors have \[8, 12, 16\], found"),
        ("swinv2_hf", {"num_heads": [2, 2]}, r"num_heads: the tensors have \[2, 4\], found \[2, 2\]"),
        ("swinv2_hf", {"use_absolute_embeddings": True}, "use_absolute_embeddings: kdjax computes it as false alone"),
        ("swinv2_hf", {"window_size": 0}, "window_size: expected a value such as 7, found 0"),
        ("segformer", {"strides": [4, 2, 2, 1]}, r"strides: kdjax computes it as \[4, 2, 2, 2\] alone"),
        ("segformer", {"mlp_ratios": [2, 2, 4, 2]}, "mlp_ratios: the tensors have"),
        ("sam_hf", {"mask_decoder_config__hidden_act": "gelu"}, r'mask_decoder_config\.hidden_act: .*as "relu" alone'),
        ("sam_hf", {"vision_config__window_size": 2**30}, r"vision_config\.window_size, .*windows of \[3, 5\]"),
        ("sam_hf", {"vision_config": [1]}, "vision_config: expected a value such as {}"),
        ("sam_hf", {"mask_decoder_config__attention_downsample_rate": 4}, "attention_downsample_rate"),
    ],
)
def test_what_our_model_cannot_say_is_refused_by_name(folders, name, changed, said, tmp_path):
    with pytest.raises(SourceError, match=said):
        converted(name, copied(folders[name], tmp_path, **changed))


def test_a_config_of_another_model_is_refused(folders, tmp_path, capsys):
    folder = copied(folders["vit_hf"], tmp_path, model_type="dinov2")
    with pytest.raises(ConvertError, match="says model_type 'dinov2', expected 'vit' or 'deit'"):
        converted("vit_hf", folder)
    assert main(["inspect", str(folder)]) == 0
    assert "model_type 'dinov2'" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"model_type": "vit", "a": ' + "[" * 100_000])
def test_a_config_that_is_no_json_is_refused(folders, text, tmp_path):
    copied(folders["vit_hf"], tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(SourceError, match=r"config\.json: no whole JSON file"):
        converted("vit_hf", tmp_path)


def test_code_that_a_config_names_is_not_looked_at(folders, tmp_path, capsys):
    """Of `auto_map` transformers would import a module of the folder, if it was trusted."""
    folder = copied(folders["vit_hf"], tmp_path, auto_map={"AutoConfig": "own.Config", "AutoModel": "own.Model"})
    (folder / "own.py").write_text("raise SystemExit('code was run')")
    dst = tmp_path / "w.safetensors"
    assert main(["vit_hf", "--src", str(folder), "--dst", str(dst)]) == 0
    assert main(["verify", "vit_hf", "--src", str(folder), "--weights", str(dst)]) == 0
    assert f"the original is built as {folder / 'config.json'} describes it" in capsys.readouterr().out


def test_normalisation_is_the_preprocessors(folders, tmp_path):
    folder = copied(folders["vit_hf"], tmp_path)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]})
    )
    options = build(converted("vit_hf", folder).model).options
    assert (options.mean, options.std) == ((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, 0.2], "image_std": ["x", 1, 1]}))
    assert set(converted("vit_hf", folder).assumed) == {"mean", "std"}


def test_mobilevits_images_are_turned_and_not_normalised(folders, tmp_path):
    """Whatever mean stands in a file that does not say that it counts; images that are not turned are refused."""
    folder = copied(folders["mobilevit"], tmp_path)
    about = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "do_flip_channel_order": True}

    def normal(**more: Any) -> tuple[Any, Any]:
        (folder / "preprocessor_config.json").write_text(json.dumps(about | more))
        options = build(converted("mobilevit", folder).model).options
        return options.mean, options.std

    assert normal() == normal(do_normalize=None) == ((0.0,) * 3, (1.0,) * 3)
    assert normal(do_normalize=True) == ((0.5,) * 3, (0.5,) * 3)
    with pytest.raises(
        SourceError, match=r"preprocessor_config\.json .*\n.*do_flip_channel_order: .* true alone, found"
    ):
        normal(do_flip_channel_order=False)


def test_half_precision_is_told_as_cast(folders, tmp_path):
    """The original is built in float32 whatever the config says, of tensors in float32."""
    folder = copied(folders["vit_hf"], tmp_path, torch_dtype="bfloat16", dtype="bfloat16")
    module = transformers.ViTForImageClassification.from_pretrained(folder).bfloat16()
    module.save_pretrained(folder)
    found = converted("vit_hf", folder)
    assert len(found.cast) == len(found.tensors)
    variables = {"params": found.variables["params"]}
    arrays = verify.original_tensors(found)
    assert verify.worst(verify.verify(found.family, found.model, arrays, read(variables), QUICK, found.config)).same
