"""Runs the stages of an experiment in order: check everything, train, gate, test, control run, report."""

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax

from kdjax import config
from kdjax.config import ConfigError, Experiment, Stage, nearest
from kdjax.data import pipeline
from kdjax.data.dataset import Dataset
from kdjax.distill.teachers import build_model
from kdjax.experiment import checks
from kdjax.experiment.outcome import likeness, report, summarise, test
from kdjax.experiment.resolve import resolved
from kdjax.experiment.workdir import Run, check_owner, claim, stage_folder, stages_inside, write
from kdjax.report import trackers
from kdjax.train import budget as memory
from kdjax.train import sharding
from kdjax.train.loop import Signals, count, evaluate, train
from kdjax.train.sampling import Ranked
from kdjax.train.setup import Learner, initial_shapes, part_of, prepare
from kdjax.weights import safetensors

BATCH = "batch_size"  # the file of a stage that holds what its budget allowed


class GateError(RuntimeError):
    """A stage did not reach what the next one needs."""


def run(experiment: Experiment, workdir: str | Path, stage: str = "") -> dict:
    """Trains what is not trained yet, from where it stopped, and returns the summary that the report shows.

    With `stage`, only that one and what it needs.
    """
    with Signals() as signals, compiling(quick=experiment.quick_compile):
        made = open_run(experiment, workdir, stage)
        if jax.process_index() == 0:
            print(overview(made), flush=True)
        for name, learner in made.learners.items():
            finished = made.of(name) / "result.json"
            if finished.exists():
                result = json.loads(finished.read_text())
            else:
                result = _train_and_test(made, name, learner, signals)
                if jax.process_index() == 0:
                    write(finished, json.dumps(result, indent=1))
            _gate(name, learner, result)
        summary = summarise(made)
        if jax.process_index() == 0:
            report(made, summary)
    return summary


@contextmanager
def compiling(quick: bool) -> Iterator[None]:
    """Within it, programs are compiled without most optimisations where `quick` is asked for."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", before or quick)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def open_run(experiment: Experiment, workdir: str | Path, stage: str = "") -> Run:
    """Everything that can be found wrong before training is found here; then the folder is claimed."""
    checks.validate(experiment)
    trackers.check(experiment.log)
    stages = _stages(experiment, stage)
    mesh = sharding.make_mesh(experiment.mesh)
    folder = Path(workdir)
    check_owner(folder, experiment)
    datasets: dict[str, Dataset] = {}
    learners: dict[str, Learner] = {}
    files: dict[str, dict] = {}
    made_for: dict[str, config.Model | None] = {}

    def ready(name: str, one: Stage, size: int) -> Learner:
        one = replace(one, data=sized(one.data, size))
        parts = sharding.parts(mesh, size, one.optim.accumulate, f"stages.{name}")
        key = json.dumps([config.to_dict(one.data), parts])
        datasets[key] = datasets.get(key) or pipeline.build(one.data, parts)
        try:
            one = resolved(one, datasets[key].facts, made_for.get(one.init))
        except ConfigError as error:
            raise ConfigError(f"stages.{name}.{error}") from error
        return prepare(name, one, experiment, mesh, datasets[key], {k: v.stage.model for k, v in learners.items()})

    for name, one in stages.items():
        one = replace(one, teachers={k: found_teacher(folder, name, one, k) for k in one.teachers})
        for path in _files(one):
            files[path], about = safetensors.load(path)
            made_for[path] = safetensors.model_in(about)
        size = one.data.batch_size
        if one.budget.bytes:
            student = learners.get(name.removesuffix("_control"))  # a control has its student's size, and no more
            make = partial(ready, name)
            size = student.stage.data.batch_size if student else _affordable(folder, name, one, mesh, make)
        made = learners[name] = ready(name, one, size)
        for path, (what, model) in _files(made.stage).items():
            skip = one.init_skip if path == one.init else ()
            _check_fits(f"stages.{name}.{what}", initial_shapes(build_model(model)), files[path], skip, made_for[path])
        for what, source, part in stages_inside(one):
            theirs = learners[source]
            mine = part_of(initial_shapes(made.model), part)
            _check_fits(f"stages.{name}.{what}", mine, initial_shapes(theirs.model), made_for=theirs.stage.model)
    claim(folder, experiment)
    for name, one in stages.items():
        if one.budget.bytes and jax.process_index() == 0:
            stage_folder(folder, name, one).mkdir(parents=True, exist_ok=True)
            write(stage_folder(folder, name, one) / BATCH, str(learners[name].stage.data.batch_size))
    return Run(experiment, folder, learners, files)


def sized(data: config.Data, size: int) -> config.Data:
    data = copy.copy(data)
    data.batch_size = size
    return data


def _affordable(
    folder: Path, name: str, stage: Stage, mesh: jax.sharding.Mesh, ready: Callable[[Stage, int], Learner]
) -> int:
    """The batch size that the stage's budget allows; that of before, where the stage has begun."""
    found, budget = stage_folder(folder, name, stage) / BATCH, stage.budget
    if found.exists():
        return int(found.read_text())
    unit = sharding.shares(mesh) * stage.optim.accumulate
    try:
        return memory.fit(partial(ready, stage), budget.bytes, unit, budget.most, budget.safety)
    except ConfigError as error:
        raise ConfigError(f"stages.{name}.{error}") from error


def overview(made: Run) -> str:
    """What is about to run and on what, a line each, with what a person should know about the data."""
    mesh = next(iter(made.learners.values())).mesh
    used = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    done = [name for name in made.learners if (made.of(name) / "result.json").exists()]
    lines = [
        f"workdir  {made.folder}",
        f"devices  {mesh.size} x {mesh.devices.flat[0].device_kind}{f' ({used})' if used else ''}",
        "stages   " + " > ".join(f"{name} (done)" if name in done else name for name in made.learners),
    ]
    read: dict[str, list[str]] = {}  # what each stage reads; told once for those that read the same
    notes: dict[str, None] = {}
    for name, learner in made.learners.items():
        data, counts = learner.stage.data, ", ".join(f"{n} {split}" for split, n in learner.dataset.sizes.items())
        read.setdefault(f"{data.source}, {counts}; {data.labelled:.0%} of train labelled", []).append(name)
        notes |= dict.fromkeys(f"note     {data.source}: {note}" for note in learner.dataset.notes)
        notes |= dict.fromkeys(f"warning  {name}: {text}" for text in oversized(made, learner))
    lines += [f"data     {line}" + (f" ({', '.join(names)})" if len(read) > 1 else "") for line, names in read.items()]
    lines += notes
    return "\n".join(lines) + "\n"


def oversized(made: Run, learner: Learner) -> list[str]:
    """What to say of a student that is as large as its teacher."""
    mine = count(initial_shapes(learner.model)["params"])
    told = []
    for key, teacher in learner.stage.teachers.items():
        model = teacher.model or made.learners[teacher.stage].stage.model
        theirs = count(initial_shapes(build_model(model))["params"])
        if mine >= theirs:
            told.append(f"with {mine:,} parameters it is no smaller than its teacher {key!r} with {theirs:,}")
    return told


def _stages(experiment: Experiment, only: str) -> dict[str, Stage]:
    """The stages to run, each distilled one followed at the end by its control."""
    wanted = config.needed(experiment)
    stages = {name: experiment.stages[name] for name in wanted}
    if experiment.control:
        stages |= {f"{k}_control": config.without_teachers(s) for k, s in stages.items() if s.teachers}
    if not only:
        return stages
    known = {**experiment.stages, **stages}
    if only not in known:
        raise ConfigError(f"--stage={only}: no such stage; {nearest(only, known)}")
    keep = [only]
    for name in keep:
        keep += [r for r in config.references(known[name]) if r not in keep]
    return {name: one for name, one in known.items() if name in keep}


def found_teacher(folder: Path, name: str, stage: Stage, key: str) -> config.Teacher:
    """The teacher, looked for by the student's folder where none is named."""
    teacher = stage.teachers[key]
    if teacher.stage or teacher.model:
        return teacher
    pattern = config.teacher_folders(stage.folder)
    own = folder / config.without_teachers(stage).folder
    found = [path for path in sorted(folder.glob(f"{pattern}/model.safetensors")) if path.parent != own]
    if len(found) != 1:
        what = " and ".join(map(str, found)) or "none"
        raise ConfigError(
            f"stages.{name}.teachers.{key}: no teacher is named; expected one finished stage in {folder / pattern}, "
            f"found {what}: train it first, or name a stage or a file of weights"
        )
    model = safetensors.model_in(safetensors.load(found[0])[1])
    return replace(teacher, model=model, weights=str(found[0]))


def _files(stage: Stage) -> dict[str, tuple[str, Any]]:
    """Each file of weights that a stage reads: where the config names it, and the model that it is for."""
    found = {stage.init: ("init", stage.model)} if stage.init and not stage.init.startswith("stage:") else {}
    return found | {t.weights: (f"teachers.{k}.weights", t.model) for k, t in stage.teachers.items() if t.model}


def _check_fits(
    what: str, target: dict, source: dict, skip: tuple[str, ...] = (), made_for: config.Model | None = None
) -> None:
    try:
        safetensors.check(target, source, skip=skip)
    except ValueError as error:
        of = f" (they are of {made_for.name} with {made_for.options})" if made_for else ""
        raise ConfigError(f"{what}: the weights are of another shape than the model{of}:\n{error}") from error


def _train_and_test(made: Run, name: str, learner: Learner, signals: Signals) -> dict:
    folder, stage = made.of(name), learner.stage
    given = made.init(stage), made.teachers(stage), made.experiment.log, signals
    told = train(learner, folder, *given, ranked(made, learner))
    whole = made.weights(name)
    result = test(learner, whole, folder, told["calibrated"])
    return {"title": stage.title or name, **told, **result, **likeness(made, learner, whole)}


def ranked(made: Run, learner: Learner) -> Ranked | None:
    """The training examples of a stage with a curriculum, ranked by the stage that scores them."""
    plan = learner.stage.curriculum
    if plan is None or not plan.scorer:
        return None
    scorer = replace(made.learners[plan.scorer], dataset=learner.dataset, stage=learner.stage)
    _, predicted = evaluate(scorer, scorer.place(made.weights(plan.scorer)), "train")
    return Ranked.by(plan, predicted[:, 0], learner.dataset.labels("train"))


def _gate(name: str, learner: Learner, result: dict) -> None:
    gate = learner.stage.gate
    if gate is None or result["best"] >= gate.at_least:
        return
    raise GateError(
        f"stage {name!r} reached {learner.task.primary} {result['best']:.4f} on the validation data, its gate asks for "
        f"{gate.at_least:.4f}. What learns from it would learn its faults: train it longer "
        f"(--config.stages.{name}.epochs), give it more labels, or lower --config.stages.{name}.gate.at_least; "
        "with another --workdir"
    )
