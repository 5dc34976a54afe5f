"""The published Tiny-LaDeDa checkpoints: what they say of a real and a generated photograph, by the right and by the
wrong preprocessing, and that their statistics tell which is which."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from convert.__main__ import main
from convert.export import load
from convert.family import build
from convert.sources import open_source
from kdjax.config import Model
from kdjax.models.statistics import judge, mismatch

pytestmark = pytest.mark.long

RIGHT = {"ForenSynth": "npr", "WildRF": "right_diag"}
GRADIENTS = {"x_grad", "left_diag", "right_diag"}  # between which WildRF's statistics do not tell


@pytest.fixture(scope="module")
def converted(reference, tmp_path_factory):
    """Name -> (model, variables, source, path), by the command."""

    @functools.cache
    def make(name: str) -> tuple[Model, dict, Path, Path]:
        source = reference / "weights/forensics" / f"{name}_Tiny_LaDeDa.pth"
        path = tmp_path_factory.mktemp("weights") / f"{name}.safetensors"
        words = ["--src", str(source), "--dst", str(path), "--set", f"preprocess={RIGHT[name]}"]
        assert main(["tiny_ladeda", *words]) == 0
        return *load(path), source, path

    return make


@pytest.fixture(scope="module")
def images(reference) -> np.ndarray:
    return np.stack([np.asarray(Image.open(reference / f"data/realfake/{name}.png")) for name in ("real", "fake")])


def other(name: str) -> str:
    return next(preprocess for preprocess in RIGHT.values() if preprocess != RIGHT[name])


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("preprocess", RIGHT.values())
def test_maps_and_logits_are_the_originals(converted, reference, images, name, preprocess):
    model, variables, *_ = converted(name)
    with np.load(reference / "goldens/forensics_tiny_ladeda.npz") as file:
        golden = dict(file)
    module = build(Model(model.name, **{**model.options, "preprocess": preprocess}))
    spec = module.inputs["image"]
    view = (images / np.float32(255) - np.float32(spec.mean)) / np.float32(spec.std)  # to the last bit as it was done
    out = jax.jit(module.apply)(variables, view)
    for i, which in enumerate(("real", "fake")):
        at = f"{name}_{preprocess.replace('npr', 'NPR')}_{which}"
        close(out["patch_logits"][i, :, :, 0], golden[f"{at}_map"])
        close(out["logits"][i, 0], golden[f"{at}_logit"])


def close(found: Any, expected: np.ndarray) -> None:
    """By the wrong preprocessing values go to 165,000, where neighbours in float32 are 0.016 apart."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=max(1e-4, 1e-5 * np.abs(expected).max()))


@pytest.mark.parametrize("name", RIGHT)
def test_a_mismatch_is_told_in_both_directions(converted, images, name):
    model, variables, *_ = converted(name)
    for few in (images, images[:1], images[1:]):
        assert mismatch(model, variables, few) == ""
    wrong = Model(model.name, preprocess=other(name))
    said = mismatch(wrong, variables, images)
    assert f"preprocess={other(name)!r} is not what these weights were trained with" in said
    assert f"'{RIGHT[name]}'" in said
    judged = judge(model, variables, images, "preprocess")
    if name == "ForenSynth":
        assert judged.fitting == ("npr",)
    else:
        assert set(judged.fitting) >= GRADIENTS
        assert not {"npr", "raw"} & set(judged.fitting)


def test_photographs_tell_the_one_and_leave_the_other_open(converted, reference, tmp_path, capsys):
    photographs, dst = str(reference / "data/realfake"), tmp_path / "w.safetensors"
    for name, code, said in (("ForenSynth", 0, "preprocess: npr fits"), ("WildRF", 2, "cannot be told apart")):
        words = ["--src", str(converted(name)[2]), "--dst", str(dst), "--images", photographs]
        assert main(["tiny_ladeda", *words]) == code
        assert said in "".join(capsys.readouterr())
        if code == 0:
            assert load(dst)[0].options["preprocess"] == "npr"
            dst.unlink()
    assert not dst.exists()


@pytest.mark.parametrize("name", RIGHT)
def test_verified_and_out_again_as_they_came(converted, name, tmp_path):
    *_, source, path = converted(name)
    back = tmp_path / "back.pth"
    assert main(["verify", "tiny_ladeda", "--src", str(source), "--weights", str(path)]) == 0
    assert main(["export", "tiny_ladeda", "--weights", str(path), "--dst", str(back)]) == 0
    before, after = open_source(source), open_source(back)
    assert {key.removeprefix("module.") for key in before} == set(after)
    for key, x in before.items():
        assert np.array_equal(x.read(), after[key.removeprefix("module.")].read()), key
