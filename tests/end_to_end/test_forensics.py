"""The forensics system: its recipe, what its gates decide in whole runs, and scores for new images."""

import csv
import html
import json

import jax
import numpy as np
import pytest
from PIL import Image

from kdjax.config import ConfigError
from kdjax.deploy import score
from kdjax.distill.teachers import build_model
from kdjax.experiment import checks, plan
from kdjax.experiment import run as running
from kdjax.launch import load
from kdjax.train.setup import initial_shapes
from kdjax.weights import safetensors
from tests.support import folders
from tests.support.command import command, refused

CONFIG = "configs/forensics_distill.py"


def table(path):
    return list(csv.reader(path.read_text(encoding="utf-8").splitlines()))


def quick(spec="smoke", **options):
    made = load(f"{CONFIG}:{spec}")
    made.log.tensorboard = False
    for stage in made.stages.values():
        stage.data.options |= options
    return made


@pytest.mark.parametrize(
    ("spec", "fields"),
    [
        ("folder=faces", {"teacher.init": "weights/ladeda_wildrf.safetensors", "teacher.epochs": 0}),
        ("csv=faces.csv,teacher=forensynth", {"teacher.init": "weights/ladeda_forensynth.safetensors"}),
        ("folder=faces,teacher=mine.safetensors", {"teacher.init": "mine.safetensors"}),
        ("teacher=finetuned", {"diagnose.gate": None, "teacher.init": ""}),
        ("smoke,align=centres", {}),
    ],
)
def test_words_say_what_students_learn_from(spec, fields):
    made = load(f"{CONFIG}:{spec}")
    checks.validate(made)
    for path, expected in fields.items():
        stage, field = path.split(".")
        assert getattr(made.stages[stage], field) == expected, path
    tuned = "finetuned" in spec
    assert {t.stage for t in made.stages["single"].teachers.values()} == {"finetuned" if tuned else "diagnose"}


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("smok", "no variant 'smok'; did you mean 'smoke'"),
        ("smoke,teachr=x", "knows no 'teachr'; did you mean 'teacher'"),
        ("smoke,align=corners", "align=corners: expected one of windows, centres, crops"),
        ("smoke,progress=loss", "progress=loss: expected one of epochs, auc"),
        ("smoke,blocks=two", "blocks=two: expected how many of the last blocks are tuned"),
    ],
)
def test_words_that_mean_nothing_are_refused(spec, said):
    with pytest.raises(ConfigError, match=said):
        load(f"{CONFIG}:{spec}")


def test_the_weights_of_the_terms_add_up_to_one():
    for spec in ("", "progress=auc"):
        terms = load(f"{CONFIG}:{spec}").stages["single"].terms
        patches, labels = (terms[name].schedule for name in ("patches", "bce"))
        assert [patches.start, *(value for _, value in patches.points)] == [0.01, 0.05, 0.1, 0.5]
        assert [labels.start, *(value for _, value in labels.points)] == pytest.approx([0.99, 0.95, 0.9, 0.5])
        assert patches.over == labels.over == ("auc" if spec else "")


def test_the_teacher_may_be_a_flag():
    given = f"--config={CONFIG}:folder=faces"
    refused(command(given, "--teacher=nowhere.safetensors", "--stage=diagnose"), "nowhere.safetensors")
    refused(command(f"--config={CONFIG}:smok", "--teacher=wildrf"), "no variant 'smok'")
    refused(command("--teacher=wildrf"), "give it together with --config=RECIPE")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The smoke form, whole, with a teacher that its gates take for whatever it is."""
    workdir = tmp_path_factory.mktemp("forensics")
    made = quick()
    made.stages["diagnose"].gate.at_least = made.stages["diagnose"].gate.good = 0.0
    return workdir, made, running.run(made, workdir)


@pytest.mark.long
def test_the_smoke_form_measures_every_model_on_every_set(smoke):
    workdir, _, summary = smoke
    rows = {row["stage"]: row for row in summary["rows"]}
    assert {"diagnose", "student", "student_control", "single", "single_control"} <= rows.keys()
    assert "finetuned" not in rows
    assert summary["skipped"] == {"finetuned": "diagnose reached its gate"}
    single = rows["single"]
    assert single["parameters"] == 1_297
    assert {"auc", "accuracy", "average_precision", "real_accuracy", "fake_accuracy", "accuracy_at_half"} <= set(
        single["metrics"]
    )
    assert "known" in single["per_class"]
    assert any(name.startswith("unknown_") for name in single["per_class"])
    assert [*single["robustness"]["blur, sigma in pixels"]] == ["none", "0.5", "1", "1.5", "2"]
    page = (workdir / "report.html").read_text()
    for heading in ("Detection", "Robustness", "Where they look"):
        assert f"<h2>{heading}</h2>" in page
    (sets,) = {len(np.load(path)["score"]) for path in workdir.glob("stages/*/test.npz")}
    assert sets == len(table(workdir / "stages/single/test.csv")) - 1


@pytest.mark.long
def test_new_images_get_scores_and_heat_maps(smoke, tmp_path, capsys):
    workdir, made, _ = smoke
    images = tmp_path / "images"
    (images / "in").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, side in (("a.png", 64), ("in/b.jpg", 90), ("in/ü.png", 40)):
        Image.fromarray(rng.integers(0, 255, (side, side + 6, 3), np.uint8)).save(images / name)
    found = score.score(made, workdir, "single", "", images, tmp_path / "out")
    head, *rows = table(tmp_path / "out" / "scores.csv")
    assert head == ["image", "verdict", "logit", "probability"]
    assert [row[0] for row in rows] == ["a.png", "in/b.jpg", "in/ü.png"]
    for _, verdict, logit, probability in rows:
        assert verdict == ("fake" if float(logit) > found["threshold"] else "real")
        assert float(probability) == pytest.approx(1 / (1 + np.exp(-float(logit))), abs=1e-5)
    with Image.open(tmp_path / "out/in/b_heat.jpg") as picture:
        assert picture.size == (96, 90)
    again = score.score(made, workdir, "single", "", images, tmp_path / "out", threshold=-1e9)  # ours are written over
    assert (again["found"], again["images"], again["kind"]) == (3, 3, "fake")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "out" / "a_heat.jpg")
    with pytest.raises(ConfigError, match=r"a_heat\.jpg: a file that kdjax did not write"):
        score.score(made, workdir, "single", "", images, tmp_path / "out")
    told = command(f"--workdir={workdir}", "--mode=predict", f"--images={images}", f"--output={tmp_path / 'told'}").out
    assert "of 3 images are taken for 'fake' (logit above" in told
    faces = folders.real_fake(tmp_path / "faces")["root"]
    assert (
        "average precision" in command(f"--workdir={workdir}", "--mode=eval", "--stage=single", f"--data={faces}").out
    )


@pytest.mark.long
def test_a_bad_teacher_teaches_nobody_and_the_report_says_so(tmp_path):
    """A teacher whose weights are all zero, which tuning its last block cannot mend: the students are trained with the
    labels alone."""
    made = quick()
    teacher = made.stages["teacher"]
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), initial_shapes(build_model(teacher.model)))
    safetensors.save(tmp_path / "bad.safetensors", zeros, safetensors.about(teacher.model))
    teacher.init, teacher.epochs = str(tmp_path / "bad.safetensors"), 0
    summary = running.run(made, tmp_path / "run")
    ran = {path.parent.name for path in tmp_path.glob("run/stages/*/result.json")}
    assert ran == {"teacher", "diagnose", "finetuned", "head_control", "student_control", "single_control"}
    assert summary["skipped"] == dict.fromkeys(("head", "student", "single"), "finetuned did not reach its gate")
    asked, tuned = json.loads((tmp_path / "run" / "summary.json").read_text())["gates"]
    assert "reached auc 0.5000 on the validation data, its gate asks for 0.5500: 'finetuned' stands in" in asked
    assert "asks for 0.5500: what would learn from it is trained as its control, without a teacher" in tuned
    page = html.unescape((tmp_path / "run" / "report.html").read_text())
    assert f"{tuned[0].upper()}{tuned[1:]}" in page


def test_each_control_hears_nothing_of_a_teacher():
    planned = plan.planned(quick())
    assert planned["student_control"].init == "stage:head_control"
    assert not planned["student_control"].teachers
    assert set(planned["student_control"].terms) == {"bce"}
