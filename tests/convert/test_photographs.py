"""`--images`: photographs tell the preprocessing of a checkpoint, or speak against the one that is given."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from convert import families
from convert.__main__ import main
from convert.export import export_file, load
from kdjax.weights import safetensors
from tests.models.test_statistics import textures, trained


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A checkpoint trained on npr, one trained on right_diag, photographs, and white noise."""
    folder = tmp_path_factory.mktemp("photographs")
    for name in ("npr", "right_diag"):
        model, variables = trained(name)
        variables = jax.tree.map(np.asarray, variables)
        export_file(families.get("tiny_ladeda"), model, variables, folder / f"{name}.pth")
    noise = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3)).astype(np.uint8)
    for kind, images in (("photographs", textures(3)), ("noise", noise)):
        (folder / kind / "inside").mkdir(parents=True)
        for i, image in enumerate(images):
            Image.fromarray(image).save(folder / kind / "inside" / f"{i}.png")
    (folder / "photographs" / "notes.txt").write_text("no photograph")
    return folder


def run(capsys, place: Path, dst: Path, name: str, *words: str) -> tuple[int, str]:
    given = ["image_size=48", *[word for word in words if "=" in word]]
    images = ["--images", str(place / next(iter(w for w in words if "=" not in w)))] if len(given) <= len(words) else []
    code = main(["tiny_ladeda", "--src", str(place / f"{name}.pth"), "--dst", str(dst), *images, "--set", *given])
    return code, "".join(capsys.readouterr())


def test_without_them_it_has_to_be_said(place, tmp_path, capsys):
    code, out = run(capsys, place, tmp_path / "w", "npr")
    assert code == 2
    assert "no tensor's shape tells preprocess of this tiny_ladeda; add --set preprocess=..., one of raw, npr" in out
    assert "or --images PHOTOGRAPHS" in out
    assert not (tmp_path / "w").exists()


def test_they_tell_it(place, tmp_path, capsys):
    code, out = run(capsys, place, tmp_path / "w", "npr", "photographs")
    assert code == 0
    assert "preprocess: npr fits: by 3 images" in out
    model = safetensors.model_in(safetensors.load(tmp_path / "w")[1])
    assert model is not None
    assert model.options["preprocess"] == "npr"


def test_one_photograph_is_enough(place, tmp_path, capsys):
    code, out = run(capsys, place, tmp_path / "w", "npr", "photographs/inside/1.png")
    assert (code, "npr fits: by 1 image" in out) == (0, True)


def test_what_they_do_not_tell_is_refused_unless_it_is_said(place, tmp_path, capsys):
    code, out = run(capsys, place, tmp_path / "w", "right_diag", "photographs")
    assert code == 2
    assert "does not tell the preprocess of this tiny_ladeda" in out
    assert "fit about equally and cannot be told apart" in out
    code, out = run(capsys, place, tmp_path / "w", "npr", "noise")
    assert (code, "none fits" in out) == (2, True)
    assert not (tmp_path / "w").exists()
    code, out = run(capsys, place, tmp_path / "w", "right_diag", "photographs", "preprocess=right_diag")
    assert (code, "WARNING" in out) == (0, False)
    assert load(tmp_path / "w")[0].options["preprocess"] == "right_diag"


def test_what_they_speak_against_is_warned_about(place, tmp_path, capsys):
    code, out = run(capsys, place, tmp_path / "w", "right_diag", "photographs", "preprocess=NPR")
    assert code == 0
    assert "WARNING, preprocess='npr' is not what these weights were trained with" in out
    assert load(tmp_path / "w")[0].options["preprocess"] == "npr"


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ("nothing", "expected a photograph or a folder of photographs"),
        ("photographs/notes.txt", "no photograph that can be read"),
    ],
)
def test_what_is_no_photograph(place, tmp_path, capsys, images, said):
    code, out = run(capsys, place, tmp_path / "w", "npr", images)
    assert code == 2
    assert re.search(said, out)
