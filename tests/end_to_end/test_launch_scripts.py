"""The launch scripts, with stand-ins for python, ssh and SLURM's commands that write down how they were called."""

import os
import pathlib
import shlex
import signal
import subprocess
import time

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
LOGGED = 'echo "$0 $*" >>"$LOG"'
# Process 1 fails where FAIL is set; otherwise all run until told to stop, and say so.
PYTHON = f"""trap 'echo "saved $*" >>"$LOG"; kill $!; exit 143' TERM
{LOGGED}
[ -z "$FAIL" ] || [[ "$*" != *--process=1* ]] || exit 3
[ -z "$QUICK" ] || exit 0
sleep 60 & wait
"""


class Place:
    def __init__(self, folder):
        self.folder, self.log = folder, folder / "log"
        self.log.touch()

    def command(self, name, script):
        path = self.folder / name
        path.write_text(f"#!/usr/bin/env bash\n{script}\n")
        path.chmod(0o755)

    def start(self, script, *args, **env):
        path = f"{self.folder}:{os.environ['PATH']}"
        env = {**os.environ, "PATH": path, "LOG": str(self.log), "FAIL": "", "QUICK": "", **env}
        with open(self.folder / "output", "w") as output:
            return subprocess.Popen(["bash", str(LAUNCH / script), *args], env=env, stdout=output, stderr=output)

    def output(self):
        return (self.folder / "output").read_text()

    def lines(self, word="", at_least=0):
        """What was called with `word`, sorted, once there are so many."""
        deadline = time.monotonic() + 10
        while True:
            found = sorted(
                line.replace(f"{self.folder}/", "") for line in self.log.read_text().splitlines() if word in line
            )
            if len(found) >= at_least:
                return found
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path)
    made.command("python", PYTHON)
    return made


CALL = "python -m kdjax.launch --config=a b.py"


def test_local_alone(place):
    assert place.start("local.sh", "--config=a b.py", QUICK="1").wait(10) == 0
    assert place.lines() == [CALL]


def test_local_processes(place):
    assert place.start("local.sh", "--config=a b.py", PROCESSES="3", PORT="7", QUICK="1").wait(10) == 0
    assert place.lines() == [f"{CALL} --coordinator=localhost:7 --processes=3 --process={i}" for i in range(3)]


def test_local_passes_the_signal_on_and_waits(place):
    run = place.start("local.sh", "--config=x", PROCESSES="2")
    place.lines("--process=", at_least=2)
    run.send_signal(signal.SIGTERM)
    assert run.wait(10) == 143
    assert len(place.lines("saved")) == 2


@pytest.mark.parametrize("script", ["local.sh", "ssh_hosts.sh"])
def test_one_that_fails_ends_the_others(place, script):
    place.command("ssh", 'eval "${@: -1}"')
    run = place.start(script, "--config=x", PROCESSES="3", HOSTS="n0 n1 n2", FAIL="1")
    assert run.wait(20) == 3


def test_ssh_hosts(place):
    place.command("ssh", f'{LOGGED}; exec bash -c "${{@: -1}}"')
    env = {"HOSTS": "me@n0 n1", "SETUP": "export SEEN=1", "QUICK": "1", "DIRECTORY": str(place.folder)}
    run = place.start("ssh_hosts.sh", "--config=a b.py", **env)
    assert (run.wait(10), place.output()) == (0, "")
    assert place.lines("python -m")[:2] == [
        f"{CALL} --coordinator=n0:9911 --processes=2 --process={i}" for i in range(2)
    ]
    called = [shlex.split(line)[:5] for line in place.lines("BatchMode")]
    assert called == [["ssh", "-tt", "-o", "BatchMode=yes", host] for host in ("me@n0", "n1")]


def test_ssh_needs_hosts(place):
    run = place.start("ssh_hosts.sh", "--config=x", HOSTS="")
    assert run.wait(10) != 0
    assert "HOSTS names the machines" in place.output()


SLURM = {"SLURM_SUBMIT_DIR": "/tmp", "SLURM_JOB_ID": "42", "VENV": ""}


@pytest.fixture
def slurm(place):
    place.command("srun", 'echo "devices $JAX_LOCAL_DEVICE_IDS" >>"$LOG"; echo $$ >"$LOG.pid"; shift; exec "$@"')
    place.command("scancel", f'{LOGGED}; kill -TERM "$(cat "$LOG.pid")"')
    place.command("scontrol", LOGGED)
    return place


def test_slurm_one_host(slurm):
    run = slurm.start("slurm.sbatch", "--config=a b.py", SLURM_JOB_NUM_NODES="1", QUICK="1", **SLURM)
    assert run.wait(10) == 0
    assert slurm.lines() == ["devices ", CALL]


def test_slurm_hosts_with_all_their_gpus(slurm):
    run = slurm.start("slurm.sbatch", "-x", SLURM_JOB_NUM_NODES="2", SLURM_GPUS_ON_NODE="4", QUICK="1", **SLURM)
    assert run.wait(10) == 0
    assert slurm.lines() == ["devices 0,1,2,3", "python -m kdjax.launch -x --coordinator=auto"]


def test_slurm_saves_before_the_time_is_up_and_queues_itself_again(slurm):
    run = slurm.start("slurm.sbatch", "-x", SLURM_JOB_NUM_NODES="1", **SLURM)
    slurm.lines("python", at_least=1)
    run.send_signal(signal.SIGTERM)
    assert run.wait(10) == 0
    assert slurm.lines()[2:] == ["saved -m kdjax.launch -x", "scancel --signal=TERM 42.0", "scontrol requeue 42"]


def test_slurm_does_not_queue_a_failure_again(slurm):
    run = slurm.start("slurm.sbatch", "--process=1", SLURM_JOB_NUM_NODES="1", FAIL="1", **SLURM)
    assert run.wait(10) == 3
    assert not slurm.lines("scontrol")
