"""Training one stage, read top to bottom.

Killed at any moment and started again, the loop ends in the same bits: batches are found by their step number, keys
are folded from it, and what is written is written whole or not at all.
"""

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdjax.config import Log
from kdjax.data.fields import known
from kdjax.report.trackers import METRICS
from kdjax.train import checkpoint, kept, knobs, sharding
from kdjax.train.evaluation import evaluate
from kdjax.train.finish import count, finish, keep
from kdjax.train.recording import Record, Recorder, refuse_non_finite, warn, written
from kdjax.train.sampling import Ranked
from kdjax.train.setup import Learner
from kdjax.train.signals import Signals, Stopped
from kdjax.train.step import State, eval_params

BEST = "best_epoch{epoch:03d}_{measure}{value:.4f}.safetensors"
OURS = re.compile(r"best_epoch\d+_\w+?-?[\d.]+\.safetensors|\.(best_epoch|model).*\.partial")


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
    stage, per_epoch, checkpoints = learner.stage, learner.steps_per_epoch, folder / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    state, fixed, fingerprint = learner.start(init, teachers)
    state, record = resumed(folder, state, begun_with(learner, fingerprint), ranked)
    numbers = knobs.measured(learner.knobs, record.measures) if record.epochs else learner.knobs
    step = begun = int(state.step)
    norms_fn = jax.jit(learner.step.grad_norms)
    norms_every = stage.grad_norms_every * per_epoch
    batches = dealt(learner, step, record, ranked)

    with closing(Recorder(learner, folder, log, record, begun, ranked is not None)) as recorder:
        if not stage.epochs:
            validate(learner, folder, state, fixed, record, recorder, ranked)
            recorder.line(f"{stage.title or learner.name}: not trained, {learner.task.primary} {record.best:.3f}")

        def save() -> None:
            recorder.flush()
            record.seconds, record.written = recorder.clock.seconds, written(folder / METRICS)
            checkpoint.save(checkpoints, step, state, record.to_dict())

        while not record.is_over(stage.epochs, stage.stop):
            with recorder.clock.wait():
                local = next(batches)
            batch = sharding.global_batch(local, learner.mesh)
            norms = norms_fn(state, fixed, numbers, batch) if norms_every and step % norms_every == 0 else {}
            state, measures = learner.train_fn(state, fixed, numbers, batch)
            step += 1
            recorder.step(step, {**measures, **norms})
            if step % per_epoch == 0:
                record.epochs += 1
                validate(learner, folder, state, fixed, record, recorder, ranked)
                save()
                prune(folder, record.best_file)
                numbers = knobs.measured(numbers, record.measures)
                batches = dealt(learner, step, record, ranked) if ranked else batches
            elif stage.save_every and step % stage.save_every == 0:
                save()
            if asked := signals.stop(step):
                save()
                recorder.line(f"{stage.title or learner.name}: stopped at step {step}, saved in {checkpoints}")
                raise Stopped(asked)

        if advice := what_to_try(learner, record):
            recorder.line(f"warning  {advice}\n")

    told = made_of(learner, state, recorder) | ({"advice": advice} if advice else {})
    return finish(learner, folder, record, fixed) | told


def made_of(learner: Learner, state: State, recorder: Recorder) -> dict[str, Any]:
    """What a stage was trained on, how many parameters of it, and how fast."""
    speed = {"wait": recorder.clock.waiting, "rate": recorder.clock.rate}
    return {**speed, "trained_parameters": count(state.params), "data": learner.dataset.fingerprints}


def begun_with(learner: Learner, fingerprint: str) -> dict[str, Any]:
    """What a run begins with that is not in its config, and may not be another when it goes on."""
    return {
        "teachers and initial weights": fingerprint,
        "numbers of examples": learner.dataset.sizes,
        "contents of the data": learner.dataset.fingerprints,
        "batch size": learner.stage.data.batch_size,
    }


def resumed(folder: Path, state: State, outside: dict[str, Any], ranked: Ranked | None) -> tuple[State, Record]:
    """State and record of the newest whole checkpoint, or as they are before the first step."""
    checkpoints, faults = folder / "checkpoints", []
    for step in checkpoint.steps(checkpoints):
        if fault := checkpoint.fault(checkpoints, step) or Record.resumed(checkpoints, step).fault(folder):
            faults.append(fault)
            continue
        record = Record.resumed(checkpoints, step)
        record.refuse_other_start(folder, outside)
        state = checkpoint.restore(checkpoints, step, state)
        warn(*(f"{fault}; goes on from step {step} instead" for fault in faults), record.metrics_fault(folder))
        prune(folder, record.best_file)
        return state, record
    if faults:
        listed = "\n  ".join(faults)
        raise kept.Damaged(
            f"{folder}: no checkpoint is left that this stage can go on from:\n  {listed}\n"
            f"Put back what was there, or remove {checkpoints} to start this stage over."
        )
    prune(folder)
    return state, Record(outside, ratio=ranked.plan.start if ranked else 0.0)


def dealt(learner: Learner, step: int, record: Record, ranked: Ranked | None) -> Iterator[dict[str, np.ndarray]]:
    """Batches from this step on: to the end, or, under a curriculum, of this epoch."""
    # Where everything needs labels that may be missing, examples without any would only dilute a batch.
    labelled_only = all(
        not term.term.over and any(known(label) in learner.dataset.fields for label in term.labels)
        for term in learner.terms
    )
    return learner.dataset.train(
        learner.stage.data.batch_size,
        seed=learner.seed,
        start=step,
        labelled_only=labelled_only,
        pool=ranked.pool(record.ratio) if ranked else None,
        process=jax.process_index(),
        processes=jax.process_count(),
    )


def validate(
    learner: Learner,
    folder: Path,
    state: State,
    fixed: dict,
    record: Record,
    recorder: Recorder,
    ranked: Ranked | None,
) -> None:
    """Measures what has been learned, and keeps the model where it is the best so far."""
    recorder.flush()
    collections = state.collections["model"]
    measures, predictions = evaluate(learner, learner.whole_fn(eval_params(state), collections, fixed["frozen"]), "val")
    step = int(state.step)
    refuse_non_finite({f"validation {k}": v for k, v in measures.items()}, step, folder / "checkpoints")
    record.measures = measures
    if ranked:
        record.ratio = ranked.next_ratio(record.epochs, record.ratio, measures["confidence"])
    recorder.validation(step, measures, predictions)
    value = measures[learner.task.primary]
    record.lowest = min(value, value if record.lowest is None else record.lowest)
    if record.improves(value, learner.stage.stop):
        record.best, record.best_epoch = value, record.epochs
        record.best_file = BEST.format(epoch=record.epochs, measure=learner.task.primary, value=value)
        keep(folder / record.best_file, {"params": eval_params(state), "collections": collections})
        record.best_checksum = kept.checksum(folder / record.best_file)


def what_to_try(learner: Learner, record: Record) -> str:
    """What to say of a stage whose validation stayed where it was; "" of one that moved."""
    if not record.unmoved():
        return ""
    at, steps = f"--config.stages.{learner.name.removesuffix('_control')}", learner.steps_per_epoch
    return (
        f"{learner.stage.title or learner.name}: {learner.task.primary} stayed at {record.best:.3f} in all "
        f"{record.epochs} epochs, of {steps} steps each. To try: more epochs ({at}.epochs), a higher learning rate "
        f"({at}.optim.lr), smaller batches ({at}.data.batch_size); --mode=look shows whether the labels are right"
    )


def prune(folder: Path, best_file: str = "") -> None:
    """Removes what neither this nor a checkpoint refers to: earlier best files, and what a killed run was writing."""
    if jax.process_index() == 0:
        checkpoints = folder / "checkpoints"
        steps = [step for step in checkpoint.steps(checkpoints) if not checkpoint.fault(checkpoints, step)]
        used = {best_file, *(Record.resumed(checkpoints, step).best_file for step in steps)}
        for path in folder.iterdir():
            if OURS.fullmatch(path.name) and path.name not in used:
                path.unlink(missing_ok=True)
