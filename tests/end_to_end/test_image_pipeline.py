"""The image pipeline: its recipe, a whole run and what is made of it, and views that are none."""

import csv
import json

import pytest

from kdjax.config import ConfigError, Teacher
from kdjax.experiment import checks
from kdjax.experiment import run as running
from kdjax.launch import load
from tests.support import folders
from tests.support.command import command, refused

CONFIG = "configs/image_pipeline.py"
AUGMENT = ("crop", "rotate", "hflip", "colour", "gamma", "contrast")


@pytest.mark.parametrize(
    "variant", ["", "smoke", "digits", "cifar100=data", "tfds=cifar10", "classes=data", "classes=data,small"]
)
def test_the_recipe_is_sound(variant):
    made = load(f"{CONFIG}:{variant}")
    checks.validate(made)
    assert list(made.stages) == ["supcon", "teacher", "student"]
    assert made.stages["student"].teachers == {"hybrid": Teacher(stage="teacher", inputs={"image": "clean_image"})}
    assert sum(term.weight for term in made.stages["student"].terms.values()) == pytest.approx(1)


def test_words_name_the_weights_of_parts():
    made = load(f"{CONFIG}:classes=data,transformer=weights/swin.safetensors")
    assert made.stages["supcon"].parts == {"transformer": "weights/swin.safetensors"}
    for variant, said in (
        ("beetles", "no variant 'beetles'"),
        (
            "classes=data,transformr=x",
            "expected convolutional=FILE, transformer=FILE, small; did you mean 'transformer=FILE'",
        ),
        ("classes=data,transformer", "expected convolutional=FILE"),
        ("transformer=x", "no variant 'transformer'"),
        ("classes=data,small,transformer=x", "published weights are for ConvNeXt-V2 and Swin-V2"),
    ):
        with pytest.raises(ConfigError, match=said):
            load(f"{CONFIG}:{variant}")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--config.stages.supcon.data.copies=1"], "expected data.copies of at least 2, found 1"),
        (["--config.stages.supcon.data.copies=5"], "data.copies: expected a divisor of batch_size 96, found 5"),
        (
            [f"--config.stages.supcon.data.augment.{name}=0.0" for name in AUGMENT],
            "nothing sets the copies of an image apart",
        ),
    ],
)
def test_views_that_are_none_are_refused(flags, said, tmp_path):
    refused(command(f"--config={CONFIG}:smoke", f"--workdir={tmp_path / 'run'}", *flags), said)
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_a_whole_run_is_evaluated_explained_and_looked_at(tmp_path):
    made = load(f"{CONFIG}:smoke")
    made.log.tensorboard, made.mesh.data = False, 1  # not the eight devices of the tests
    summary = running.run(made, tmp_path / "run")
    supcon, teacher, student, control = summary["rows"]
    assert set(supcon["metrics"]) == {"knn", "probe"}
    assert [row["role"] for row in summary["rows"]] == ["other", "teacher", "student", "control"]
    assert teacher["parameters"] > 10 * student["parameters"] == 10 * control["parameters"]
    page = (tmp_path / "run" / "report.html").read_text()
    for heading in ("Contrastive learning", "Classes", "Certainty", "Most confident mistakes"):
        assert f">{heading}" in page
    folders.unlabelled(tmp_path / "outside")
    run = [f"--workdir={tmp_path / 'run'}", "--stage=student"]
    ended = command(
        "--mode=eval", *run, "--tta=hflip", f"--outside={tmp_path / 'outside'}", f"--output={tmp_path / 'eval'}"
    )
    assert ended.code == 0, ended.error
    measured = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert "energy" in json.dumps(measured)
    asked = ["--mode=predict", *run, f"--images={tmp_path / 'outside'}", f"--output={tmp_path / 'out'}", "--gradcam"]
    assert command(*asked).code == 0
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == len(list((tmp_path / "out").rglob("*_cam.jpg"))) > 0
