"""A run that is killed at any moment and started again ends in the same bits as one that was not."""

import pathlib
import signal
import subprocess
import time

import pytest

from tests.support import subprocesses as sub

pytestmark = pytest.mark.long

# Where the run dies, one after another, in one working directory: (module, function that is about to be called, nth).
WINDOWS = {
    "the first step is done, nothing saved": ("kdjax.report.trackers", "_append", 2),
    "a best file is written, its checkpoint is not": ("kdjax.train.checkpoint", "save", 1),
    "a checkpoint is written, the one before it is still there": ("kdjax.train.checkpoint", "_clean", 3),
    "a stage is done, the next has not begun": ("kdjax.experiment.run", "train_and_test", 2),
    "a best file that is no longer the best is still there": ("kdjax.train.loop", "prune", 3),
    "the model is written, its result is not": ("kdjax.experiment.run", "test", 1),
    "all stages are done, nothing is summed up": ("kdjax.experiment.run", "summarise", 1),
    "all stages are done, there is no report": ("kdjax.experiment.run", "report", 1),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return sub.config(tmp_path_factory.mktemp("config"), control=False)


@pytest.fixture(scope="module")
def uninterrupted(config, cache, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    sub.finish(launch(config, cache, workdir))
    return sub.left(workdir)


def launch(config, cache, workdir, *flags, command=sub.LAUNCH, **options):
    flags = (f"--config={config}", f"--workdir={workdir}", *flags)
    return sub.start([*command, *flags], sub.environment(cache), **options)


def until(process, happened):
    """Waits for something that a running process does."""
    deadline = time.monotonic() + 120
    while not happened():
        if process.poll() is not None:
            raise AssertionError(f"it ended before: {process.communicate()[0]}")
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def lines(path):
    return path.read_text().count("\n") if path.exists() else 0


def test_the_run_does_what_it_should(uninterrupted):
    """So that the comparisons below compare something: all stages, early stopping, files of the best epochs."""
    stages = {name.split("/")[1] for name in uninterrupted}
    assert stages == {"teacher", "student"}
    metrics = uninterrupted["stages/student/metrics.jsonl"].decode()
    assert "grad_norm/features" in metrics
    assert '"split": "val"' in metrics
    assert sum("/best_" in name for name in uninterrupted) >= 2


def test_killed_in_every_window(uninterrupted, config, cache, tmp_path):
    for what, window in WINDOWS.items():
        process = launch(config, cache, tmp_path, command=sub.crashing(*window))
        output = sub.finish(process, expected=-signal.SIGKILL)
        assert "error" not in output, what
        if "no longer the best" in what:
            assert len(list(tmp_path.glob("stages/student/best_*"))) == 2
        if "the next has not begun" in what:
            assert [p.parent.name for p in tmp_path.glob("stages/*/result.json")] == ["teacher"]
            assert not (tmp_path / "stages" / "student").exists()
    sub.finish(launch(config, cache, tmp_path))
    assert sub.left(tmp_path) == uninterrupted
    assert (tmp_path / "report.html").exists()


def test_killed_while_a_checkpoint_is_written_and_at_random(uninterrupted, config, cache, tmp_path):
    checkpoints, hit = tmp_path / "stages" / "student" / "checkpoints", 0
    for kill in range(2):  # half written checkpoints, of different steps
        process = launch(config, cache, tmp_path)
        seen = sub.names(checkpoints)
        until(process, lambda seen=seen: any(not n.isdigit() and n not in seen for n in sub.names(checkpoints)))
        time.sleep(0.004 * kill)
        process.kill()
        process.communicate()
        hit += any(not n.isdigit() for n in sub.names(checkpoints))
    assert hit, "no half written checkpoint was left"
    for moment in (0.7,):  # seconds after the metrics moved on
        process = launch(config, cache, tmp_path)
        began = sum(lines(p) for p in tmp_path.glob("stages/*/metrics.jsonl"))
        until(process, lambda began=began: sum(lines(p) for p in tmp_path.glob("stages/*/metrics.jsonl")) != began)
        time.sleep(moment)
        process.kill()
        process.communicate()
    sub.finish(launch(config, cache, tmp_path))
    assert sub.left(tmp_path) == uninterrupted


def test_a_signal_saves_and_says_how_to_go_on(uninterrupted, config, cache, tmp_path):
    metrics = tmp_path / "stages" / "student" / "metrics.jsonl"
    process = launch(config, cache, tmp_path)
    until(process, lambda: lines(metrics) >= 6)
    process.terminate()
    output = sub.finish(process, expected=128 + signal.SIGTERM)
    assert "To go on, run the same command again:" in output
    assert f"--workdir={tmp_path}" in output.splitlines()[-1]
    step = max(map(int, sub.names(tmp_path / "stages" / "student" / "checkpoints")))
    assert not (tmp_path / "stages" / "student" / "model.safetensors").exists()
    assert step >= 5

    refused = launch(config, cache, tmp_path, "--config.stages.student.optim.lr=0.5")
    output = sub.finish(refused, expected=2)
    assert f"{tmp_path} belongs to another config" in output
    assert "stages.student.optim.lr: 0.02 and 0.5" in output

    sub.finish(launch(config, cache, tmp_path))
    assert sub.left(tmp_path) == uninterrupted


def test_reader_processes_end_with_the_one_they_read_for(config, cache, tmp_path):
    """And leave nothing in shared memory."""

    def shared():
        return set(sub.names(pathlib.Path("/dev/shm")))

    def children(parent):
        listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True).stdout
        return [int(pid) for pid in listed.split()]

    before = shared()
    process = launch(config, cache, tmp_path, "--config.stages.teacher.data.workers=2")
    until(process, lambda: lines(tmp_path / "stages" / "teacher" / "metrics.jsonl") >= 2)
    readers = children(process.pid)
    assert len(readers) >= 2
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while any(pathlib.Path(f"/proc/{pid}").exists() for pid in readers) or shared() - before:
        assert time.monotonic() < deadline, (readers, shared() - before)
        time.sleep(0.05)
