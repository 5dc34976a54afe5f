"""Who is at work in a working directory, what may lie in it, and that what a stage left is what is read."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdjax.config import ConfigError
from kdjax.experiment import changes, checks, lock, opening, saved, workdir
from kdjax.train import kept
from kdjax.weights import safetensors
from tests.experiment.test_changes import begun, changed, experiment

HOLD = """
import sys, time
from pathlib import Path
from kdjax.experiment import lock
with lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_commands_are_not_at_work_in_one_folder(tmp_path):
    with lock.held(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").exists()
        with (
            pytest.raises(ConfigError, match="found another command at work: this very process"),
            lock.held(tmp_path / "run"),
        ):
            pass
    assert not (tmp_path / "run").exists(), "nothing was written there"


def test_who_holds_a_folder_is_told_and_it_is_free_when_that_process_is_killed(tmp_path):
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], cwd=root, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        said = rf"another command at work: process {process.pid} on \S+, since 20\d\d-.*; wait until it ends"
        with pytest.raises(ConfigError, match=said):
            lock.held(tmp_path).__enter__()
        process.kill()
    with lock.held(tmp_path):
        pass
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("name", ["a[b]", "a*", "what?", "a\\b", "a\nb", "a\x1bb", "a\udcffb"])
def test_names_that_the_libraries_below_misread_are_refused(name, tmp_path):
    with pytest.raises(
        ConfigError, match=r"--workdir .*: expected a path without patterns and control characters, in UTF-8"
    ):
        opening.open_run(experiment(), tmp_path / name)
    made = changed(experiment(), folder=f"a/{name}")
    with pytest.raises(ConfigError, match=r"stages.teacher: folder"):
        checks.validate(made)


@pytest.mark.parametrize("name", ["a b", "größe", "a#b%20", "{x}", "(1)", "a,b;c&d", "$HOME", "~x", "-y", "a'b"])
def test_other_names_are_not(name, tmp_path):
    assert not checks.name_fault(tmp_path / name)


# -- what a stage left -----------------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path):
    """The folder of a stage that has finished."""
    begun(tmp_path / "run", experiment(), teacher=1)
    place = tmp_path / "run" / "stages" / "teacher"
    safetensors.save(place / "model.safetensors", {"params": {"a": np.arange(4.0)}})
    for name in ("test.npz", "test.csv", "metrics.jsonl", "windows.json"):
        (place / name).write_text(name)
    workdir.keep_result(place, {"epochs": 1, "best_epoch": 1})
    return place


def test_another_file_in_the_place_of_a_stages_own_is_refused(finished):
    result = workdir.result_of(finished)
    assert set(result["checksums"]) == {"model.safetensors", "test.npz", "test.csv", "metrics.jsonl", "windows.json"}
    path = finished / "model.safetensors"
    assert workdir.weights_file(f"{finished.parents[1]}:teacher") == str(path)
    safetensors.save(path, {"params": {"a": np.arange(4.0) + 1}})
    for place in (f"{finished.parents[1]}:teacher", str(path)):
        with pytest.raises(kept.Damaged, match=r"model.safetensors: expected the file .* remove the file and train"):
            workdir.weights_file(place)


@pytest.mark.parametrize("name", ["model.safetensors", "test.npz", "test.csv"])
def test_a_finished_stage_whose_files_are_gone_is_finished_again(finished, name):
    result = workdir.result_of(finished)
    assert not workdir.gone(finished, result)
    (finished / name).unlink()
    assert workdir.gone(finished, result) == [name]
    changes.check_owner(finished.parents[1], experiment())
    (finished / "checkpoints" / "4").rmdir()
    with pytest.raises(ConfigError, match=rf"{name} of .* are gone, and so are the checkpoints .* train the stage"):
        changes.check_owner(finished.parents[1], experiment())


def test_an_emptied_result_says_what_to_do(finished):
    (finished / "result.json").write_text("")
    with pytest.raises(kept.Damaged, match=r"result.json: expected JSON .*; remove it and run the same command again"):
        changes.check_owner(finished.parents[1], experiment())


def test_a_result_json_beside_a_file_of_weights_may_be_anybodys(tmp_path):
    for text in ("[1, 2]", "{", '{"checksums": "none"}'):
        (tmp_path / "result.json").write_text(text)
        (tmp_path / "weights").touch()
        assert workdir.weights_file(str(tmp_path / "weights")) == str(tmp_path / "weights")


def test_an_earlier_versions_result_opens_as_before(finished):
    (finished / "result.json").write_text(json.dumps({"epochs": 1, "best_epoch": 1}))
    assert workdir.as_left(finished / "model.safetensors")
    assert not workdir.gone(finished, workdir.result_of(finished))


# -- the config ------------------------------------------------------------------------------------------------------


def test_a_deleted_config_is_known_from_the_stage_that_began_with_it(finished):
    folder = finished.parents[1]
    workdir.claim(finished, experiment())
    (folder / "config.json").unlink()
    changes.check_owner(folder, experiment())
    with pytest.raises(ConfigError, match="belongs to another config"):
        changes.check_owner(folder, changed(experiment(), dtype="bfloat16"))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"edition": 2, "stages": 3}'])
def test_a_damaged_config_says_what_to_do(finished, text):
    folder = finished.parents[1]
    (folder / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config.json: expected"):
        changes.check_owner(folder, experiment())


def test_a_changed_number_in_a_config_is_noticed(tmp_path):
    text = saved.to_json(experiment())
    assert saved.from_json(text) == experiment()
    with pytest.raises(kept.Damaged, match=r"config.json: expected what this run wrote, found other values"):
        saved.from_json(text.replace('"lr": 0.1', '"lr": 0.3'))


def test_the_size_of_a_batch_that_a_stage_began_with(tmp_path):
    path = tmp_path / "batch_size"
    kept.write_json(path, {"batch_size": 24})
    assert opening.begun_size(path) == 24
    path.write_text("16")
    assert opening.begun_size(path) == 16, "as earlier versions wrote it"
    path.write_text("")
    with pytest.raises(kept.Damaged, match="batch_size: expected JSON"):
        opening.begun_size(path)
