"""What a gate that is not reached says happens instead, in whole runs."""

import json

import pytest

from kdjax.config import ConfigError, Data, Experiment, Gate, Model, Optim, Stage, Teacher, Term
from kdjax.experiment import checks
from kdjax.experiment import run as running
from kdjax.experiment.workdir import Run

DATA = Data("ultrasound", image_size=16, batch_size=8, size=32, train=16, val=8, test=8)
TINY = Model("tests.support.tiny:build")
KL = {"kl": Term("binary_kl", teacher="t:logits")}


def stage(**fields) -> Stage:
    optim = Optim("sgd", lr=0.1, schedule="constant")
    return Stage(task="segmentation", data=DATA, model=TINY, epochs=1, grad_norms_every=0, optim=optim, **fields)


def experiment(otherwise, **more) -> Experiment:
    stages = {
        "teacher": stage(gate=Gate(at_least=2.0, otherwise=otherwise)),  # Dice never is 2
        **more,
        "student": stage(teachers={"t": Teacher("teacher")}, terms=KL),
        "small": stage(init="stage:student"),
    }
    made = Experiment(name="gates", stages=stages, quick_compile=True)
    made.log.tensorboard = False
    return made


def ran(folder) -> set[str]:
    return {path.parent.name for path in folder.glob("stages/*/result.json")}


def test_stop_is_the_default(tmp_path):
    with pytest.raises(running.GateError, match=r"'teacher' reached dice 0\.\d+ .*asks for 2\.0000.*train it longer"):
        running.run(experiment("stop"), tmp_path)
    assert ran(tmp_path) == {"teacher"}


@pytest.mark.long
def test_control_trains_the_students_without_their_teacher(tmp_path, capsys):
    summary = running.run(experiment("control"), tmp_path)
    assert ran(tmp_path) == {"teacher", "student_control", "small"}
    assert "student) is trained as its control" in capsys.readouterr().out
    assert summary["skipped"] == {"student": "teacher did not reach its gate"}
    assert [row["stage"] for row in summary["rows"]] == ["teacher", "small", "student_control"]
    again = running.run(experiment("control"), tmp_path)  # nothing is left to do, and nothing is done
    assert again["rows"] == summary["rows"]


@pytest.mark.long
def test_another_stage_stands_in(tmp_path, monkeypatch):
    """It starts from the one that fell short, runs only then, and is what the student learns from."""
    taught = {}
    real = Run.teachers

    def teachers(self, stage):
        if stage.teachers:
            taught[stage.title] = stage.teachers["t"].stage
        return real(self, stage)

    monkeypatch.setattr(Run, "teachers", teachers)
    rescue = stage(init="stage:teacher")
    summary = running.run(experiment("rescue", rescue=rescue), tmp_path / "short")
    assert ran(tmp_path / "short") == {"teacher", "rescue", "student", "student_control", "small"}
    assert set(taught.values()) == {"rescue"}
    assert summary["skipped"] == {}

    reached = experiment("rescue", rescue=rescue)
    reached.stages["teacher"].gate.at_least = 0.0
    summary = running.run(reached, tmp_path / "reached")
    assert ran(tmp_path / "reached") == {"teacher", "student", "student_control", "small"}
    assert summary["skipped"] == {"rescue": "teacher reached its gate"}
    rows = json.loads((tmp_path / "reached" / "summary.json").read_text())["rows"]
    assert "rescue" not in {row["stage"] for row in rows}


@pytest.mark.parametrize(
    ("otherwise", "more", "message"),
    [
        ("contrl", {}, "gate.otherwise: no stage 'contrl'; did you mean 'control'"),
        ("small", {}, "stage 'small' has to come right after 'teacher', for which it stands in"),
        ("rescue", {"rescue": Model("tests.support.tiny:build", dim=8)}, "stands in for 'teacher' and so has to train"),
    ],
)
def test_a_branch_that_cannot_work_is_refused_before_anything_is_trained(otherwise, more, message):
    stages = {}
    if more:
        stages["rescue"] = stage()
        stages["rescue"].model = more["rescue"]
    with pytest.raises(ConfigError, match=message):
        checks.validate(experiment(otherwise, **stages))


def test_control_needs_control_runs():
    without = experiment("control")
    without.control = False
    with pytest.raises(ConfigError, match="needs the control runs that control=False switches off"):
        checks.validate(without)
