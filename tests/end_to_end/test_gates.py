"""What a gate that is not reached says happens instead, in whole runs."""

import dataclasses
import html
import json

import jax
import numpy as np
import pytest

from kdjax.config import ConfigError, Data, Experiment, Gate, Model, Optim, Stage, Teacher, Term
from kdjax.experiment import checks, plan
from kdjax.experiment import run as running
from kdjax.experiment.workdir import Run
from kdjax.weights import safetensors

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
    assert "what would learn from it is trained as its control" in capsys.readouterr().out
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


def test_what_comes_from_elsewhere_is_measured_and_not_trained(tmp_path, capsys):
    """epochs=0: the weights stay as they are, the gate judges them, and the report tells it."""
    measured = stage(init="stage:teacher", gate=Gate(at_least=0.0, good=2.0))
    measured.epochs = 0
    made = experiment("stop", measured=measured)
    made.stages = {name: made.stages[name] for name in ("teacher", "measured")}
    made.stages["teacher"].gate = None
    summary = running.run(made, tmp_path)
    given, left = (safetensors.load(tmp_path / "stages" / name / "model.safetensors")[0] for name in made.stages)
    jax.tree.map(np.testing.assert_array_equal, given["params"], left["params"])
    told = capsys.readouterr().out
    assert "measured: not trained, dice 0." in told
    (sentence,) = summary["gates"]
    assert "which is marginal (0 to 2)" in sentence
    assert sentence in told
    assert sentence in html.unescape((tmp_path / "report.html").read_text())
    assert running.run(made, tmp_path)["rows"] == summary["rows"]  # it is finished


@pytest.mark.parametrize(
    ("reached", "otherwise", "said"),
    [
        (0.7, "stop", "reached auc 0.7000 on the validation data, which is good (from 0.65 on)"),
        (0.6, "stop", "which is marginal (0.55 to 0.65): it teaches, but"),
        (0.5, "stop", "its gate asks for 0.5500"),
        (0.5, "control", "asks for 0.5500: what would learn from it is trained as its control, without a teacher"),
        (0.5, "tuned", "asks for 0.5500: 'tuned' stands in for it from here on"),
    ],
)
def test_a_gate_says_what_it_decides_and_why(reached, otherwise, said):
    assert said in plan.judged("t", Gate(0.55, 0.65, otherwise), "auc", reached)
    assert plan.judged("t", Gate(0.55), "auc", 0.6) == "", "nobody asked"


def test_nothing_of_a_teacher_reaches_the_control_of_a_second_stage():
    """It starts from the control of the first one, whose weights are not distilled."""
    made = experiment("stop", first=stage(teachers={"t": Teacher("teacher")}, terms=KL))
    made.stages["student"].init = "stage:first"
    planned = plan.planned(made)
    assert planned["student_control"].init == "stage:first_control"
    assert planned["student"].init == "stage:first"
    assert plan.planned(made, "student_control").keys() == {"first_control", "student_control"}


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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 0}, "epochs=0 trains nothing and measures what the stage starts from: name that in init"),
        ({"gate": Gate(0.6, 0.5)}, "gate.good: expected no less than at_least=0.6, found 0.5"),
        ({"optim": Optim(statistics="none")}, "optim.statistics: expected 'trained' or 'all', found 'none'"),
    ],
)
def test_stages_that_cannot_work_are_refused(fields, message):
    made = experiment("stop")
    made.stages["teacher"] = dataclasses.replace(made.stages["teacher"], **fields)
    with pytest.raises(ConfigError, match=message):
        checks.validate(made)


def test_control_needs_control_runs():
    without = experiment("control")
    without.control = False
    with pytest.raises(ConfigError, match="needs the control runs that control=False switches off"):
        checks.validate(without)
