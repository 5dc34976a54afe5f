"""Two processes on this machine, joined by jax.distributed, agree with one."""

import functools
import json
import signal
import socket
import time

import jax
import numpy as np
import pytest

from kdjax.weights import safetensors
from tests.support import subprocesses as sub

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def config(place):
    return sub.config(place, optim="sgd", control=False, epochs=2)


def together(config, place, workdir, *flags):
    """Two processes of two devices each, that share a working directory."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    joined = [f"--coordinator=localhost:{port}", "--processes=2", f"--config={config}", f"--workdir={workdir}", *flags]
    env = sub.environment(place / "cache", devices=2)
    return [sub.start([*sub.LAUNCH, *joined, f"--process={i}"], env) for i in range(2)]


@pytest.fixture(scope="module")
def both(config, place):
    """The working directories of one process and of two, what the two printed when stopped, and when they went on."""
    flags = ("--config.mesh.fsdp=2", "--config.mesh.data=2")
    alone = sub.start(
        [*sub.LAUNCH, f"--config={config}", f"--workdir={place / 'one'}", *flags], sub.environment(place / "cache", 4)
    )
    sub.finish(alone)
    two = place / "two"
    stopped = stop(two, together(config, place, two, *flags))
    return place / "one", two, stopped, [sub.finish(p) for p in together(config, place, two, *flags)]


def stop(workdir, running):
    """Ends both by a signal to the second of them."""
    metrics = workdir / "stages" / "teacher" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() or metrics.read_text().count("\n") < 1:
        assert time.monotonic() < deadline
        assert all(p.poll() is None for p in running)
        time.sleep(0.01)
    running[1].send_signal(signal.SIGTERM)
    return [sub.finish(p, expected=128 + signal.SIGTERM) for p in running]


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, 2), (signal.SIGINT, 128 + signal.SIGTERM)])
@pytest.mark.parametrize("to", [0, 1])
def test_where_one_ends_the_other_does_not_wait(config, place, tmp_path, sent, code, to):
    """Of several stages and epochs only the first has begun."""
    running = together(config, place, tmp_path, "--config.mesh.fsdp=2", "--config.mesh.data=2")
    metrics = tmp_path / "stages" / "teacher" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() or metrics.read_text().count("\n") < 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running[to].send_signal(sent)
    began = time.monotonic()
    outputs = [process.communicate(timeout=60)[0] for process in running]
    assert time.monotonic() - began < 30
    assert running[1 - to].returncode == code, outputs
    assert "Traceback" not in outputs[1 - to]
    said = "another process of this run has ended" if sent == signal.SIGKILL else ""
    assert said in outputs[1 - to]


def test_two_processes_agree_with_one(both):
    one, two, *_ = both
    for stage in ("teacher", "student"):
        expected, _ = safetensors.load(one / "stages" / stage / "model.safetensors")
        found, _ = safetensors.load(two / "stages" / stage / "model.safetensors")
        assert found.keys() == expected.keys()
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, expected)
        metrics = [(w / "stages" / stage / "metrics.jsonl").read_text().splitlines() for w in (one, two)]
        for was, now in zip(*(map(json.loads, lines) for lines in metrics), strict=True):
            assert was.keys() == now.keys()
            for name in was:
                assert was[name] == now[name] or np.isclose(was[name], now[name], rtol=1e-5), (name, was, now)
        rows = [(w / "stages" / stage / "test.csv").read_text() for w in (one, two)]
        assert rows[0] == rows[1]


def test_the_first_process_alone_writes_and_speaks(both):
    one, two, _, (first, second) = both
    assert {p.relative_to(two) for p in files(two)} == {p.relative_to(one) for p in files(one)}
    assert "report:" in first
    assert "report:" not in second
    assert "epoch" not in second
    summary = json.loads((two / "summary.json").read_text())
    assert all(0 < row["ms_per_image"] < 1e4 for row in summary["rows"])


def files(workdir):
    """All that is written, but for the insides of checkpoints, which have a part for each process."""
    return [p for p in workdir.rglob("*") if p.is_file() and "checkpoints" not in p.parts]


def test_sigterm_to_one_stops_both_and_the_first_says_how_to_go_on(both):
    """That they did go on where they stopped, and to the same end, is in the other tests."""
    first, second = both[2]
    assert "To go on, run the same command again:" in first
    assert "report:" not in first + second
