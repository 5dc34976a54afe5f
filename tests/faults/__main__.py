"""Kills runs at random moments, damages every file of them and fills their disks, and looks at how they end.

python -m tests.faults                          50 kills, 200 damaged files, 12 full disks: a table, and what broke
python -m tests.faults --damage 0 --disks 0     the kills alone

Each has to end in the same bits as a run to which nothing happened, or in a sentence, and never in a traceback or in a
silent difference.
"""

import argparse
import collections
import contextlib
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.faults import damage
from tests.support import subprocesses as sub

LINES = 9  # of the student's measures, after which the half-done run is killed: two checkpoints are there
STUCK = 180.0  # seconds after which a command is ended


@dataclass
class Result:
    what: str
    detail: str
    end: str  # "same bits", "a sentence", "a silent difference", "a traceback", "stuck"
    said: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return self.end in ("same bits", "a sentence")


@dataclass
class Place:
    """The folder of a campaign: a config, a cache of programs, a run that ended, and one that was stopped midway."""

    folder: Path
    config: Path
    reference: dict[str, bytes]

    @property
    def finished(self) -> Path:
        return self.folder / "finished"

    @property
    def midway(self) -> Path:
        return self.folder / "midway"

    def start(self, workdir: Path, **options) -> subprocess.Popen:
        return start(self.config, self.folder, workdir, **options)


def start(config: Path, folder: Path, workdir: Path, **options) -> subprocess.Popen:
    flags = (f"--config={config}", f"--workdir={workdir}")
    return sub.start([*sub.LAUNCH, *flags], sub.environment(folder / "cache"), **options)


def prepared(folder: Path) -> Place:
    config = sub.config(folder, control=False)
    sub.finish(start(config, folder, folder / "finished"))
    process = start(config, folder, folder / "midway")
    metrics = folder / "midway" / "stages" / "student" / "metrics.jsonl"
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < LINES:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.001)
    process.kill()
    process.communicate()
    return Place(folder, config, sub.left(folder / "finished"))


def judged(what: str, detail: str, code: int | None, output: str, differing: list[str], name: str = "") -> Result:
    """How a command ended; where files differ, a warning has to name the one that was damaged."""
    if code is None:
        return Result(what, detail, "stuck", output.splitlines()[-3:])
    if "Traceback" in output or code not in (0, 2):
        return Result(what, detail, "a traceback", output.splitlines()[-3:])
    told = [line for line in output.splitlines() if line.startswith(("error: ", "warning  "))]
    if code == 2:
        return Result(what, detail, "a sentence" if told else "a silent difference", told)
    if not differing:
        return Result(what, detail, "same bits", told)
    named = any(name in line for line in told)
    return Result(what, detail, "a sentence" if named else "a silent difference", [*told, f"differ: {differing}"])


def differences(place: Place, workdir: Path) -> list[str]:
    found = sub.left(workdir)
    return [name for name in {**place.reference, **found} if found.get(name) != place.reference.get(name)]


# -- kills -----------------------------------------------------------------------------------------------------------


def kills(place: Place, count: int, random: Random) -> Iterator[Result]:
    """Runs that are killed again and again until they end, so many kills in all."""
    done, began = 0, time.monotonic()
    workdir = place.folder / "whole"
    sub.finish(place.start(workdir))
    whole = time.monotonic() - began
    while done < count:
        workdir = Path(tempfile.mkdtemp(dir=place.folder)) / "run"
        moments = []
        for _ in range(min(10, count - done)):
            process, moment = place.start(workdir), whole * random.uniform(0.3, 0.9)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(moment)
                break
            process.kill()
            process.communicate()
            moments.append(moment)
        done += len(moments)
        process = place.start(workdir)
        output, _ = process.communicate(timeout=STUCK)
        after = ", ".join(f"{moment:.1f} s" for moment in moments)
        yield judged(
            f"a run killed {len(moments)} times",
            f"after {after}",
            process.returncode,
            output,
            differences(place, workdir),
        )
        shutil.rmtree(workdir.parent)


# -- damage ----------------------------------------------------------------------------------------------------------


def cases(place: Place, count: int, random: Random) -> list[tuple[str, Path, str]]:
    """(which run, file, what happens to it), of each kind of file as many: most files are a checkpoint's."""
    kinds = collections.defaultdict(list)
    for which in ("midway", "finished"):
        for name in damage.files(place.folder / which):
            read = which == "midway" and "student" in name.parts  # of its checkpoints those that are gone on from
            kinds[kind(name), read or "checkpoints" not in name.parts].append((which, name))
    drawn = [random.choice(kinds[key]) for key in itertools.islice(itertools.cycle(sorted(kinds)), count)]
    return [(which, name, random.choice(list(damage.WAYS))) for which, name in drawn]


def damaged(place: Place, number: int, which: str, name: Path, way: str) -> Result:
    """In this process: most of a command is its start."""
    from tests.support.command import command

    with tempfile.TemporaryDirectory(dir=place.folder) as folder:
        workdir = Path(folder) / "run"
        shutil.copytree(place.folder / which, workdir)
        damage.WAYS[way](workdir / name, Random(number))
        what, detail = kind(name), f"{number}: {which}, {name} {way}"
        try:
            ended = command(f"--config={place.config}", f"--workdir={workdir}")
        except Exception:
            return Result(what, detail, "a traceback", traceback.format_exc().splitlines()[-4:])
        output = f"{ended.out}\n{ended.error}"
        differing = differences(place, workdir) if ended.code == 0 else []
        return judged(what, detail, ended.code, output, differing, name.name)


def kind(name: Path) -> str:
    if "checkpoints" in name.parts:
        return "a file of a checkpoint"
    return f"best_*{name.suffix}" if name.name.startswith("best_") else name.name


def work(folder: str, numbered: list) -> None:
    """Prints a line before and after each."""
    config = Path(folder) / "tiny_config.py"
    place = Place(Path(folder), config, sub.left(Path(folder) / "finished"))
    for number, which, name, way in numbered:
        print(json.dumps(vars(damaged(place, number, which, Path(name), way))), flush=True)


def all_damaged(place: Place, count: int, random: Random) -> Iterator[Result]:
    numbered = [(i, which, str(name), way) for i, (which, name, way) in enumerate(cases(place, count, random))]
    while numbered:
        words = [sys.executable, "-m", "tests.faults", "--work", str(place.folder), "--numbered", json.dumps(numbered)]
        with sub.start(words, sub.environment(place.folder / "cache"), stderr=None) as process:
            for line in process.stdout or ():
                if line.startswith("{"):
                    yield Result(**json.loads(line))
                    numbered.pop(0)
        if numbered:
            number, which, name, way = numbered.pop(0)
            yield Result(kind(Path(name)), f"{number}: {which}, {name} {way}", "the process died")


# -- full disks ------------------------------------------------------------------------------------------------------


def disks(place: Place, count: int, random: Random) -> Iterator[Result]:
    """No file may grow beyond a limit, as on a disk that fills up; then there is room again."""
    for _ in range(count):
        workdir = Path(tempfile.mkdtemp(dir=place.folder)) / "run"
        limit = int(10 ** random.uniform(2.5, 5))

        def narrow(limit=limit):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        process = place.start(workdir, preexec_fn=narrow)
        output, _ = process.communicate(timeout=STUCK)
        first = judged("a full disk", f"files up to {limit:,} bytes", process.returncode, output, [])
        if not first.good:
            yield first
            continue
        process = place.start(workdir)
        output, _ = process.communicate(timeout=STUCK)
        yield judged("a full disk", first.detail, process.returncode, output, differences(place, workdir))
        shutil.rmtree(workdir.parent)


# -- the table -------------------------------------------------------------------------------------------------------


def table(results: list[Result]) -> str:
    """As it stands in the docs."""
    groups = collections.defaultdict(collections.Counter)
    for result in results:
        groups[result.what][result.end if result.good else "at fault"] += 1
    lines = ["| what was hit | times | ended in the same bits | in a sentence | at fault |", "|---|---|---|---|---|"]
    for what, ends in [*sorted(groups.items()), ("all", sum(groups.values(), collections.Counter()))]:
        numbers = [ends[end] for end in ("same bits", "a sentence", "at fault")]
        lines.append(f"| {what} | {sum(numbers)} | {' | '.join(map(str, numbers))} |")
    return "\n".join(lines)


def campaign(folder: Path, count: dict[str, int], seed: int) -> list[Result]:
    place, random, results = prepared(folder), Random(seed), []
    for act, name in ((all_damaged, "damage"), (kills, "kills"), (disks, "disks")):
        for result in act(place, count[name], random) if count[name] else ():
            results.append(result)
            if not result.good:
                print(result, flush=True)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--damage", type=int, default=200)
    parser.add_argument("--disks", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--numbered", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work, json.loads(args.numbered))
        return 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        results = campaign(Path(folder), vars(args), args.seed)
    print(f"{table(results)}\n\n{len(results)} trials in {time.monotonic() - began:.0f} s on {os.cpu_count()} cores")
    return int(not all(result.good for result in results))


if __name__ == "__main__":
    sys.exit(main())
