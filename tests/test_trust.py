"""What comes from a file runs nothing, and a run touches nothing outside its folder or that it did not write."""

import json
import sys

import numpy as np
import pytest

import kdjax
from convert.__main__ import main as convert
from kdjax import launch, registry
from kdjax.config import ConfigError, Data, Experiment, Model, Stage
from kdjax.deploy import export
from kdjax.experiment import checks, saved, workdir
from kdjax.train import checkpoint, loop
from kdjax.weights import safetensors
from tests.support.command import command, tiny

HOSTILE = ["os:system", "torch.hub:load", "numpy:memmap", "subprocess:run", "kdjax.registry:get"]


@pytest.fixture
def pwned(tmp_path, monkeypatch):
    """A module that leaves a mark when it is imported, and another when its function is called."""
    (tmp_path / "evil_module.py").write_text(
        "import pathlib\npathlib.Path(__file__).with_name('PWNED').touch()\n"
        "def build(**options):\n    raise SystemExit\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "PWNED"
    sys.modules.pop("evil_module", None)


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("kind", sorted(registry.TABLES))
def test_a_name_nobody_vouches_for_is_not_imported(kind, name):
    with pytest.raises(ConfigError, match=r"found code outside kdjax.*--trust="):
        registry.get(kind, name)


def test_trust_is_of_a_symbol_a_module_or_a_package(monkeypatch):
    monkeypatch.setattr(registry, "_trusted", set())
    registry.trust("mine.models:net", "ours")
    assert registry.is_trusted("mine.models:net")
    assert registry.is_trusted("ours.a.b:c")
    assert not any(map(registry.is_trusted, ("mine.models:other", "mine:net", "oursx:c")))


@pytest.mark.parametrize("what", ["export", "verify"])
def test_metadata_of_weights_runs_nothing(what, pwned, tmp_path, capsys):
    path = tmp_path / "f.safetensors"
    safetensors.save(path, {"params": {"a": np.zeros(2)}}, {"model": "evil_module:build", "options": "{}"})
    more = ["--dst", str(tmp_path / "out.pth")] if what == "export" else []
    assert convert([what, "vit", "--weights", str(path), *more]) == 2
    assert "code outside kdjax" in capsys.readouterr().err
    assert not pwned.exists()
    with pytest.raises(SystemExit):  # somebody who knows the module says so
        convert([what, "vit", "--weights", str(path), "--trust=evil_module", *more])
    assert pwned.exists()
    registry._trusted.discard("evil_module")


def test_models_inside_a_model_run_nothing(pwned):
    with pytest.raises(ConfigError, match="code outside kdjax"):
        registry.get("models", "can_fusion")(vgae={"name": "evil_module:build", "options": {}})
    assert not pwned.exists()


@pytest.mark.parametrize("mode", ["train", "eval", "predict", "export", "report"])
@pytest.mark.parametrize("part", ["model", "data", "task", "teacher", "loss"])
def test_a_working_directory_runs_nothing(mode, part, pwned, tmp_path):
    config = json.loads(saved.to_json(launch.load(str(tiny(tmp_path)))))
    stage = config["stages"]["student"]
    evil = "evil_module:build"
    if part == "model":
        stage["model"]["name"] = evil
    elif part == "data":
        stage["data"]["source"] = evil
    elif part == "task":
        stage["task"] = {"name": evil, "options": {}}
    elif part == "teacher":
        stage["teachers"]["t"] = {"model": {"name": evil, "options": {}}, "weights": "w"}
    else:
        stage["terms"] = {"t": {"loss": evil, "label": "mask"}}
    folder = tmp_path / "run"
    (folder / "stages" / "student").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (tmp_path / "images").mkdir()
    ended = command(f"--workdir={folder}", f"--mode={mode}", *[f"--images={tmp_path / 'images'}"] * (mode == "predict"))
    assert ended.code == 2, ended
    assert "error:" in ended.error
    assert not pwned.exists()


def one_stage(name="only", **fields) -> Experiment:
    stage = Stage(task="segmentation", data=Data("ultrasound"), model=Model("tinyusfm_seg"), epochs=1, **fields)
    return Experiment(name="one", stages={name: stage})


@pytest.mark.parametrize("name", ["../../../x", "a/b", "..", "", "a\\b", "/x"])
def test_a_stage_is_named_like_a_folder(name):
    with pytest.raises(ConfigError, match="a stage is named with letters"):
        checks.validate(one_stage(name))


@pytest.mark.parametrize("folder", ["/tmp/x", "../x", "a/../../x", "a//b", "a\\..\\..\\x", "."])
def test_a_stage_lies_below_the_working_directory(folder):
    with pytest.raises(ConfigError, match="expected a path below the working directory"):
        checks.validate(one_stage(folder=folder))


def test_a_link_out_of_the_working_directory_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / "stages" / "only").mkdir(parents=True)
    (tmp_path / "run" / "stages" / "only" / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="found a way out of it"):
        workdir.stage_folder(tmp_path / "run", "only", one_stage().stages["only"])


def test_only_checkpoints_of_the_run_are_deleted(tmp_path):
    checkpoint.save(tmp_path, 1, {"x": np.zeros(2)}, {})
    strange = [tmp_path / "my_backup", tmp_path / "0", tmp_path / "7"]
    for folder in strange:
        folder.mkdir()
        (folder / "thesis.txt").write_text("years of work")
    (tmp_path / "notes.txt").write_text("mine")
    for step in (2, 3):  # two are kept
        checkpoint.save(tmp_path, step, {"x": np.zeros(2)}, {})
    assert checkpoint.latest(tmp_path) == 3
    assert not (tmp_path / "1").exists()
    assert all((folder / "thesis.txt").exists() for folder in strange)
    assert (tmp_path / "notes.txt").exists()


def test_only_best_files_of_the_run_are_deleted(tmp_path):
    ours = ["best_epoch001_dice0.1234.safetensors", ".best_epoch002_fit-0.5000.safetensors.12-ab.partial"]
    theirs = ["best_of_all.safetensors", ".mine.partial", "model.safetensors", "best_epoch1.txt"]
    for name in (*ours, *theirs):
        (tmp_path / name).touch()
    loop.prune(tmp_path, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(theirs)


def test_an_export_replaces_nothing_but_an_export(tmp_path):
    export.refuse_foreign(tmp_path / "new")
    for name in (export.SIGNATURE, "model.safetensors"):
        (tmp_path / name).touch()
    export.refuse_foreign(tmp_path)
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(ConfigError, match=r"it holds thesis.txt"):
        export.refuse_foreign(tmp_path)


def test_what_a_person_names_in_python_is_run(monkeypatch):
    monkeypatch.setattr(registry, "_trusted", set())
    assert kdjax.loss("kdjax.losses.features:mse").__name__ == "mse"
