"""Training one stage, read top to bottom.

Killed at any moment and started again, the loop ends in the same bits: batches are found by their step number, keys
are folded from it, and what is written is written whole or not at all.
"""

import json
import math
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from kdjax.config import ConfigError, Log, Stage
from kdjax.report.progress import Progress
from kdjax.report.trackers import Trackers
from kdjax.train import checkpoint, sharding
from kdjax.train.sampling import Ranked
from kdjax.train.setup import Learner
from kdjax.train.step import eval_params
from kdjax.weights import safetensors

BEST = "best_epoch{epoch:03d}_{measure}{value:.4f}.safetensors"
OURS = re.compile(r"best_epoch\d+_\w+?-?[\d.]+\.safetensors|\.(best_epoch|model).*\.partial")


class Stopped(Exception):
    """A signal asked for an end; everything is saved."""


class Diverged(RuntimeError):
    """A number became infinite or NaN."""


class Signals:
    """While entered, remembers that SIGTERM or Ctrl-C came, so that the step in flight ends and its state is saved."""

    def __init__(self):
        self.asked = False
        self._before: dict = {}

    def __enter__(self) -> "Signals":
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = {name: signal.signal(name, self._ask) for name in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: Any) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked and number == signal.SIGINT:  # a second Ctrl-C is meant
            raise KeyboardInterrupt
        self.asked = True

    def stop(self, step: int) -> bool:
        """Whether to stop after this step; over several hosts JAX's own watch on SIGTERM makes all agree on one."""
        return self.asked if jax.process_count() == 1 else multihost_utils.reached_preemption_sync_point(step)


def train(
    learner: Learner,
    folder: Path,
    init: dict[str, dict],
    teachers: dict,
    log: Log,
    signals: Signals,
    ranked: Ranked | None = None,
) -> dict:
    """Trains a stage, or goes on where it stopped, and leaves the best epoch's `model.safetensors` in `folder`.

    Returns what there is to tell: epochs, the best one and its measure, seconds, the share spent waiting for data.
    """
    stage, task, mesh = learner.stage, learner.task, learner.mesh
    title, primary = stage.title or learner.name, jax.process_index() == 0
    per_epoch, checkpoints = learner.steps_per_epoch, folder / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)

    state, fixed, weights = learner.start(init, teachers)
    outside = {"teachers and initial weights": weights, "numbers of examples": learner.dataset.sizes}
    progress = {
        "epochs": 0,
        "best": None,
        "best_epoch": 0,
        "best_file": "",
        "seconds": 0.0,
        "ratio": 0.0,
        "outside": outside,
    }
    saved = checkpoint.latest(checkpoints)
    if saved is not None:
        progress = checkpoint.progress(checkpoints, saved)
        refuse_other_start(folder, progress["outside"], outside)
        state = checkpoint.restore(checkpoints, saved, state)
    start = step = saved or 0
    prune(folder, progress)

    placed = jax.tree.map(lambda x: x.sharding, state)
    step_fn = jax.jit(learner.step.train, donate_argnums=0, out_shardings=(placed, sharding.replicated(mesh)))
    norms_fn = jax.jit(learner.step.grad_norms)
    share = {"process": jax.process_index(), "processes": jax.process_count()}
    supervised = all(bound.term.label and not bound.term.over for bound in learner.step.terms)
    dealt = {"seed": learner.seed, "labelled_only": supervised, **share}

    def deal() -> Iterator[dict[str, np.ndarray]]:
        """Batches from this step on: to the end, or, under a curriculum, of this epoch."""
        pool = ranked.pool(progress["ratio"]) if ranked else None
        return learner.dataset.train(stage.data.batch_size, start=step, pool=pool, **dealt)

    if ranked and not step:
        progress["ratio"] = ranked.plan.start  # of normal examples to attacks
    batches = deal()
    clock = Clock(stage.data.batch_size, progress["seconds"])
    pending: list[tuple[int, dict]] = []  # the measures of the last step, read while the next one runs

    def record() -> None:
        for at, measures in pending:
            values = averages(measures)
            refuse_non_finite(values, at, checkpoints)
            bar.update(at, {"loss": values["loss"]}, clock.rate, clock.waiting)
            told = {"ratio": progress["ratio"]} if ranked else {}
            if at % log.every == 0 or at % per_epoch in (0, 1):
                tracked.write(
                    at, "train", values | told, {f"{learner.dataset.item}s_per_s": clock.rate, "wait": clock.waiting}
                )
        pending.clear()

    def save() -> None:
        record()
        progress["seconds"] = clock.seconds
        checkpoint.save(checkpoints, step, state, progress)

    unit = {"image": "img"}.get(learner.dataset.item, learner.dataset.item)
    with (
        closing(Trackers(folder, log, name=learner.name, steps_done=start, primary=primary)) as tracked,
        closing(
            Progress(title, per_epoch * stage.epochs, start, epochs=stage.epochs, unit=unit, enabled=primary)
        ) as bar,
    ):
        while progress["epochs"] < stage.epochs and not stop_early(stage, progress):
            with clock.wait():
                local = next(batches)
            batch = sharding.global_batch(local, mesh)
            every = stage.grad_norms_every * per_epoch
            norms = norms_fn(state, fixed, batch) if every and step % every == 0 else {}
            state, measures = step_fn(state, fixed, batch)
            step += 1
            record()
            clock.count()
            pending.append((step, {**measures, **norms}))

            if step % per_epoch == 0:
                record()
                whole = learner.whole_fn(eval_params(state), state.batch_stats["model"], fixed["frozen"])
                measured, _ = evaluate(learner, whole, "val")
                refuse_non_finite({f"validation {k}": v for k, v in measured.items()}, step, checkpoints)
                progress["epochs"] += 1
                if ranked:
                    progress["ratio"] = ranked.next_ratio(progress["epochs"], progress["ratio"], measured["confidence"])
                    batches = deal()
                tracked.write(step, "val", measured)
                bar.update(step, {task.primary: measured[task.primary]}, clock.rate, clock.waiting)
                least = stage.stop.min_delta if stage.stop else 0.0
                if progress["best"] is None or measured[task.primary] > progress["best"] + least:
                    name = BEST.format(epoch=progress["epochs"], measure=task.primary, value=measured[task.primary])
                    progress |= {"best": measured[task.primary], "best_epoch": progress["epochs"], "best_file": name}
                    keep(folder / name, {"params": eval_params(state), "batch_stats": state.batch_stats})
                save()
                prune(folder, progress)
            elif stage.save_every and step % stage.save_every == 0:
                save()
            if signals.stop(step):
                save()
                bar.line(f"{title}: stopped at step {step}, saved in {checkpoints}")
                raise Stopped

    best, _ = safetensors.load(folder / Path(progress["best_file"]).name)
    best = learner.place({"params": best["params"], "stats": best.get("batch_stats", {}).get("model", {})})
    whole = learner.whole_fn(best["params"], best["stats"], fixed["frozen"])
    calibrated = task.calibrate(evaluate(learner, whole, "val")[1], learner.dataset)
    about = {**safetensors.about(stage.model), **{k: repr(v) for k, v in calibrated.items()}}
    keep(folder / "model.safetensors", whole, about)
    for name, told in learner.dataset.keepsakes.items() if primary else ():
        (folder / name).write_text(json.dumps(told))
    return {
        "calibrated": calibrated,
        **{k: progress[k] for k in ("epochs", "best", "best_epoch", "seconds")},
        "wait": clock.waiting,
        "parameters": count(whole["params"]),
        "trained_parameters": count(state.params),
    }


def evaluate(learner: Learner, whole: dict, split: str) -> tuple[dict[str, float], np.ndarray]:
    """The task's measures over a split, and the prediction for each of its examples, by a model's whole variables."""
    sums: dict[str, list[float]] = {}
    found: np.ndarray = np.zeros(0)
    shares = {"process": jax.process_index(), "processes": jax.process_count()}
    for local in learner.dataset.evaluate(split, learner.stage.data.batch_size, **shares):
        batch = sharding.global_batch(local, learner.mesh)
        measures, predicted, index = jax.device_get(learner.evaluate_fn(whole, batch))
        for name, (total, seen) in measures.items():
            old = sums.setdefault(name, [0.0, 0.0])
            old[0], old[1] = old[0] + float(total), old[1] + float(seen)
        if not len(found):
            found = np.zeros((learner.dataset.sizes[split], *predicted.shape[1:]), predicted.dtype)
        found[index[index >= 0]] = predicted[index >= 0]
    return {k: total / max(seen, 1.0) for k, (total, seen) in sums.items()}, found


def averages(measures: dict) -> dict[str, float]:
    """Totals over counts, on the host."""
    return {k: float(total) / max(float(seen), 1.0) for k, (total, seen) in jax.device_get(measures).items()}


def refuse_non_finite(values: dict[str, float], step: int, checkpoints: Path) -> None:
    wrong = [k for k, v in values.items() if not math.isfinite(v)]
    if wrong:
        # A term that is not finite makes all sums so: it alone is named, where there is one.
        terms = [f"term {k.removeprefix('terms/')!r}" for k in wrong if k.startswith("terms/")]
        parts = [f"the gradient of term {k.removeprefix('grad_norm/')!r}" for k in wrong if k.startswith("grad_norm/")]
        what = terms or parts or ["the gradient" if k == "grad_norm" else f"the {k}" for k in wrong]
        kept = f"the last good checkpoint is kept in {checkpoints}"
        raise Diverged(
            f"step {step}: {', '.join(what)} is not finite any more; "
            f"{kept if checkpoint.latest(checkpoints) is not None else 'nothing was saved before'}. "
            "Try a lower learning rate, optim.clip=1.0, or dtype=float32, with another --workdir"
        )


def refuse_other_start(folder: Path, began: dict, now: dict) -> None:
    changed = [what for what in now if now[what] != began.get(what)]
    if changed:
        raise ConfigError(
            f"{folder}: this run began with other {' and '.join(changed)} than it is given now; "
            "give it the same ones, or start anew with another --workdir"
        )


def prune(folder: Path, progress: dict) -> None:
    """Removes what no checkpoint refers to: earlier best files, and what a killed run was writing."""
    if jax.process_index() == 0:
        for path in folder.iterdir():
            if OURS.fullmatch(path.name) and path.name != progress["best_file"]:
                path.unlink(missing_ok=True)


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
