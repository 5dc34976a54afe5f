"""The files to deploy: they stand without kdjax, say the same as the checkpoint, and nothing half made is left."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch

import kdjax
from convert.originals import tinyusfm as original
from kdjax import launch
from kdjax.config import Model
from kdjax.deploy import export as exporting
from kdjax.distill.teachers import build_model
from kdjax.train.setup import initialiser
from kdjax.weights import safetensors, stablehlo
from tests.support.command import command, refused, tiny

ALONE = """
import sys, jax, numpy as np
from jax import export
run = export.deserialize(bytearray(open("model.stablehlo", "rb").read())).call
np.save("found.npy", run(np.load("image.npy"))["logits"])
assert not any(name.partition(".")[0] in ("kdjax", "flax", "convert") for name in sys.modules)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(config, workdir, export folder, variables, what was printed) of a student with random parameters."""
    folder = tmp_path_factory.mktemp("run")
    path, workdir = tiny(folder), folder / "work"
    model = launch.load(str(path)).stages["student"].model
    variables = jax.tree.map(np.array, initialiser(build_model(model))(jax.random.key(3)))
    random = np.random.default_rng(0)
    for leaf in jax.tree.leaves(variables):  # running statistics too
        leaf += (0.2 * random.random(leaf.shape)).astype(leaf.dtype)
    (workdir / "stages" / "student").mkdir(parents=True)
    safetensors.save(workdir / "stages" / "student" / "model.safetensors", variables)
    ended = command(f"--config={path}", f"--workdir={workdir}", "--mode=export")
    assert ended.code == 0, ended
    return path, workdir, workdir / "export" / "student", variables, ended.out


def logits(made, image):
    """By the public interface, from the exported safetensors and what the signature says."""
    told = json.loads((made[2] / "signature.json").read_text())["model"]
    model = kdjax.build(told["name"], **told["options"])
    return np.asarray(kdjax.apply(model, kdjax.load(model, made[2] / "model.safetensors"), image)["logits"])


def close(found, expected):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_what_is_written(made):
    told = json.loads((made[2] / "signature.json").read_text())
    assert {path.name for path in made[2].iterdir()} == {*told["files"], "signature.json"}
    assert set(told["files"]) == {"model.safetensors", "model.stablehlo", "model.pth"}
    assert told["input"]["image"]["shape"] == ["b", 32, 32, 3]
    for name, file in told["files"].items():
        assert file["bytes"] == (made[2] / name).stat().st_size
        assert name in made[4]
    assert not list(made[2].parent.glob(".*"))


@pytest.mark.parametrize("b", [2, pytest.param(5, marks=pytest.mark.long)])
def test_the_stablehlo_stands_alone(made, tmp_path, b):
    image = np.random.default_rng(b).random((b, 32, 32, 3), np.float32)
    np.save(tmp_path / "image.npy", image)
    (tmp_path / "model.stablehlo").write_bytes((made[2] / "model.stablehlo").read_bytes())
    run = subprocess.run([sys.executable, "-c", ALONE], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    close(np.load(tmp_path / "found.npy"), logits(made, image))


def test_the_pytorch_file_fills_the_original(made):
    stage = launch.load(str(made[0])).stages["student"]
    theirs = original.build(stage.model)
    theirs.load_state_dict(torch.load(made[2] / "model.pth", weights_only=True), strict=True)
    image = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    spec = build_model(stage.model).inputs["image"]
    with torch.no_grad():
        found = original.outputs(theirs.eval(), (image - np.float32(spec.mean)) / np.float32(spec.std))["logits"]
    close(found, logits(made, image))


def test_an_export_that_is_not_the_same_is_refused_and_the_old_one_stays(made, monkeypatch):
    before = {path.name: path.read_bytes() for path in made[2].iterdir()}
    load = stablehlo.load
    off = lambda call: lambda x: {"logits": call(x)["logits"] * 1.001}  # noqa: E731
    monkeypatch.setattr(stablehlo, "load", lambda path: off(load(path)))
    refused(command(f"--config={made[0]}", f"--workdir={made[1]}", "--mode=export"), "model.stablehlo", "1.0e-03")
    assert {path.name: path.read_bytes() for path in made[2].iterdir()} == before
    assert not list(made[2].parent.glob(".*"))


def test_without_pytorch_its_names_are_still_written(made, tmp_path, monkeypatch):
    find = exporting.importlib.util.find_spec
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    exporting.export(launch.load(str(made[0])), made[1], output=str(tmp_path / "out"))
    found = safetensors.views(tmp_path / "out" / "model_pytorch.safetensors")[0]
    expected = torch.load(made[2] / "model.pth", weights_only=True)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name].numpy()) for name in found)


def test_refusals(made, tmp_path):
    (tmp_path / "mine").mkdir()
    here = (f"--config={made[0]}", "--mode=export")
    refused(command(*here, f"--workdir={made[1]}", f"--output={tmp_path / 'mine'}"), "is no earlier export", "--output")
    refused(command(*here, f"--workdir={tmp_path / 'none'}"), "stage 'student' has left no", "--weights")
    refused(command(*here, f"--workdir={made[1]}", "--stage=studnt"), "did you mean 'student'")


def test_weights_that_are_too_large_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(stablehlo, "LARGEST", 10)
    with pytest.raises(safetensors.WeightsError, match="12 bytes of weights"):
        stablehlo.save(tmp_path / "x", lambda v, x: v + x, np.zeros(3, np.float32), [((3,), "float32")])
    assert not list(tmp_path.iterdir())


def test_a_file_says_which_model_it_is_for():
    model = Model("tinyusfm_seg", image_size=32, taps=(0, 1))
    again = safetensors.model_in(safetensors.about(model))
    assert (again.name, again.options) == ("tinyusfm_seg", {"image_size": 32, "taps": [0, 1]})
    assert safetensors.model_in({"format": "pt"}) is None
