"""What a conversion says loudly, and where a hint leads."""

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from convert import families
from convert.__main__ import main
from convert.families.vit import antialiased, bicubic
from convert.originals import vit as timm
from kdjax.config import Model
from kdjax.weights import safetensors

TINY: dict[str, Any] = {"variant": "vit_ti16", "depth": 2, "taps": (0, 1), "image_size": 32, "num_classes": 3}


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    """Of timm's vit_tiny, with two blocks: three heads, which no tensor tells."""
    return timm.build(Model("vit", **TINY)).state_dict()


def run(capsys, *words: object) -> tuple[int, str]:
    """Exit code, and what it printed."""
    code = main(list(map(str, words)))
    return code, "".join(capsys.readouterr())


def saved(path: Path, tensors: dict) -> Path:
    torch.save(tensors, path)
    return path


def test_heads_that_no_tensor_tells_are_told_as_assumed(tensors, tmp_path, capsys):
    src, dst = saved(tmp_path / "vit_tiny.pth", tensors), tmp_path / "w.safetensors"
    code, out = run(capsys, "tinyusfm", "--src", src, "--dst", dst)
    assert code == 0
    assert "ASSUMED, since no tensor's shape tells it: heads=12 norm_eps=1e-06 activation=gelu mean=(0.485," in out
    assert "WARNING, vit fits these tensors equally, as vit (" in out
    assert "and assumes heads=3 " in out
    assert safetensors.load(dst)[1]["assumed"].startswith("heads=12 norm_eps=1e-06")
    assert "assumed  " in run(capsys, "inspect", dst)[1]
    out = run(capsys, "verify", "tinyusfm", "--src", src, "--weights", dst)[1]
    assert "both sides assume heads=12" in out
    assert "this comparison does not prove it" in out

    out = run(capsys, "inspect", src)[1]
    assert "ASSUMED, since no tensor's shape tells it: heads=3 " in out
    assert "These families fit equally; no tensor tells which." in out


def test_what_is_given_is_not_assumed(tensors, tmp_path, capsys):
    src, dst = saved(tmp_path / "vit_tiny.pth", tensors), tmp_path / "w.safetensors"
    given = ["heads=3", "norm_eps=1e-6", "activation=gelu", "mean=(0.5,0.5,0.5)", "std=(0.5,0.5,0.5)"]
    code, out = run(capsys, "tinyusfm", "--src", src, "--dst", dst, "--set", *given)
    assert code == 0
    assert "ASSUMED" not in out
    assert "assumed" not in safetensors.load(dst)[1]


def test_values_that_are_no_numbers_are_told(tensors, tmp_path, capsys):
    state = dict(tensors)
    state["norm.bias"] = torch.full((192,), torch.nan)
    state["head.bias"] = torch.tensor([0.0, torch.inf, 1.0])
    state["head.weight"] = state["head.weight"].double() + 1e39  # infinite in float32
    out = run(capsys, "vit", "--src", saved(tmp_path / "a.pth", state), "--dst", tmp_path / "w.safetensors")[1]
    assert "WARNING, not all numbers: head.bias (1 of 3), head.weight (576 of 576), norm.bias (192 of 192)\n" in out


def test_a_wrong_checksum_is_told(tensors, tmp_path, capsys):
    """Which PyTorch does not look at."""
    src, dst = saved(tmp_path / "a.pth", tensors), tmp_path / "w.safetensors"
    with zipfile.ZipFile(src) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    content = bytearray(src.read_bytes())
    content[largest.header_offset + largest.file_size // 2] ^= 1
    src.write_bytes(content)
    assert torch.load(src, weights_only=True).keys() == tensors.keys()
    code, out = run(capsys, "vit", "--src", src, "--dst", dst)
    assert code == 2
    assert f"damaged, the checksum of {largest.filename} is another" in out
    assert not dst.exists()


def test_resized_positions_say_how(tensors, tmp_path, capsys):
    src, dst = saved(tmp_path / "a.pth", tensors), tmp_path / "w.safetensors"
    out = run(capsys, "vit", "--src", src, "--dst", dst, "--set", "image_size=64")[1]
    assert "resized (bicubic and antialiased, as timm does): pos_embed\n" in out


@pytest.mark.parametrize("old", [1, 3, 14, 24])
@pytest.mark.parametrize("new", [1, 2, 14, 17, 37])
def test_bicubic_weights_are_those_of_pytorch(old, new):
    """timm resizes with antialiasing, transformers without."""
    line = torch.eye(old, dtype=torch.float64)[None, None]
    for ours, antialias in ((antialiased, True), (bicubic, False)):
        theirs = F.interpolate(line, (new, old), mode="bicubic", align_corners=False, antialias=antialias)[0, 0]
        np.testing.assert_allclose(ours(old, new), theirs.numpy(), rtol=0, atol=1e-12)


# -- hints -----------------------------------------------------------------------------------------------------------


def other(tensors: dict, **changed: tuple[int, ...] | None) -> dict[str, torch.Tensor]:
    state = dict(tensors)
    for name, shape in changed.items():
        name = name.replace("__", ".")
        state.pop(name, None)
        if shape:
            state[name] = torch.zeros(shape)
    return state


@pytest.mark.parametrize(
    ("changed", "said", "remedy"),
    [
        ({"blocks__0__ls1__gamma": (192,)}, "LayerScale, as in DINOv2 and DeiT-3", "use the family dinov2"),
        ({"blocks__0__gamma_1": (192,)}, "LayerScale, as in DINOv2 and DeiT-3", "use the family dinov2"),
        ({"reg_token": (1, 4, 192)}, "register tokens, as in DINOv2", "use the family dinov2"),
        ({"norm_pre__weight": (192,)}, "a norm before the blocks, as in CLIP", "no option changes that"),
    ],
)
@pytest.mark.parametrize("family", ["vit", "tinyusfm"])
def test_other_transformers_are_called_by_their_name(family, changed, said, remedy, tensors, tmp_path, capsys):
    """And nobody is sent to an option that does not help."""
    src = saved(tmp_path / "a.pth", other(tensors, **changed))
    out = run(capsys, family, "--src", src, "--dst", tmp_path / "w")[1]
    assert said in out
    assert remedy in out
    assert "add --set" not in out
    out = run(capsys, "inspect", src)[1]
    assert "add --set" not in out
    assert said in out if remedy.startswith("no") else "looks like dinov2" in out


def test_positions_of_patches_alone_may_be_the_reason(tensors, tmp_path, capsys):
    """As in FlexiViT; a class token and 8 patches would be as many."""
    src = saved(tmp_path / "a.pth", other(tensors, pos_embed=(1, 9, 192)))
    out = run(capsys, "vit", "--src", src, "--dst", tmp_path / "w")[1]
    assert "add --set image_size=...; or, since 9 positions are a square, the class token has none, as in Flexi" in out
    given = ("--set", "class_position=False", "image_size=48")
    assert run(capsys, "vit", "--src", src, "--dst", tmp_path / "flexi", *given)[0] == 0
    assert run(capsys, "vit", "--src", src, "--dst", tmp_path / "w", "--set", "image_size=(32,64)")[0] == 0


def test_a_family_is_named_where_most_names_are_its_own(tmp_path, capsys):
    """As an EfficientNet has `classifier.weight` in common with SegFormer."""
    names = [f"features.{i}.0.block.{j}.weight" for i in range(9) for j in range(9)]
    state = {name: torch.zeros(3) for name in names} | {"classifier.weight": torch.zeros(3, 3)}
    src = saved(tmp_path / "a.pth", state)
    out = run(capsys, "inspect", src)[1]
    assert out.endswith("\nno family that kdjax knows: none has half of these names\n")
    out = run(capsys, "sam", "--src", src, "--dst", tmp_path / "w")[1]
    assert "it looks like" not in out
    assert not any(name in out for name in families.NAMES if name != "sam")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("pipe", "a pipe, expected a file; write what comes through it"),
        ("loop", "a link that leads back to itself"),
        ("gone", "where there is nothing; mend the link"),
        ("device", "a device, expected a file"),
    ],
)
@pytest.mark.parametrize("words", ["inspect {}", "vit --src {} --dst {}.out", "export vit --weights {} --dst {}.pth"])
def test_what_is_no_file_is_called_what_it_is(kind, said, words, tmp_path, capsys):
    path = Path("/dev/null") if kind == "device" else tmp_path / "a.pth"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind != "device":
        path.symlink_to(path if kind == "loop" else tmp_path / "nothing")
    words = words.replace("{}.", f"{tmp_path}/b.").replace("{}", str(path))
    code, out = run(capsys, *words.split())
    assert code == 2
    assert f"error: {path}: {said}" in out or f"error: {path}: a link to" in out
    assert said in out
