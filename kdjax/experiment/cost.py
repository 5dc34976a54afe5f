"""What it costs to use the models of a run: time, measured in turns so that they can be compared, and operations."""

import resource
import sys
import time
from typing import Any

import jax
import numpy as np

from kdjax.train import sharding
from kdjax.train.setup import Learner

ROUNDS = 7


def costs(models: dict[str, tuple[Learner, dict]]) -> dict[str, dict[str, float | None]]:
    """Of each model the median milliseconds and the floating-point operations for an example, in the compiled
    evaluation of a batch. Every round asks each model once, so that whatever else the machine does slows all alike."""
    calls = {name: evaluation(learner, variables) for name, (learner, variables) in models.items()}
    for run, *given, _ in calls.values():
        jax.block_until_ready(run(*given))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, (run, *given, _) in calls.items():
            began = time.perf_counter()
            jax.block_until_ready(run(*given))
            seconds[name].append(time.perf_counter() - began)
    return {
        name: {
            "ms_per_image": 1e3 * float(np.median(seconds[name])) / examples,
            "flops_per_image": operations(run.lower(*given)) / examples or None,
        }
        for name, (run, *given, examples) in calls.items()
    }


def evaluation(learner: Learner, variables: dict) -> tuple[Any, dict, dict, int]:
    """The compiled evaluation of a model, what it is given, and for how many examples."""
    share: dict[str, Any] = {"process": jax.process_index(), "processes": jax.process_count()}
    local = next(iter(learner.dataset.evaluate("test", learner.stage.data.batch_size, **share)))
    batch = sharding.global_batch(local, learner.mesh)
    return learner.evaluate_fn, learner.place(variables), batch, batch["valid"].size


def operations(lowered: Any) -> float:
    """As the compiler counts them; 0 where it does not."""
    return float((lowered.cost_analysis() or {}).get("flops", 0.0))


def peak_bytes() -> int:
    """The most memory so far: of the accelerator where it tells, else of the process."""
    of_device = jax.local_devices()[0].memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024
    return of_device.get("peak_bytes_in_use") or unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
