"""A run that is finished, or stopped by its gate, can be gone on with, here or in another folder; else it says why."""

import copy
import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from kdjax.config import ConfigError, Data, Experiment, Gate, Model, Optim, Stage, Stop, Teacher, Term
from kdjax.experiment import changes, checks, opening, saved, workdir
from kdjax.experiment import run as running
from kdjax.weights import safetensors

DATA = Data("ultrasound", image_size=16, batch_size=8, size=32, train=16, val=8, test=8)
TINY = Model("tests.support.tiny:build")
KL = {"kl": Term("binary_kl", teacher="t:logits")}


def experiment(schedule="constant", **fields) -> Experiment:
    common = {"task": "segmentation", "data": DATA, "model": TINY, "epochs": 1, "grad_norms_every": 0}
    common["optim"] = Optim("sgd", lr=0.1, schedule=schedule)
    stages = {
        "teacher": Stage(**common, **fields),
        "student": Stage(**common, teachers={"t": Teacher("teacher")}, terms=KL),
    }
    made = Experiment(name="changes", stages=stages, quick_compile=True)
    made.log.tensorboard = False
    return made


def changed(before: Experiment, **fields) -> Experiment:
    """With fields of the stage "teacher" changed."""
    after = copy.deepcopy(before)
    after.stages["teacher"] = replace(after.stages["teacher"], **fields)
    return after


def begun(folder, made: Experiment, **results) -> None:
    """The folder of a run whose stages in `results` have trained so many epochs."""
    folder.mkdir()
    (folder / "config.json").write_text(saved.to_json(made))
    for name, epochs in results.items():
        (folder / "stages" / name / "checkpoints" / "4").mkdir(parents=True)
        result = {"epochs": epochs, "best_epoch": epochs}
        (folder / "stages" / name / "result.json").write_text(json.dumps(result))


@pytest.mark.parametrize(
    ("done", "schedule", "fields", "said"),
    [
        ({"teacher": 1}, "constant", {"epochs": 40}, ""),
        ({"teacher": 1}, "plateau", {"epochs": 40}, ""),
        ({"teacher": 1}, "constant", {"stop": Stop(patience=3), "gate": Gate(0.2)}, ""),
        ({}, "warmup_cosine", {"epochs": 40}, ""),
        (
            {"teacher": 1},
            "warmup_cosine",
            {"epochs": 40},
            r"stages.teacher: epochs: 1 and now 40: optim.schedule='warmup_c",
        ),
        ({"teacher": 1}, "warmup_poly", {"epochs": 2}, r"--config.stages.teacher.init=.*run:teacher"),
        ({"teacher": 1, "student": 1}, "constant", {"epochs": 2}, "stage 'student' has already used what it was"),
        ({"teacher": 1, "student": 1}, "constant", {"gate": Gate(0.2)}, ""),
        (
            {"teacher": 1},
            "constant",
            {"dtype": "bfloat16"},
            r"another config .*\n.*dtype: 'float32' and 'bfloat16'",
        ),
    ],
)
def test_what_may_change_between_two_starts(tmp_path, done, schedule, fields, said):
    before = experiment(schedule)
    begun(tmp_path / "run", before, **done)
    if not said:
        return changes.check_owner(tmp_path / "run", changed(before, **fields))
    with pytest.raises(ConfigError, match=said):
        changes.check_owner(tmp_path / "run", changed(before, **fields))


def test_done_epochs_are_not_taken_back(tmp_path):
    before = changed(experiment(), epochs=3)
    begun(tmp_path / "run", before, teacher=3)
    with pytest.raises(ConfigError, match="3 and now 2: a stage that has begun can be made longer alone"):
        changes.check_owner(tmp_path / "run", changed(before, epochs=2))


def test_without_its_checkpoint_a_stage_is_not_begun_anew(tmp_path):
    begun(tmp_path / "run", experiment(), teacher=1)
    (tmp_path / "run" / "stages" / "teacher" / "checkpoints" / "4").rmdir()
    with pytest.raises(ConfigError, match="the checkpoint to go on from is gone"):
        changes.check_owner(tmp_path / "run", changed(experiment(), epochs=2))


def test_early_stopping_ends_a_stage_and_more_patience_opens_it_again():
    stage = experiment(stop=Stop(patience=2)).stages["teacher"]
    result = {"epochs": 5, "best_epoch": 3}
    stage.epochs = 9
    assert workdir.is_finished(result, stage)
    assert not workdir.is_finished(result, replace(stage, stop=Stop(patience=3)))
    assert not workdir.is_finished(result, replace(stage, stop=None))
    assert not workdir.is_finished(None, stage)


@pytest.mark.long
def test_a_gated_run_and_a_finished_one_are_extended(tmp_path):
    """They end in the bits of a run that was asked for as much at once."""
    short = experiment(gate=Gate(2.0))  # Dice never is 2
    with pytest.raises(running.GateError, match="train it longer"):
        running.run(short, tmp_path / "run")
    longer = changed(short, epochs=2, gate=None)
    running.run(longer, tmp_path / "run")
    longest = copy.deepcopy(longer)
    longest.stages["student"].epochs = 2
    summary = running.run(longest, tmp_path / "run")
    assert [row["epochs"] for row in summary["rows"]] == [2, 2, 2], "the control has its student's budget"
    assert json.loads((tmp_path / "run" / "config.json").read_text())["stages"]["student"]["epochs"] == 2
    running.run(longest, tmp_path / "whole")
    for name in ("teacher", "student", "student_control"):
        for file in ("model.safetensors", "metrics.jsonl", "test.csv"):
            ours, theirs = (tmp_path / run / "stages" / name / file for run in ("run", "whole"))
            assert ours.read_bytes() == theirs.read_bytes(), (name, file)


# -- a finished stage of another run ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A run whose teacher has finished."""
    folder = tmp_path_factory.mktemp("other") / "run"
    begun(folder, experiment(), teacher=1)
    from kdjax.distill.teachers import build_model
    from kdjax.train.setup import initialiser

    variables = jax.tree.map(np.array, initialiser(build_model(TINY))(jax.random.key(7)))
    safetensors.save(folder / "stages" / "teacher" / "model.safetensors", variables, safetensors.about(TINY))
    return folder


def test_a_finished_stage_of_another_run_is_a_file_of_weights(other, tmp_path):
    made = experiment(init=f"{other}:teacher")
    made.stages["student"].teachers = {"t": Teacher(weights=f"{other}:teacher")}
    made.control = False
    opened = opening.open_run(made, tmp_path / "new")
    path = str(other / "stages" / "teacher" / "model.safetensors")
    assert opened.learners["teacher"].stage.init == path
    teacher = opened.learners["student"].stage.teachers["t"]
    assert (teacher.weights, teacher.model) == (path, TINY)
    assert set(opened.init(opened.learners["teacher"].stage)) == {""}
    changes.check_owner(tmp_path / "new", made)


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("taecher", "the run has no stage 'taecher'; did you mean 'teacher'"),
        ("student", "stage 'student' of that run has not finished; train it first"),
        ("student_control", "stage 'student_control' of that run has not finished"),
    ],
)
def test_a_stage_that_is_not_there(other, stage, said):
    with pytest.raises(ConfigError, match=said):
        workdir.weights_file(f"{other}:{stage}")


def test_a_folder_without_a_run_and_a_plain_file(tmp_path):
    with pytest.raises(ConfigError, match=r"found no config.json in .*, which so holds no run"):
        workdir.weights_file(f"{tmp_path}:teacher")
    (tmp_path / "odd:name.safetensors").touch()
    assert workdir.weights_file(str(tmp_path / "odd:name.safetensors")) == str(tmp_path / "odd:name.safetensors")
    assert workdir.weights_file("weights/sam.safetensors") == "weights/sam.safetensors"


def test_another_run_is_trusted_with_nothing(other, tmp_path):
    """Neither a folder that leads out of it, nor a model that its file names."""
    config = json.loads((other / "config.json").read_text())
    config.pop("checksum")  # a person may write one by hand
    config["stages"]["teacher"]["folder"] = "../../elsewhere"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="found a way out of it"):
        workdir.weights_file(f"{tmp_path}:teacher")
    config["stages"]["teacher"]["folder"] = "a"
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "a").mkdir()
    about = {"model": "evil_module:build", "options": "{}"}
    safetensors.save(tmp_path / "a" / "model.safetensors", {"params": {"a": np.zeros(2)}}, about)
    made = experiment()
    made.stages["student"].teachers = {"t": Teacher(weights=f"{tmp_path}:teacher")}
    with pytest.raises(ConfigError, match="code outside kdjax"):
        opening.open_run(made, tmp_path / "new")


def test_a_teacher_is_one_kind_of_source():
    made = experiment()
    made.stages["student"].teachers = {"t": Teacher("teacher", weights="x.safetensors")}
    with pytest.raises(ConfigError, match="is one kind of source, found stage and model"):
        checks.validate(made)
