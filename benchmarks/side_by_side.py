"""The same work in PyTorch and in kdjax, in turns on this machine.

    python -m benchmarks.side_by_side [--cases=NAME,...] [--rounds=5] [--out=FILE]

Each side of a case is a process of its own. Both are built, compiled and warmed up; then they are asked in turn, torch,
kdjax, torch, kdjax, so that whatever slows the machine down slows both. A ratio is the time of PyTorch over that of
kdjax: above 1, kdjax is faster. Results are added to FILE; a "note" written there by hand stays.
"""

import argparse
import json
import multiprocessing
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import worker
from benchmarks.cases import CASES, Case, encoder_flops, peak_flops

RESULTS = Path(__file__).parent / "results"


class Failed(RuntimeError):
    """A worker could not do its work."""


class Worker:
    """The other end of a process of `benchmarks.worker`."""

    def __init__(self, target: Callable[..., None], *args: Any):
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=target, args=(other, *args), daemon=True)
        self._process.start()
        other.close()

    def ask(self, what: str = "") -> Any:
        """The next answer; `what`, where there is any, is sent first."""
        try:
            if what:
                self._pipe.send(what)
            fine, found = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            self._process.join()
            raise Failed(f"the process ended with {self._process.exitcode}; killed for memory?") from error
        if not fine:
            raise Failed(found)
        return found

    def close(self) -> None:
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="", help=f"some of {','.join(CASES)}; by default all that fit the machine")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument(
        "--out", type=Path, help="by default benchmarks/results/side_by_side.json, with a GPU's name behind"
    )
    parser.add_argument("--peak-tflops", type=float, help="of the GPU's bfloat16 products, if its name says too little")
    given = parser.parse_args(argv)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the GPU's memory is for both sides

    about = machine()
    gpu = about["backend"] != "cpu"
    names = given.cases.split(",") if given.cases else [n for n, case in CASES.items() if gpu or not case.gpu_only]
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    if given.rounds < 1:
        parser.error(f"--rounds: expected at least 1, found {given.rounds}")
    device = f"_{about['device'].lower().replace(' ', '_')}" if gpu else ""
    path = given.out or RESULTS / f"side_by_side{device}.json"
    found = earlier(path, about)
    for name in names:
        for dtype in ("float32", "bfloat16") if gpu else ("float32",):
            sides = ("torch", "torch_compiled", "kdjax") if gpu and name != "product" else ("torch", "kdjax")
            key = name if dtype == "float32" else f"{name}_{dtype}"
            print(f"{key}: {' '.join(sides)}", flush=True)
            measured = measure(name, dtype, sides, given.rounds, about["threads"])
            peak = peak_flops(about["device"], dtype, given.peak_tflops) if gpu else None
            note = found["cases"].get(key, {}).get("note", "")
            product = found["cases"].get("product", {}).get("ratio")
            found["cases"][key] = judge(CASES[name], dtype, about["backend"], measured, product, peak, note)
            write(path, found)
    print(f"\n{markdown(found)}\n\n{path}")


def machine() -> dict:
    """Where this runs. Both sides must use the same kind of device."""
    told = {}
    for side in ("torch", "kdjax"):
        asked = Worker(worker.facts, side)
        try:
            told[side] = asked.ask()
        finally:
            asked.close()
    if told["torch"]["backend"] != told["kdjax"]["backend"]:
        raise SystemExit(
            f"PyTorch runs on {told['torch']['backend']}, JAX on {told['kdjax']['backend']}: install both for the same "
            "device, or hide the GPU with JAX_PLATFORMS=cpu and CUDA_VISIBLE_DEVICES="
        )
    return {
        "device": told["kdjax"]["device"] if told["kdjax"]["backend"] != "cpu" else processor(),
        "backend": told["kdjax"]["backend"],
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "versions": {"python": platform.python_version(), **told["kdjax"]["versions"], **told["torch"]["versions"]},
    }


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def measure(name: str, dtype: str, sides: Sequence[str], rounds: int, threads: int) -> dict[str, dict]:
    """What each side took, or its error. One is built after the other, so that compiling disturbs nobody."""
    workers: dict[str, Worker] = {}
    measured: dict[str, dict] = {}

    def attempt(side: str, what: str = "") -> Any:
        try:
            return workers[side].ask(what)
        except Failed as error:
            print(error, flush=True)
            measured[side] = {"error": str(error).strip().splitlines()[-1]}
            workers.pop(side).close()
            return None

    try:
        for side in sides:
            workers[side] = Worker(worker.serve, side, name, dtype, threads)
            if (about := attempt(side)) is not None:
                measured[side] = {**about, "seconds": []}
        for _ in range(rounds):
            for side in list(workers):
                if (seconds := attempt(side, "run")) is not None:
                    measured[side]["seconds"].append(seconds)
        for side in list(workers):
            if (peak := attempt(side, "end")) is not None:
                measured[side]["peak_mib"] = peak
    finally:
        for one in workers.values():
            one.close()
    return {side: measured[side] for side in sides}


def judge(
    case: Case,
    dtype: str,
    backend: str,
    measured: dict[str, dict],
    product: float | None = None,
    peak: float | None = None,
    note: str = "",
) -> dict:
    """Medians, the ratio of PyTorch's (eager) to kdjax's, and whether that is good enough.

    `product` is the ratio of the plain matrix product on this machine, `peak` what the device could do per second.
    """
    sides = {side: summary(found) for side, found in measured.items()}
    trained = {side: found["trained"] for side, found in measured.items() if "trained" in found}
    if len(set(trained.values())) > 1:
        raise Failed(
            f"{case.title}: the sides train different numbers of parameters, which is no comparison: {trained}"
        )
    times = {side: found["median_s"] for side, found in sides.items() if "median_s" in found}
    ratio = times["torch"] / times["kdjax"] if {"torch", "kdjax"} <= set(times) else None
    floor = case.floor(backend, product)
    result = {
        "title": case.title,
        "dtype": dtype,
        "ratio": ratio,
        "bound": case.bound,
        "floor": floor,
        "floor_met": None if ratio is None else ratio >= floor,
        "note": note,
        "trained": next(iter(trained.values()), None),
        "sides": sides,
    }
    if "torch_compiled" in times and "kdjax" in times:
        result["ratio_to_compiled"] = times["torch_compiled"] / times["kdjax"]
    if case.work == "encoder":
        work = case.batch * encoder_flops(case.variant, case.size)
        result["tflops"] = {side: work / seconds / 1e12 for side, seconds in times.items()}
        if peak:
            result["utilisation"] = {side: work / seconds / peak for side, seconds in times.items()}
    return result


def summary(found: dict) -> dict:
    if "error" in found:
        return {"error": found["error"]}
    seconds = found["seconds"]
    numbers = {"median_s": median(seconds), "min_s": min(seconds), "max_s": max(seconds)}
    kept = {k: found[k] for k in ("seconds", "calls", "build_s", "first_call_s", "peak_mib")}
    return {**numbers, **kept}


def earlier(path: Path, about: dict) -> dict:
    """What was measured before, where it was with the same machine and versions; else only its notes' place is new."""
    if path.is_file():
        found = json.loads(path.read_text())
        if found["machine"] == about:
            return found
    return {"machine": about, "cases": {}}


def write(path: Path, found: dict) -> None:
    order = {name: i for i, name in enumerate(CASES)}
    found["cases"] = dict(sorted(found["cases"].items(), key=lambda c: (order[c[0].removesuffix("_bfloat16")], c[0])))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1) + "\n")
    partial.replace(path)


def markdown(found: dict) -> str:
    """The table for the README."""
    about, cases = found["machine"], found["cases"]
    compiled = any("torch_compiled" in case["sides"] for case in cases.values())
    sides = ["torch", *(["torch_compiled"] if compiled else []), "kdjax"]
    shown = {"torch": "PyTorch", "torch_compiled": "torch.compile", "kdjax": "kdjax"}
    head = [
        "work",
        *([shown[s] for s in sides]),
        "ratio",
        *(["to compiled"] if compiled else []),
        "floor",
        "peak memory",
    ]
    used = any("utilisation" in case for case in cases.values())
    head += ["FLOP utilisation"] if used else []
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    for case in cases.values():
        each = [case["sides"].get(side, {}) for side in sides]
        title = case["title"] + (f", {case['dtype']}" if compiled else "")
        row = [title, *(duration(one) for one in each), times(case["ratio"])]
        row += [times(case.get("ratio_to_compiled"))] if compiled else []
        row.append(f"{case['floor']:.2f}{' (not met)' if case['floor_met'] is False else ''}")
        row.append(" / ".join(f"{one['peak_mib']:,.0f}" if "peak_mib" in one else "-" for one in each) + " MiB")
        if used:
            shares = case.get("utilisation", {})
            row.append(" / ".join(f"{shares[side]:.0%}" if side in shares else "-" for side in sides) if shares else "")
        lines.append(f"| {' | '.join(row)} |")
    versions = about["versions"]
    where = f"{about['device']}, {about['threads']} threads"
    lines.append(
        f"\n{where}; PyTorch {versions['torch']}, JAX {versions['jax']}. Medians (fastest to slowest); ratio is the "
        "time of PyTorch over that of kdjax, above 1 kdjax is faster."
    )
    product = cases.get("product", {}).get("ratio")
    if product is not None and about["backend"] == "cpu":
        lines.append(
            f"The plain matrix product's ratio, {times(product)}, is that of the two libraries on this processor; what "
            "is bound by products cannot be judged apart from it."
        )
    lines += [f"- {case['title']}, {case['dtype']}: {case['note']}" for case in cases.values() if case["note"]]
    return "\n".join(lines)


def duration(side: dict) -> str:
    if "median_s" not in side:
        return "failed" if "error" in side else "-"
    scale, unit, digits = (1, "s", 2) if side["median_s"] >= 1 else (1000, "ms", 1 if side["median_s"] < 0.1 else 0)
    middle, low, high = (f"{scale * side[k]:.{digits}f}" for k in ("median_s", "min_s", "max_s"))
    return f"{middle} {unit} ({low} to {high})"


def times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


if __name__ == "__main__":
    main()
