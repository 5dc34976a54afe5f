"""Whole runs on images with classes: mixed examples, views that recur, a teacher beside its student in the report."""

import json

import pytest

from kdjax.config import Data, Experiment, Log, Mesh, Model, Optim, Stage, Teacher, Term
from kdjax.data.images.arrays import Labelled
from kdjax.data.images.digits import Digits
from kdjax.experiment import run as running
from kdjax.report import verdict

pytestmark = pytest.mark.long


class Few(Labelled):
    """Two hundred digits."""

    def __init__(self, num_classes: int = 10):
        digits = Digits()
        n = slice(200)
        super().__init__(digits.images[n], digits.labels[n], digits.classes, [""] * 200, digits.names[n])


def experiment() -> Experiment:
    def data(**augment) -> Data:
        few = f"{__name__}:Few"
        return Data(few, image_size=8, num_classes=10, batch_size=32, labelled=0.5, augment=augment, views=2)

    def stage(width: int, **fields) -> Stage:
        model = Model("convnet", widths=(width,), depths=(1,), image_size=8, num_classes=None)
        fields |= {"task": "classification", "epochs": 1, "grad_norms_every": 0}
        return Stage(model=model, optim=Optim("adam", lr=1e-2), **fields)

    teacher = stage(16, title="large", data=data(mixup=0.4, cutmix=0.4, hflip=0.1))
    soft = Term("kl", teacher="large:logits")
    student = stage(4, title="small", data=data(crop=0.5), teachers={"large": Teacher(stage="teacher")})
    student.terms = {"soft": soft}
    stages = {"teacher": teacher, "student": student}
    log = Log(tensorboard=False)
    return Experiment(name="digits", stages=stages, mesh=Mesh(data=1), quick_compile=True, control=False, log=log)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(working directory, summary)"""
    workdir = tmp_path_factory.mktemp("digits")
    return workdir, running.run(experiment(), workdir)


def test_a_run_has_measures_of_classes(run):
    workdir, summary = run
    rows = {row["stage"]: row for row in summary["rows"]}
    assert [row["role"] for row in rows.values()] == ["teacher", "student"]
    for row in rows.values():
        assert set(row["metrics"]) == {"accuracy", "top5", "macro_f1", "ece", "nll", "ece_scaled", "nll_scaled"}
        n = row["metrics"]["accuracy"]["n"]
        assert sum(map(sum, row["confusion"])) == n == len(row["per_image"]["accuracy"])
    assert summary["over"] == f"{n} test images"
    lines = (workdir / "stages/student/test.csv").read_text().splitlines()
    assert lines[0] == "image,class,predicted"
    assert len(lines) == n + 1
    records = [json.loads(line) for line in (workdir / "stages/teacher/metrics.jsonl").read_text().splitlines()]
    assert any("terms/ce" in record for record in records)


def test_the_report_shows_teacher_and_student_side_by_side(run):
    page = (run[0] / "report.html").read_text()
    for caption in ("confusions, of", "how often a model is right", "t-SNE of the embeddings"):
        assert caption in page


def test_a_teacher_from_a_file_has_its_row(run, tmp_path):
    """Its scores are those of the stage that left the file, and every model has its cost."""
    workdir, before = run
    alone = experiment()
    weights = str(workdir / "stages/teacher/model.safetensors")
    student = alone.stages["student"]
    student.teachers = {"large": Teacher(model=alone.stages["teacher"].model, weights=weights)}
    alone.stages = {"student": student}
    summary = running.run(alone, tmp_path)
    teacher, small = summary["rows"]
    assert (teacher["title"], teacher["role"], small["role"]) == ("large (model.safetensors)", "teacher", "student")
    assert teacher["metrics"] == before["rows"][0]["metrics"]
    assert teacher["parameters"] == before["rows"][0]["parameters"]
    assert all(row["ms_per_image"] > 0 and row["flops_per_image"] > 0 for row in summary["rows"])
    assert small["peak_bytes"] > 2**20
    assert verdict.cast(summary)[:2] == (small, teacher)
    assert summary["data"][0].startswith("tests.end_to_end.test_image_runs:Few, ")
