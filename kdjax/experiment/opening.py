"""Opening a run: finds all that is wrong before training, then claims the folder."""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdjax import config
from kdjax.config import ConfigError, Experiment, Stage, task_of
from kdjax.data import pipeline
from kdjax.data.dataset import Dataset
from kdjax.distill import vocabularies
from kdjax.distill.teachers import build_model
from kdjax.experiment import checks, plan
from kdjax.experiment.changes import check_owner
from kdjax.experiment.doubts import doubts
from kdjax.experiment.resolve import resolved
from kdjax.experiment.workdir import (
    MODEL,
    Run,
    as_left,
    claim,
    damage,
    files_inside,
    has_begun,
    result_of,
    stage_folder,
    stages_inside,
    weights_file,
)
from kdjax.report import trackers
from kdjax.tasks.classification import class_names
from kdjax.train import budget, kept, sharding
from kdjax.train.recording import warn
from kdjax.train.setup import Learner, initial_shapes, only, prepare, together
from kdjax.weights import safetensors

FEW = 64  # a batch of so many may hold an example more than once, where a data set is as small
BATCH = "batch_size"  # the file of a stage that holds what its budget allowed


def open_run(experiment: Experiment, workdir: str | Path, stage: str = "") -> Run:
    """The stages of an experiment made ready, with `stage` only that one and what it needs."""
    checks.validate(experiment)
    trackers.check(experiment.log)
    folder = Path(workdir)
    if fault := checks.name_fault(folder.absolute()):
        raise ConfigError(f"--workdir {fault}")
    check_owner(folder, experiment)
    opening = Opening(experiment, folder, sharding.make_mesh(experiment.mesh))
    for name, planned in plan.planned(experiment, stage).items():
        opening.add(name, planned)
    opening.refuse_other_data()
    claim(folder, experiment)
    opening.keep_batch_sizes()
    opened = Run(experiment, folder, opening.learners, opening.files, opening.warnings)
    look_over(opened)
    return opened


def look_over(opened: Run) -> None:
    """Tells of what is damaged of stages that are done, and refuses a damaged model, even where nobody reads it now."""
    for name in opened.learners:
        place = opened.folder_of(name)
        if has_begun(place):
            claim(place, opened.experiment)
        if opened.finished(name):
            as_left(place / MODEL)
            warn(*damage(place))


@dataclass
class Opening:
    """What has been read and built so far; stages share data sets and files."""

    experiment: Experiment
    folder: Path
    mesh: jax.sharding.Mesh
    learners: dict[str, Learner] = field(default_factory=dict)
    files: dict[str, dict] = field(default_factory=dict)  # variables by path
    warnings: list[str] = field(default_factory=list)  # of what works, and may still be wrong
    models: dict[str, config.Model | None] = field(default_factory=dict)  # which a file says it is for, by path
    datasets: dict[str, Dataset] = field(default_factory=dict)

    def add(self, name: str, stage: Stage) -> None:
        """Makes a stage ready and checks its weights."""
        teachers = {key: found_teacher(self.folder, name, stage, key) for key in stage.teachers}
        init = stage.init if stage.init.startswith("stage:") else weights_file(stage.init)
        parts = {part: weights_file(place) if plan.is_file(place) else place for part, place in stage.parts.items()}
        stage = replace(stage, teachers=teachers, init=init, parts=parts)
        for path in [*(path for _, path, _ in files_inside(stage)), *teacher_files(stage)]:
            self.files[path], about = safetensors.load(path)
            self.models[path] = safetensors.model_in(about)
        size = self.affordable(name, stage) if stage.budget.bytes else stage.data.batch_size
        self.learners[name] = self.ready(name, stage, size)
        self.check_weights(name)

    def ready(self, name: str, stage: Stage, size: int) -> Learner:
        """The stage with batches of `size`."""
        data = copy.copy(stage.data)
        data.batch_size = size
        parts = sharding.parts(self.mesh, size, stage.optim.accumulate, f"stages.{name}")
        key = json.dumps([config.to_dict(data), parts])
        self.datasets[key] = self.datasets.get(key) or pipeline.build(data, parts)
        if faults := example_faults(stage, 0 if stage.budget.bytes else size, self.datasets[key]):
            raise ConfigError("\n  ".join(f"stages.{name}.{fault}" for fault in faults))
        if data.num_classes is None:
            data.num_classes = self.datasets[key].facts.get("num_classes", 2)
        began = stage.init.removeprefix("stage:")
        started = self.models.get(began) if began == stage.init else self.learners[began].stage.model
        try:
            stage = resolved(replace(stage, data=data), self.datasets[key].facts, started)
        except ConfigError as error:
            raise ConfigError(f"stages.{name}.{error}") from error
        models = {earlier: learner.stage.model for earlier, learner in self.learners.items()}
        return prepare(name, stage, self.experiment, self.mesh, self.datasets[key], models)

    def affordable(self, name: str, stage: Stage) -> int:
        """The batch size that the stage's budget allows; where the stage has begun, the one it began with. A control
        has its student's."""
        if student := self.learners.get(name.removesuffix("_control")):
            return student.stage.data.batch_size
        begun = stage_folder(self.folder, name, stage) / BATCH
        if begun.exists():
            return begun_size(begun)
        unit = sharding.shares(self.mesh) * stage.optim.accumulate * stage.data.copies
        allowed = stage.budget
        try:
            return budget.fit(partial(self.ready, name, stage), allowed.bytes, unit, allowed.most, allowed.safety)
        except ConfigError as error:
            raise ConfigError(f"stages.{name}.{error}") from error

    def check_weights(self, name: str) -> None:
        """Refuses weights, from files and of earlier stages, that do not fit the models that start from them."""
        learner = self.learners[name]
        begun = [(what, part, self.files[path], self.models[path]) for what, path, part in files_inside(learner.stage)]
        for what, source, part in stages_inside(learner.stage):
            earlier = self.learners[source]
            begun.append((what, part, initial_shapes(earlier.model), earlier.stage.model))
        if begun:
            named, init = " and ".join(what for what, *_ in begun), {part: given for _, part, given, _ in begun}
            target, models = only(initial_shapes(learner.model), init), [model for *_, model in begun]
            if fault := vocabularies.fault(learner.stage.model, [model for model in models if model]):
                raise ConfigError(f"stages.{name}.{named}: {fault}")
            _check_fits(f"stages.{name}.{named}", target, together(init), models, learner.stage.init_skip)
        teachers = teacher_files(learner.stage)
        for path, (what, model) in teachers.items():
            target = initial_shapes(build_model(model))
            _check_fits(f"stages.{name}.{what}", target, self.files[path], [self.models[path]])
        wholes = {path: (what, learner.stage.model) for what, path, part in files_inside(learner.stage) if not part}
        for path, (what, model) in (wholes | teachers).items():
            if text := doubts(model, self.files[path], learner.dataset):
                self.warnings.append(f"{name}.{what}, {path}: {text}")

    def keep_batch_sizes(self) -> None:
        for name, learner in self.learners.items():
            if learner.stage.budget.bytes and jax.process_index() == 0:
                folder = stage_folder(self.folder, name, learner.stage)
                folder.mkdir(parents=True, exist_ok=True)
                kept.write_json(folder / BATCH, {BATCH: learner.stage.data.batch_size})

    def refuse_other_data(self) -> None:
        """Stages that are done learned from the same data as those that follow them, or are tested again."""
        for name, learner in self.learners.items():
            result = result_of(stage_folder(self.folder, name, learner.stage))
            if result and result.get("data", learner.dataset.fingerprints) != learner.dataset.fingerprints:
                raise ConfigError(
                    f"{self.folder}: stage {name!r} was trained on data of other contents than there are now; give it "
                    "the same data, or start anew with another --workdir"
                )


def example_faults(stage: Stage, size: int, dataset: Dataset) -> list[str]:
    """What a stage cannot learn from the examples that there are, in batches of `size`, 0 where a budget says it."""
    faults, most = [], len(dataset.trained_on) * stage.data.copies
    if dataset.item != "node" and size > max(most, FEW):
        faults.append(f"data.batch_size: expected at most {most}, as many as there are to train on, found {size}")
    if (stage.curriculum and stage.curriculum.scorer) or task_of(stage).name in ("detection", "fusion"):
        labels = dataset.labels("train")
        if missing := [kind for kind, label in (("normal", 0), ("attack", 1)) if not (labels == label).any()]:
            faults.append(
                f"data: expected normal and attack to learn from, found no {' and no '.join(missing)} among the "
                f"{len(labels)} examples to train on; add some that are labelled so"
            )
    if task_of(stage).name == "contrastive":
        counts = np.bincount(labels := dataset.labels("train")[dataset.labels("train") >= 0])
        if alone := [class_names(dataset, len(counts))[i] for i in np.flatnonzero(counts == 1)]:
            faults.append(
                f"data: expected two examples of a class at least, to be compared, found one of {', '.join(alone[:8])} "
                f"among the {len(labels)} to train on; add images, or leave these classes out"
            )
    return faults


def begun_size(path: Path) -> int:
    """The batch size that a stage began with; earlier versions wrote the number alone."""
    remedy = "remove it if the stage has not begun, and put it back or choose another --workdir if it has"
    text = kept.text_of(path, remedy)
    return int(text) if text.isdecimal() else kept.unsealed(text, path, remedy)[BATCH]


def found_teacher(folder: Path, name: str, stage: Stage, key: str) -> config.Teacher:
    """The teacher with its file, looked for by the student's folder where none is named, and the model of that file."""
    teacher = stage.teachers[key]
    if teacher.stage or teacher.average or teacher.part:
        return teacher
    if teacher.weights:
        path = weights_file(teacher.weights)
        if (model := teacher.model or safetensors.model_in(safetensors.load(path)[1])) is None:
            raise ConfigError(f"stages.{name}.teachers.{key}: {path} does not tell its model; name it, model=...")
        return replace(teacher, model=model, weights=path)
    pattern = plan.teacher_folders(stage.folder)
    own = folder / plan.without_teachers(stage).folder
    finished = [path for path in sorted(folder.glob(f"{pattern}/model.safetensors")) if path.parent != own]
    if len(finished) != 1:
        listed = " and ".join(map(str, finished)) or "none"
        raise ConfigError(
            f"stages.{name}.teachers.{key}: no teacher is named; expected one finished stage in {folder / pattern}, "
            f"found {listed}: train it first, or name a stage or a file of weights"
        )
    model = safetensors.model_in(safetensors.load(as_left(finished[0]))[1])
    return replace(teacher, model=model, weights=str(finished[0]))


def teacher_files(stage: Stage) -> dict[str, tuple[str, Any]]:
    """Each file of weights that a teacher is read from: where the config names it, and the model that it is for."""
    return {t.weights: (f"teachers.{k}.weights", t.model) for k, t in stage.teachers.items() if t.model}


def _check_fits(
    what: str, target: dict, source: dict, made_for: Sequence[config.Model | None], skip: tuple[str, ...] = ()
) -> None:
    try:
        safetensors.check(target, source, skip=skip)
    except safetensors.WeightsError as error:
        known = " and ".join(f"{model.name} with {model.options}" for model in made_for if model)
        model = f" (they are of {known})" if known else ""
        raise ConfigError(f"{what}: the weights are of another shape than the model{model}:\n{error}") from error
