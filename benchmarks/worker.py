"""A process that holds one side of one case and runs it when asked."""

import importlib
import math
import resource
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection

from benchmarks.cases import CASES

MODULES = {"torch": "torch_side", "torch_compiled": "torch_side", "kdjax": "jax_side"}
TURN = 0.5  # seconds that a turn lasts at least, so that short work is no matter of the clock


def facts(pipe: Connection, side: str) -> None:
    answer(pipe, lambda: module(side).facts())


def serve(pipe: Connection, side: str, name: str, dtype: str, threads: int) -> None:
    made = lambda: module(side).build(CASES[name], dtype, side == "torch_compiled", threads)  # noqa: E731
    turns(pipe, made, lambda: module(side).peak_bytes())


def turns(pipe: Connection, build: Callable[[], tuple], on_device: Callable[[], int | None]) -> None:
    """Answers, in turn: what is known after the warm-up; for each "run" the seconds of one call; for "end" the peak.

    `build` gives what runs the work once, what waits for a result, and the number of trained parameters.
    """

    def warm_up() -> dict:
        nonlocal once, wait, calls
        began = time.perf_counter()
        once, wait, trained = build()
        built = time.perf_counter()
        wait(once())
        first = time.perf_counter()
        for _ in range(2):
            wait(once())
        calls = max(1, min(1000, math.ceil(TURN / max(1e-6, (time.perf_counter() - first) / 2))))
        return {"build_s": built - began, "first_call_s": first - built, "trained": trained, "calls": calls}

    def turn() -> float:
        began = time.perf_counter()
        for _ in range(calls):
            result = once()
        wait(result)
        return (time.perf_counter() - began) / calls

    def peak() -> float:
        """MiB: the allocator's on a GPU, else all that the process ever held, imports and compiling included."""
        return (on_device() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 2**20

    once, wait, calls = (lambda: None), (lambda _: None), 1
    answer(pipe, warm_up)
    while pipe.recv() == "run":
        answer(pipe, turn)
    answer(pipe, peak)


def answer(pipe: Connection, ask) -> None:
    """(True, result), or (False, what went wrong) and the end of the process."""
    try:
        pipe.send((True, ask()))
    except Exception:
        pipe.send((False, traceback.format_exc()))
        raise SystemExit(1) from None


def module(side: str):
    return importlib.import_module(f"benchmarks.{MODULES[side]}")
