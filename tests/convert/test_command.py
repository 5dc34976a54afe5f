"""`python -m convert`: what it prints, what it refuses, and that a refusal leaves nothing behind."""

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from convert import families
from convert.__main__ import main
from convert.originals import sam
from kdjax.config import Model
from kdjax.weights import safetensors

ROOT = Path(__file__).parents[2]
SMALL = {"variant": "vit_t", "image_size": 32, "window": 3, "decoder_mlp_dim": 48, "embed_dim": 32}
SET = [f"{name}={SMALL[name]}" for name in ("window", "decoder_mlp_dim", "embed_dim")]  # what no shape tells


class RunsCode:
    def __reduce__(self):
        return print, ("code was run",)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "small.pth"
    state = sam.build(Model("sam", **SMALL)).state_dict()
    torch.save({name: torch.randn_like(x) * 0.1 for name, x in state.items()}, path)
    return path


def refused(capsys, folder: Path, *words: object, said: str) -> None:
    """Exit code 2, one error that says so, and not one file more or less."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(list(map(str, words))) == 2
    out, error = capsys.readouterr()
    assert error.startswith("error: "), error
    assert said in error, error
    assert "code was run" not in out
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.long
def test_in_verified_and_out(checkpoint, tmp_path, capsys):
    dst, back = tmp_path / "sam.safetensors", tmp_path / "back.pth"
    count = len(torch.load(checkpoint))
    assert main(["sam", "--src", str(checkpoint), "--dst", str(dst), "--set", *SET]) == 0
    assert f"compared with the source: {count} tensors, bit for bit" in capsys.readouterr().out
    assert main(["verify", "sam", "--src", str(checkpoint), "--weights", str(dst)]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("image_embeddings", "low_res_logits", "iou_predictions", "the same"))
    assert main(["export", "sam", "--weights", str(dst), "--dst", str(back)]) == 0
    before, after = torch.load(checkpoint), torch.load(back)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)

    other = tmp_path / "other.pth"
    before["image_encoder.neck.3.bias"] *= 1.01
    torch.save(before, other)
    refused(capsys, tmp_path, "verify", "sam", "--src", other, "--weights", dst, said="not the same weights")
    refused(capsys, tmp_path, "export", "sam", "--weights", dst, "--dst", back, said="add --overwrite")
    refused(
        capsys, tmp_path, "export", "sam", "--weights", dst, "--dst", tmp_path / "x.onnx", said="a name that ends in"
    )
    assert main(["export", "sam", "--weights", str(dst), "--dst", str(back), "--overwrite"]) == 0


def test_what_does_not_come_in(checkpoint, tmp_path, capsys, monkeypatch):
    dst = tmp_path / "sam.safetensors"
    into = ("--dst", dst, "--set", *SET)
    strange = {"running code": pickle.dumps(RunsCode()), "cut off": checkpoint.read_bytes()[:5000], "empty": b""}
    for name, content in strange.items():
        (tmp_path / name).write_bytes(content)
        refused(
            capsys,
            tmp_path,
            "sam",
            "--src",
            tmp_path / name,
            *into,
            said=name.split(" ")[0] if name == "empty" else name,
        )
    refused(capsys, tmp_path, "sam", "--src", tmp_path, *into, said=str(tmp_path))
    refused(capsys, tmp_path, "sam", "--src", tmp_path / "none.pth", *into, said="no such file")
    refused(
        capsys,
        tmp_path,
        "sam",
        "--src",
        checkpoint,
        "--dst",
        tmp_path / "none" / "x",
        *into[2:],
        said="there is no folder",
    )
    refused(capsys, tmp_path, "sam", "--src", checkpoint, *into, "imagesize=64", said="did you mean 'image_size'")
    refused(capsys, tmp_path, "sam", "--src", checkpoint, *into, "dim", said="expected OPTION=VALUE")
    refused(capsys, tmp_path, "sam", "--src", checkpoint, *into, "decoder_depth=3", said="unfilled")
    dst.write_bytes(b"mine")
    refused(capsys, tmp_path, "sam", "--src", checkpoint, *into, said="exists")
    full = shutil._ntuple_diskusage(10, 10, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    refused(capsys, tmp_path, "sam", "--src", checkpoint, *into[2:], "--dst", tmp_path / "b", said="make room")


def test_a_checkpoint_of_another_family_is_told_by_its_name(checkpoint, tmp_path, capsys):
    other = next(name for name in families.NAMES if name not in ("sam", "samed_lora"))
    dst = tmp_path / "x.safetensors"
    refused(capsys, tmp_path, other, "--src", checkpoint, "--dst", dst, said="it looks like sam")


def test_weights_that_say_nothing_of_their_model(tmp_path, capsys):
    safetensors.save(tmp_path / "a", {"params": {"x": np.zeros(3, np.float32)}})
    safetensors.save(tmp_path / "b", {"params": {"x": np.zeros(3, np.float32)}, "lora": {"y": np.zeros(2, np.float32)}})
    for name, said in (("a", "does not say which model"), ("b", "found lora too")):
        refused(capsys, tmp_path, "export", "sam", "--weights", tmp_path / name, "--dst", tmp_path / "c.pth", said=said)


def test_inspect(checkpoint, tmp_path, capsys):
    assert main(["inspect", str(checkpoint)]) == 0
    out = capsys.readouterr().out
    assert "image_encoder.blocks.{0..3}.attn.qkv.weight" in out
    assert "looks like sam" in out
    torch.save({"a.weight": torch.zeros(2)}, tmp_path / "other.pth")
    assert main(["inspect", str(tmp_path / "other.pth")]) == 0
    assert "no family that kdjax knows" in capsys.readouterr().out


def test_the_list_names_every_family(capsys):
    assert main(["--list"]) == 0
    out = capsys.readouterr().out
    for name, family in families.all().items():
        assert name in out
        assert family.told in out
        assert all(variant in out for variant in family.variants)


def test_it_starts_as_a_module_and_without_loading_torch():
    code = (
        "import runpy, sys; sys.argv = ['convert', '--list']\ntry: runpy.run_module('convert', run_name='__main__')\n"
    )
    code += "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "0 False"
