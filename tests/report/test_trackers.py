import importlib.util
import json
import sys
import types

import numpy as np
import pytest

from kdjax.config import ConfigError, Log
from kdjax.report import trackers
from kdjax.report.trackers import Trackers

QUIET = Log(tensorboard=False)


def record(folder, first, last, **options):
    """A loop that writes a record every two steps, and times that differ each time."""
    made = Trackers(folder, QUIET, steps_done=first, **options)
    for step in range(first + 1, last + 1):
        if step % 2 == 0:
            made.write(step, "train", {"loss": 1 / step, "kl": step / 7}, timing={"images_per_s": 3.0})
            made.write(step, "val", {"dice": step / 100})
    made.close()


def test_records_are_sorted_json_lines(tmp_path):
    record(tmp_path, 0, 4)
    assert (tmp_path / "metrics.jsonl").read_text().splitlines()[0] == (
        '{"step": 2, "split": "train", "kl": 0.2857142857142857, "loss": 0.5}'
    )
    assert trackers.read(tmp_path / "metrics.jsonl")[-1] == {"step": 4, "split": "val", "dice": 0.04}
    assert [r["step"] for r in trackers.read(tmp_path / "timing.jsonl")] == [2, 4]
    assert trackers.read(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("checkpoint", [0, 4, 5, 10])
@pytest.mark.parametrize("tail", [b"", b'{"step": 11, "spl', b'{"step": 2}', b"\x00\x00"])
def test_a_resumed_run_leaves_the_bytes_of_one_that_was_not_stopped(tmp_path, checkpoint, tail):
    record(tmp_path / "whole", 0, 16)
    record(tmp_path / "killed", 0, 10)
    with (tmp_path / "killed" / "metrics.jsonl").open("ab") as file:
        file.write(tail)
    record(tmp_path / "killed", checkpoint, 16)
    whole, killed = ((tmp_path / run / "metrics.jsonl").read_bytes() for run in ("whole", "killed"))
    assert killed == whole
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == ["metrics.jsonl", "timing.jsonl"]


def test_a_value_that_is_not_finite_stays_valid_json(tmp_path):
    made = Trackers(tmp_path, QUIET)
    made.write(1, "val", {"hd95": float("nan"), "loss": float("inf")})
    made.close()

    def refuse(constant):
        raise AssertionError(constant)

    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=refuse) == {"step": 1, "split": "val", "hd95": None, "loss": None}


def test_other_processes_write_nothing(tmp_path):
    record(tmp_path / "second", 0, 4, primary=False)
    assert not (tmp_path / "second").exists()


def test_tensorboard_files_are_written(tmp_path):
    made = Trackers(tmp_path, Log(tensorboard=True))
    made.write(1, "train", {"loss": 0.5})
    made.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes()


def test_tensorboard_has_validation_measures_and_images(tmp_path):
    made = Trackers(tmp_path, Log(tensorboard=True))
    made.write(1, "val", {"dice": 0.5})
    assert made.shows_images
    made.show(1, "val", {"image_0": np.zeros((8, 9, 3), np.uint8)})
    made.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert all(text in events.read_bytes() for text in (b"val/dice", b"val/image_0", b"PNG"))
    silent = Trackers(tmp_path / "silent", QUIET)
    assert not silent.shows_images
    silent.close()


def test_without_tensorboardx_it_says_so_once_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setattr(trackers, "_told", set())
    for run in ("a", "b"):
        Trackers(tmp_path / run, Log(tensorboard=True)).close()
    assert capsys.readouterr().out.count("pip install tensorboardX") == 1


def test_wandb_that_is_not_installed_is_an_error_that_names_the_extra(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "wandb" else find(name, *a))
    with pytest.raises(ConfigError, match=r'wandb is not installed: run `pip install -e "\.\[tracking\]"`'):
        Trackers(tmp_path / "run", Log(wandb="offline"))
    assert not (tmp_path / "run").exists()
    trackers.check(Log(wandb="off"))


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the library."""
    fake = types.ModuleType("wandb")
    fake.errors = types.SimpleNamespace(Error=type("Error", (Exception,), {}))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: fake)
    return fake


def test_wandb_without_a_login_ends_in_a_sentence(tmp_path, wandb):
    def init(**options):
        raise wandb.errors.Error("No API key configured. Use `wandb login` to log in.")

    wandb.init = init
    with pytest.raises(ConfigError, match=r"refuses: No API key configured.*set WANDB_API_KEY.*--config.log.wandb=off"):
        Trackers(tmp_path, Log(tensorboard=False, wandb="online"))


def test_wandb_resumes_the_same_run(tmp_path, wandb):
    calls = []

    class Run:
        def define_metric(self, *args, **options):
            calls.append(("define", args, options))

        def log(self, values):
            calls.append(("log", values))

        def finish(self):
            calls.append(("finish",))

    def init(**options):
        calls.append(("init", options))
        return Run()

    wandb.init = init
    for done in (0, 3):
        log = Log(tensorboard=False, wandb="offline", group="my run")
        made = Trackers(tmp_path, log, name="a student", steps_done=done)
        made.write(done + 1, "train", {"loss": 2.0}, timing={"wait": 0.25})
        made.close()
    first, second = (options for kind, options in (c for c in calls if c[0] == "init"))
    assert first == second
    assert (first["mode"], first["name"], first["project"]) == ("offline", "a student", "kdjax")
    assert first["group"] == "my run"
    assert ("log", {"step": 4, "train/loss": 2.0, "train/wait": 0.25}) in calls
    assert calls.count(("finish",)) == 2
