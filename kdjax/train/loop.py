"""Training one stage, read top to bottom.

Killed at any moment and started again, the loop ends in the same bits: batches are found by their step number, keys
are folded from it, and what is written is written whole or not at all.
"""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from kdjax.config import ConfigError, Log, Stage
from kdjax.report.progress import Progress
from kdjax.report.trackers import Trackers
from kdjax.train import checkpoint, optim, sharding
from kdjax.train.setup import Learner
from kdjax.train.step import eval_params
from kdjax.weights import safetensors


class Stopped(Exception):
    """A signal asked for an end; everything is saved."""


class Diverged(RuntimeError):
    """A number became infinite or NaN."""


class Signals:
    """Remembers that SIGTERM or Ctrl-C came, so that the step in flight ends and its state is saved."""

    def __init__(self):
        self.asked = False
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for name in (signal.SIGTERM, signal.SIGINT):
                signal.signal(name, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked and number == signal.SIGINT:  # a second Ctrl-C is meant
            raise KeyboardInterrupt
        self.asked = True

    def stop(self, step: int) -> bool:
        """Whether to stop after this step; over several hosts JAX's own watch on SIGTERM makes all agree on one."""
        return self.asked if jax.process_count() == 1 else multihost_utils.reached_preemption_sync_point(step)


def train(learner: Learner, folder: Path, init: dict | None, teachers: dict, log: Log, signals: Signals) -> dict:
    """Trains a stage, or goes on where it stopped, and leaves the best epoch's `model.safetensors` in `folder`.

    Returns what there is to tell: epochs, the best one and its measure, seconds, the share spent waiting for data.
    """
    stage, task, mesh = learner.stage, learner.task, learner.mesh
    primary = jax.process_index() == 0
    per_epoch = learner.steps_per_epoch
    folder.mkdir(parents=True, exist_ok=True)

    state, fixed, outside = learner.start(init, teachers)
    progress = {"epochs": 0, "best": None, "best_epoch": 0, "best_file": "", "seconds": 0.0, "outside": outside}
    saved = checkpoint.latest(folder / "checkpoints")
    if saved is not None:
        state, progress = checkpoint.restore(folder / "checkpoints", saved, state)
        if progress["outside"] != outside:
            raise ConfigError(
                f"{folder}: this run began with other teachers or initial weights than it is given now; "
                "give it the same ones, or start anew with another --workdir"
            )
    start = int(state.step)

    placed = jax.tree.map(lambda x: x.sharding, state)
    step_fn = jax.jit(learner.step.train, donate_argnums=0, out_shardings=(placed, sharding.replicated(mesh)))
    norms_fn = jax.jit(learner.step.grad_norms)
    tracked = Trackers(folder, log, name=learner.name, steps_done=start, primary=primary)
    title = stage.title or learner.name
    bar = Progress(title, per_epoch * stage.epochs, start, epochs=stage.epochs, enabled=primary)
    shares = {"process": jax.process_index(), "processes": jax.process_count()}
    batches = learner.dataset.train(stage.data.batch_size, seed=learner.seed, start=start, labelled_only=not learner.step.teachers, **shares)
    clock = Clock(stage.data.batch_size, progress["seconds"])
    pending: list[tuple[int, dict]] = []  # the measures of the last step, read while the next one runs

    def record() -> None:
        for step, measures in pending:
            values = averages(measures)
            refuse_non_finite(values, step, folder)
            bar.update(step, {"loss": values["loss"]}, clock.rate, clock.waiting)
            if step % log.every == 0 or step % per_epoch in (0, 1):
                values["lr"] = float(learner.step.rate(step - 1) * optim.plateau_scale(state.opt_state))
                tracked.write(step, "train", values, {"images_per_s": clock.rate, "wait": clock.waiting})
        pending.clear()

    def save() -> None:
        record()
        progress["seconds"] = clock.seconds
        checkpoint.save(folder / "checkpoints", int(state.step), state, progress)

    step = start
    while progress["epochs"] < stage.epochs and not stop_early(stage, progress):
        with clock.wait():
            batch = sharding.global_batch(next(batches), mesh)
        begins = step % per_epoch == 0 and stage.grad_norms_every and progress["epochs"] % stage.grad_norms_every == 0
        norms = norms_fn(state, fixed, batch) if begins else {}
        state, measures = step_fn(state, fixed, batch)
        step += 1
        record()
        clock.count()
        pending.append((step, {**measures, **norms}))

        if step % per_epoch == 0:
            record()
            whole = learner.whole_fn(eval_params(state), state.batch_stats, fixed["frozen"])
            measured, _ = evaluate(learner, whole, "val")
            progress["epochs"] += 1
            tracked.write(step, "val", measured)
            bar.update(step, {task.primary: measured[task.primary]}, clock.rate, clock.waiting)
            least = stage.stop.min_delta if stage.stop else 0.0
            if progress["best"] is None or measured[task.primary] > progress["best"] + least:
                name = f"best_epoch{progress['epochs']:03d}_{task.primary}{measured[task.primary]:.4f}.safetensors"
                progress |= {"best": measured[task.primary], "best_epoch": progress["epochs"], "best_file": name}
                keep(folder / name, {"params": eval_params(state), "batch_stats": state.batch_stats})
            save()
            for old in folder.glob("best_*.safetensors") if primary else ():
                if old.name != progress["best_file"]:
                    old.unlink(missing_ok=True)
        elif stage.save_every and step % stage.save_every == 0:
            save()
        if signals.stop(step):
            save()
            bar.line(f"{title}: stopped at step {step}, saved in {folder / 'checkpoints'}")
            raise Stopped
    bar.close()
    tracked.close()

    best, _ = safetensors.load(folder / progress["best_file"])
    best = learner.place({"batch_stats": {"model": {}}, **best})
    whole = learner.whole_fn(best["params"], best["batch_stats"], fixed["frozen"])
    keep(folder / "model.safetensors", whole, {"model": stage.model.name})
    return {
        **{k: progress[k] for k in ("epochs", "best", "best_epoch", "seconds")},
        "wait": clock.waiting,
        "parameters": count(whole["params"]),
        "trained_parameters": count(state.params),
    }


def evaluate(learner: Learner, whole: dict, split: str) -> tuple[dict[str, float], list[np.ndarray]]:
    """The task's measures over a split, and the prediction for each of its examples, by a model's whole variables."""
    sums: dict[str, list[float]] = {}
    predictions: list[np.ndarray] = []
    shares = {"process": jax.process_index(), "processes": jax.process_count()}
    for local in learner.dataset.evaluate(split, learner.stage.data.batch_size, **shares):
        batch = sharding.global_batch(local, learner.mesh)
        measures, predicted = jax.device_get(learner.evaluate_fn(whole, batch))
        for name, (total, seen) in measures.items():
            old = sums.setdefault(name, [0.0, 0.0])
            old[0], old[1] = old[0] + float(total), old[1] + float(seen)
        predictions.extend(predicted)
    return {k: total / max(seen, 1.0) for k, (total, seen) in sums.items()}, predictions[: learner.dataset.sizes[split]]


def averages(measures: dict) -> dict[str, float]:
    """Totals over counts, on the host."""
    return {k: float(total) / max(float(seen), 1.0) for k, (total, seen) in jax.device_get(measures).items()}


def refuse_non_finite(values: dict[str, float], step: int, folder: Path) -> None:
    wrong = [k.removeprefix("terms/") for k, v in values.items() if not math.isfinite(v)]
    if wrong:
        terms = [k for k in wrong if k not in ("loss", "grad_norm")]
        what = f"term {', '.join(map(repr, terms))}" if terms else f"the {'gradient' if wrong == ['grad_norm'] else 'loss'}"
        raise Diverged(
            f"step {step}: {what} is not finite any more. The last good checkpoint is kept in {folder / 'checkpoints'}; "
            "try a lower learning rate, optim.clip=1.0, or dtype=float32"
        )


def stop_early(stage: Stage, progress: dict) -> bool:
    return stage.stop is not None and progress["epochs"] - progress["best_epoch"] >= stage.stop.patience


def keep(path: Path, variables: dict, metadata: dict[str, str] | None = None) -> None:
    """Writes whole arrays; every process takes part in the gathering, the first one writes."""
    whole = sharding.to_host(variables)
    if jax.process_index() == 0:
        safetensors.save(path, whole, metadata or {})
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(str(path))


def count(params: dict) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


class Clock:
    """Time of the steps after the first, which compiles: images per second, and the share spent waiting for data."""

    def __init__(self, batch_size: int, seconds: float):
        self.batch_size, self.before, self.began = batch_size, seconds, time.monotonic()
        self.first: float | None = None
        self.steps, self.waited = 0, 0.0

    @contextmanager
    def wait(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.waited += time.monotonic() - began if self.first is not None else 0.0

    def count(self) -> None:
        """A step is done."""
        if self.first is None:
            self.first = time.monotonic()
        else:
            self.steps += 1

    @property
    def seconds(self) -> float:
        """Since the run began, over all its restarts."""
        return self.before + time.monotonic() - self.began

    @property
    def rate(self) -> float:
        return self.steps * self.batch_size / self._elapsed

    @property
    def waiting(self) -> float:
        return min(1.0, self.waited / self._elapsed)

    @property
    def _elapsed(self) -> float:
        return max(time.monotonic() - self.first, 1e-9) if self.first is not None else 1e-9
