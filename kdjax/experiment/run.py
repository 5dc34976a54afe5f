"""Runs the stages of an experiment in order: train, test, gate, report."""

import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from kdjax.config import ConfigError, Experiment, Gate
from kdjax.experiment import checks, lock, plan
from kdjax.experiment.cost import peak_bytes
from kdjax.experiment.opening import open_run
from kdjax.experiment.outcome import beside, compare, data_of, measure_costs, report, summarise, test
from kdjax.experiment.robustness import robustness
from kdjax.experiment.workdir import Run, claim, forget_result, keep_result
from kdjax.report.terminal import printable
from kdjax.train.evaluation import evaluate
from kdjax.train.finish import count
from kdjax.train.loop import train
from kdjax.train.sampling import Ranked
from kdjax.train.setup import Learner, initial_shapes
from kdjax.train.signals import Signals


class GateError(RuntimeError):
    """A stage did not reach what the next one needs."""


def run(experiment: Experiment, workdir: str | Path, stage: str = "") -> dict:
    """Trains the unfinished stages from where they stopped, and returns the summary that the report shows.

    With `stage`, only that one and what it needs.
    """
    checks.validate(experiment)
    alone = lock.held(Path(workdir)) if jax.process_index() == 0 else nullcontext()
    with Signals() as signals, compiling(quick=experiment.quick_compile), alone:
        opened = open_run(experiment, workdir, stage)
        if jax.process_index() == 0:
            print(overview(opened), flush=True)
        skipped = run_stages(opened, signals)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("results")  # the first process wrote them, and all read them
        measure_costs(opened)
        summary = summarise(opened, skipped)
        if jax.process_index() == 0:
            report(opened, summary)
    return summary


def run_stages(opened: Run, signals: Signals) -> dict[str, str]:
    """Runs every stage but those that a gate decides against, which are returned with the reason."""
    stand_ins = plan.stand_ins({name: learner.stage for name, learner in opened.learners.items()})
    skipped = {name: f"{gated} reached its gate" for name, gated in stand_ins.items()}
    waiting = list(opened.learners)
    while waiting:
        name = waiting.pop(0)
        if name in skipped:
            continue
        result = opened.finished(name)
        if result is None:
            result = train_and_test(opened, name, signals)
            if jax.process_index() == 0:
                keep_result(opened.folder_of(name), result)
        gate = opened.learners[name].stage.gate
        if gate is None:
            continue
        verdict = plan.judged(name, gate, opened.learners[name].task.primary, result["best"])
        if verdict and (gate.otherwise != "stop" or result["best"] >= gate.at_least):
            say(verdict)
        if result["best"] < gate.at_least:
            waiting = otherwise(opened, name, gate, verdict, waiting, skipped)
    return skipped


def otherwise(
    opened: Run, name: str, gate: Gate, verdict: str, waiting: list[str], skipped: dict[str, str]
) -> list[str]:
    """What comes next after a stage that did not reach its gate."""
    if gate.otherwise == "stop":
        raise GateError(
            f"{verdict}. What learns from it would learn its faults: train it longer, --config.stages.{name}.epochs "
            "(where its schedule does not allow that, it says what to do), or lower "
            f"--config.stages.{name}.gate.at_least; or, in another --workdir, give it more labels"
        )
    if gate.otherwise != "control":
        opened.stand_in(name, gate.otherwise)
        skipped.pop(gate.otherwise)
        return waiting
    students = [k for k in waiting if any(t.stage == name for t in opened.learners[k].stage.teachers.values())]
    for student in students:
        control = f"{student}_control"
        skipped[student] = f"{name} did not reach its gate"
        if control in waiting:  # it takes the student's place, also for stages that refer to it
            waiting.remove(control)
            waiting.insert(waiting.index(student), control)
            opened.stand_in(student, control)
    return waiting


def say(text: str) -> None:
    if jax.process_index() == 0:
        print(f"gate     {text}\n", flush=True)


@contextmanager
def compiling(quick: bool) -> Iterator[None]:
    """A context that compiles programs without most optimisations if `quick`."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", before or quick)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def train_and_test(opened: Run, name: str, signals: Signals) -> dict:
    """The row of a stage in the summary."""
    learner, folder = opened.learners[name], opened.folder_of(name)
    stage = learner.stage
    log = replace(opened.experiment.log, group=opened.experiment.log.group or opened.folder.resolve().name)
    given = opened.init(stage), opened.teachers(stage), log, signals
    if jax.process_index() == 0:
        forget_result(folder, stage)
    claim(folder, opened.experiment)  # a copy, beside what was made with it
    trained = train(learner, folder, *given, ranked(opened, learner))
    variables = opened.weights(name)
    tested = test(learner, variables, folder, trained["calibrated"])
    others = [*beside(learner, opened.teachers(stage)), *tested.pop("beside", [])]
    return {
        "title": stage.title or name,
        **trained,
        **tested,
        **compare(opened, learner, variables, folder),
        **({"robustness": falls} if (falls := robustness(learner, variables)) else {}),
        **({"beside": others} if others else {}),
        "peak_bytes": peak_bytes(),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "command": command(),
    }


def command() -> str:
    """What started this process, as a person would type it."""
    program = Path(sys.argv[0])
    words = ["python", "-m", "kdjax.launch"] if program.name == "launch.py" else [program.name]
    return shlex.join([*words, *sys.argv[1:]])


def ranked(opened: Run, learner: Learner) -> Ranked | None:
    """The training examples of a stage with a curriculum, ranked by the stage that scores them."""
    curriculum = learner.stage.curriculum
    if curriculum is None or not curriculum.scorer:
        return None
    scorer = replace(opened.learners[curriculum.scorer], dataset=learner.dataset, stage=learner.stage)
    _, predictions = evaluate(scorer, scorer.place(opened.weights(curriculum.scorer)), "train")
    if "score" not in predictions:
        raise ConfigError(
            f"curriculum.scorer: the task of {curriculum.scorer!r} gives no 'score' but {', '.join(predictions)}"
        )
    return Ranked.by(curriculum, predictions["score"], learner.dataset.labels("train"))


# -- what is about to run --------------------------------------------------------------------------------------------


def overview(opened: Run) -> str:
    """What is about to run and on what, a line each, with what a person should know about the data."""
    mesh = next(iter(opened.learners.values())).mesh
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    done = [name for name in opened.learners if opened.finished(name)]
    lines = [
        f"workdir  {opened.folder}",
        f"devices  {mesh.size} x {mesh.devices.flat[0].device_kind}{f' ({axes})' if axes else ''}",
        "stages   " + " > ".join(f"{name} (done)" if name in done else name for name in opened.learners),
    ]
    notes: dict[str, None] = dict.fromkeys(f"warning  {text}" for text in opened.warnings)
    for name, learner in opened.learners.items():
        source = learner.stage.data.source
        notes |= dict.fromkeys(f"note     {source}: {note}" for note in learner.dataset.notes)
        notes |= dict.fromkeys(f"warning  {name}: {text}" for text in oversized(learner))
    lines += [f"data     {line}" for line in data_of(opened)]
    return printable("\n".join([*lines, *notes])) + "\n"


def oversized(learner: Learner) -> list[str]:
    """What to say of a student that is as large as its teacher."""
    student = count(initial_shapes(learner.model)["params"])
    sizes = {key: count(initial_shapes(network.model)["params"]) for key, network in learner.teachers.items()}
    return [
        f"with {student:,} parameters it is no smaller than its teacher {key!r} with {size:,}"
        for key, size in sizes.items()
        if student >= size
    ]
