"""A short form of the campaign; `python -m tests.faults` is the long one."""

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def test_every_fault_ends_in_the_same_bits_or_in_a_sentence():
    short = ("--damage=24", "--kills=4", "--disks=2", "--seed=7")
    done = subprocess.run([sys.executable, "-m", "tests.faults", *short], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    *_, every = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert every.startswith("| all |")
    assert every.endswith("| 0 |")
