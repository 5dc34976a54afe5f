"""Mutates valid checkpoints of every family, in every kind of file, and gives them to `python -m convert`.

python -m tests.hostile_files                      2,000 files in two processes: a table, and what broke
python -m tests.hostile_files --only 17            one of them again, in this process

Each has to end in words, without a traceback, within 5 s of the processor's time, in no more memory than three times
the file and 256 MB, and leave nothing at the destination, which keeps what was there before, unless all went well.
"""

import argparse
import collections
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

SECONDS = 5.0
TIMES, CONSTANT = 3, 256_000_000  # bytes, above what the process has when a file's turn comes
STUCK = 60.0  # seconds after which a process is ended
KEPT = b"what was there before"
ENDS = {0: "accepted", 2: "refused"}


@dataclass
class Attempt:
    """A file, the command that it is given to, and where that writes."""

    what: str  # the kind of mutation
    family: str
    container: str
    words: list[str]
    size: int = 0
    good: bool = False  # nothing was changed, so that it has to be accepted
    destination: Path | None = None


@dataclass
class Result:
    number: int
    what: str
    family: str
    container: str
    end: str
    seconds: float = 0.0
    memory: int = 0
    faults: list[str] = field(default_factory=list)


KINDS = {"tensors": 34, "contents": 10, "pickle": 10, "zip bomb": 3, "bytes": 14, "header": 8, "index": 5, "--set": 8}
KINDS |= {"weights": 5, "config.json": 4, "another family": 2, "none": 1}  # of mutations: how many of a hundred or so
IN = {  # the containers that a kind of mutation is of, where it is not of all
    "contents": ("zip", "packed zip", "legacy", "Lightning"),
    "pickle": ("zip",),
    "zip bomb": ("zip",),
    "header": ("safetensors", "shards"),
    "index": ("shards", "PyTorch shards"),
}


def prepare(number: int, seed: int, folder: Path) -> Attempt:
    """The file of this number."""
    from convert import families
    from tests.hostile_files import mutations
    from tests.hostile_files.valid import CONTAINERS, VALID

    random = Random(f"{seed} {number}")
    case, what = list(VALID.values())[number % len(VALID)], random.choices(list(KINDS), list(KINDS.values()))[0]
    if what == "config.json":
        case = random.choice([case for case in VALID.values() if families.get(case.family).model_types])
    if what == "weights":
        return _weights(random, case, folder)
    container, content = random.choice(IN.get(what, tuple(CONTAINERS))), mutations.content(random, what, case.state)
    try:
        path = CONTAINERS[container](content, folder)
    except Exception:  # what this kind of file cannot hold
        path, container = CONTAINERS["zip"](content, folder), "zip"
    mutations.damage(random, what, path, families.get(case.family).model_types)
    if what != "--set" and random.random() < 0.15:
        return Attempt(what, case.family, container, ["inspect", str(path)])
    family = random.choice(families.NAMES) if what == "another family" else case.family
    words = [*case.words, *([mutations.option(random)] if what == "--set" else [])]
    out = folder / "out" / "weights.safetensors"
    command = [family, "--src", str(path), "--dst", str(out), *_overwriting(random, out), "--set", *words]
    return Attempt(what, case.family, container, command, good=what == "none", destination=out)


def _weights(random: Random, case: Any, folder: Path) -> Attempt:
    """A converted file that says something else of its model, or is damaged, to be exported or verified."""
    from convert import families
    from convert.family import fit
    from convert.onto import read
    from kdjax.weights import safetensors
    from tests.convert.test_families import tensor
    from tests.hostile_files import mutations

    state = {name: tensor(x.numpy()) for name, x in case.state.items()}
    given = {name: value for name, value in case.model.options.items() if name in " ".join(case.words)}
    converted = fit(families.get(case.family), state, given)
    told, path = safetensors.about(converted.model), folder / "weights.safetensors"
    ways = (mutations.header, *mutations.BYTES) if random.random() < 0.3 else ()
    safetensors.save(path, read(converted.variables), told if ways else mutations.metadata(random, told))
    if ways:
        random.choice(ways)(random, path)
    weights = ["--weights", str(path)]
    if random.random() < 0.2:
        return Attempt("weights", case.family, "kdjax", ["verify", case.family, *weights])
    out = folder / "out" / f"back{random.choice(['.pth', '.safetensors'])}"
    command = ["export", case.family, *weights, "--dst", str(out), *_overwriting(random, out)]
    return Attempt("weights", case.family, "kdjax", command, destination=out)


def _overwriting(random: Random, out: Path) -> list[str]:
    """Sometimes there is a file already."""
    out.parent.mkdir()
    if random.random() < 0.8:
        return []
    out.write_bytes(KEPT)
    return ["--overwrite"]


def attempt(number: int, seed: int) -> Result:
    from convert.__main__ import main

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        it = prepare(number, seed, folder)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        result = Result(number, it.what, it.family, it.container, "")
        before, begin, busy, said = _resident(), time.monotonic(), time.process_time(), io.StringIO()
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                code = main(it.words)
            result.end = ENDS.get(code, f"code {code}")
        except SystemExit as end:
            result.end = "refused" if end.code == 2 else f"exit {end.code}"
        except BaseException as error:
            result.end = "traceback"
            where = traceback.extract_tb(error.__traceback__)[-1]
            at = f"{Path(where.filename).name}:{where.name}"
            result.faults.append(f"{type(error).__name__} in {at}: {str(error)[:100]}")
        result.seconds = min(time.monotonic() - begin, time.process_time() - busy)  # others may be at work as well
        result.memory = max(0, _peak() - before)
        result.faults += [text for text, wrong in _checks(result, it, size) if wrong]
    return result


def _checks(result: Result, it: Attempt, size: int) -> Iterator[tuple[str, bool]]:
    yield f"ends with {result.end}", result.end not in (*ENDS.values(), "traceback")
    yield "a valid file is not accepted", it.good and result.end != "accepted"
    yield f"takes {result.seconds:.1f} s", result.seconds > SECONDS
    yield f"takes {result.memory / 1e6:,.0f} MB for {size / 1e6:,.1f}", result.memory > TIMES * size + CONSTANT
    if it.destination:
        there = {path.name: path.read_bytes() for path in it.destination.parent.iterdir()}
        whole = "--overwrite" in it.words
        expected = {it.destination.name} if result.end == "accepted" or whole else set()
        yield f"leaves {sorted(there)}", set(there) != expected
        lost = whole and result.end != "accepted" and there.get(it.destination.name) != KEPT
        yield "the file that was there before is lost", lost


def _resident() -> int:
    """Bytes of this process in memory; the peak starts from there again."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


# -- many ------------------------------------------------------------------------------------------------------------


def work(seed: int, numbers: list[int]) -> None:
    """Prints a line before and after each."""
    warm_up()
    for number in numbers:
        print(json.dumps({"begin": number}), flush=True)
        print(json.dumps(vars(attempt(number, seed))), flush=True)


def warm_up() -> None:
    """Loads what every command loads, and traces the valid models, so that a file answers for itself alone."""
    from convert.family import leaves
    from tests.hostile_files.valid import VALID

    for case in VALID.values():
        leaves(case.model)
        _ = case.state


def run(count: int, workers: int, seed: int, tell: Callable[[Result], None] = lambda result: None) -> list[Result]:
    """All of them; a process that is stuck or dies is replaced, and the file it was at is at fault."""
    results: list[Result] = []

    def serve(numbers: list[int]) -> None:
        while numbers:
            with subprocess.Popen(
                [sys.executable, "-m", "tests.hostile_files", "--seed", str(seed), "--work", json.dumps(numbers)],
                env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
                stdout=subprocess.PIPE,
                text=True,
            ) as process:
                at = _follow(process, numbers, results, tell)
            if at is not None:
                how = "stuck" if process.returncode == -9 else f"died, {process.returncode}"
                results.append(Result(at, "?", "?", "?", how, faults=[f"the process {how}; see --only {at}"]))
                numbers.remove(at)

    threads = [threading.Thread(target=serve, args=(list(range(i, count, workers)),)) for i in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(results, key=lambda result: result.number)


def _follow(process: Any, numbers: list[int], results: list[Result], tell: Callable) -> int | None:
    """Reads what a process prints; the number at which it ended before its time."""
    at = None
    watch = threading.Timer(10 * STUCK, process.kill)  # to start
    watch.start()
    for line in process.stdout:
        watch.cancel()
        found = json.loads(line)
        if "begin" in found:
            at = found["begin"]
        else:
            results.append(Result(**found))
            tell(results[-1])
            numbers.remove(at)
            at = None
        watch = threading.Timer(STUCK, process.kill)
        watch.start()
    watch.cancel()
    process.wait()
    if at is None and numbers:
        raise RuntimeError(f"a process ended with {process.returncode} before it began")
    return at


def table(results: list[Result], by: str) -> str:
    groups = collections.defaultdict(list)
    for result in results:
        groups[getattr(result, by)].append(result)
    lines = [f"{by:16} {'files':>6} {'accepted':>9} {'refused':>8} {'at fault':>9} {'slowest s':>10} {'most MB':>8}"]
    for name, group in [*sorted(groups.items()), ("all", results)]:
        ends = collections.Counter(result.end for result in group)
        faults = sum(bool(result.faults) for result in group)
        slowest, most = max(result.seconds for result in group), max(result.memory for result in group) / 1e6
        numbers = f"{len(group):6} {ends['accepted']:9} {ends['refused']:8} {faults:9} {slowest:10.1f} {most:8.0f}"
        lines.append(f"{name:16} {numbers}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this file alone")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.seed, json.loads(args.work))
        return 0
    if args.only is not None:
        warm_up()
        print(attempt(args.only, args.seed))
        return 0
    begin = time.monotonic()
    results = run(args.count, args.workers, args.seed, lambda result: [print(f"{result}") for _ in result.faults[:1]])
    for by in ("what", "container", "family"):
        print(table(results, by), end="\n\n")
    distinct = collections.Counter(fault.partition(":")[0] for result in results for fault in result.faults)
    print(*(f"{count:5} x {fault}" for fault, count in distinct.most_common()), sep="\n")
    print(f"{len(results)} files in {time.monotonic() - begin:.0f} s")
    return int(any(result.faults for result in results))


if __name__ == "__main__":
    sys.exit(main())
