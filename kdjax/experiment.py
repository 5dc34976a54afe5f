"""Runs the stages of an experiment in order: check everything, train, gate, test, control run, report."""

import csv
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdjax import checks, config
from kdjax.config import ConfigError, Experiment, Stage, nearest
from kdjax.data import pipeline
from kdjax.data.dataset import Dataset
from kdjax.data.graphs import GraphSet
from kdjax.distill.taps import Network
from kdjax.distill.teachers import build_model
from kdjax.report import cka, tables, trackers
from kdjax.tasks.tested import Tested
from kdjax.train import sharding
from kdjax.train.curriculum import Ranked
from kdjax.train.loop import Signals, count, evaluate, train
from kdjax.train.setup import Learner, initial, part_of, prepare
from kdjax.weights import safetensors

WIDEST = 512  # channels of a layer that is compared with others: more say little of as few nodes


class GateError(RuntimeError):
    """A stage did not reach what the next one needs."""


@dataclass
class Run:
    """An experiment with all its stages checked, and the folder that it lives in."""

    experiment: Experiment
    folder: Path
    learners: dict[str, Learner]  # controls included, in order
    files: dict[str, dict]  # weights from outside, by path

    def of(self, stage: str) -> Path:
        """The folder of a stage."""
        return stage_folder(self.folder, stage, self.learners[stage].stage)

    def weights(self, stage: str) -> dict:
        """The variables that a finished stage left."""
        path = self.of(stage) / "model.safetensors"
        if not path.exists():
            raise ConfigError(f"stage {stage!r} has no {path} yet; run it first with --stage={stage}")
        return safetensors.load(path)[0]

    def init(self, stage: Stage) -> dict[str, dict]:
        """What a stage is from the start, by submodule; "" is all of it."""
        found = {part: self.weights(source) for _, source, part in _stages_inside(stage)}
        return found | ({"": self.files[stage.init]} if stage.init in self.files else {})

    def teachers(self, stage: Stage) -> dict[str, dict]:
        return {k: self.weights(t.stage) if t.stage else self.files[t.weights] for k, t in stage.teachers.items()}


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
    models: dict[str, config.Model] = {}
    learners, files = {}, {}
    for name, one in stages.items():
        parts = sharding.parts(mesh, one.data.batch_size, one.optim.accumulate, f"stages.{name}")
        key = json.dumps([config.to_dict(one.data), parts])
        datasets[key] = datasets.get(key) or pipeline.build(one.data, parts)
        one = replace(one, teachers={k: found_teacher(folder, name, one, k) for k in one.teachers})
        read = {path: safetensors.load(path) for path in _files(one)}
        files |= {path: variables for path, (variables, _) in read.items()}
        made_for = {path: safetensors.model_in(about) for path, (_, about) in read.items()}
        try:
            one = config.resolved(one, datasets[key].facts, made_for.get(one.init))
        except ConfigError as error:
            raise ConfigError(f"stages.{name}.{error}") from error
        learners[name] = prepare(name, one, experiment, mesh, datasets[key], models)
        models[name] = one.model
        for path, (what, model) in _files(one).items():
            skip = one.init_skip if path == one.init else ()
            _check_fits(f"stages.{name}.{what}", initial_shapes(build_model(model)), files[path], skip, made_for[path])
        for what, stage, part in _stages_inside(one):
            mine, theirs = (initial_shapes(build_model(m)) for m in (one.model, models[stage]))
            _check_fits(f"stages.{name}.{what}", part_of(mine, part), theirs, made_for=models[stage])
    claim(folder, experiment)
    return Run(experiment, folder, learners, files)


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


def _stages_inside(stage: Stage) -> list[tuple[str, str, str]]:
    """(where in the config, stage, submodule) of each stage whose model a stage is from the start; "" is all of it."""
    start = [("init", stage.init.removeprefix("stage:"), "")] if stage.init.startswith("stage:") else []
    return start + [(f"parts.{part}", source, part) for part, source in stage.parts.items()]


@cache
def initial_shapes(model: Any) -> dict:
    return jax.eval_shape(lambda key: initial(model, key), jax.random.key(0))


def _check_fits(
    what: str, target: dict, source: dict, skip: tuple[str, ...] = (), made_for: config.Model | None = None
) -> None:
    try:
        safetensors.check(target, source, skip=skip)
    except ValueError as error:
        of = f" (they are of {made_for.name} with {made_for.options})" if made_for else ""
        raise ConfigError(f"{what}: the weights are of another shape than the model{of}:\n{error}") from error


# -- the working directory -------------------------------------------------------------------------------------------


def stage_folder(folder: Path, name: str, stage: Stage) -> Path:
    return folder / (stage.folder or f"stages/{name}")


def write(path: Path, text: str) -> None:
    """A whole file or none."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


def claim(folder: Path, experiment: Experiment) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0 and not (folder / "config.json").exists():
        write(folder / "config.json", config.to_json(experiment))


def check_owner(folder: Path, experiment: Experiment) -> None:
    """Refuses a folder that holds another experiment; the mesh and the log may change between restarts."""
    if not (folder / "config.json").exists():
        return
    old, new = config.from_json((folder / "config.json").read_text()), experiment
    found = [d for d in config.differences(old, new) if not d.startswith(("mesh.", "log.", "quick_compile"))]
    if found:
        shown = "\n  ".join(found[:10] + ([f"and {len(found) - 10} more"] if len(found) > 10 else []))
        raise ConfigError(
            f"{folder} belongs to another config (there, and now):\n  {shown}\n"
            "Choose another --workdir, or give the config it was made with."
        )


# -- testing and reporting -------------------------------------------------------------------------------------------


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
    if plan is None:
        return None
    scorer = replace(made.learners[plan.scorer], dataset=learner.dataset, stage=learner.stage)
    _, predicted = evaluate(scorer, scorer.place(made.weights(plan.scorer)), "train")
    return Ranked.by(plan, predicted[:, 0], learner.dataset.labels("train"))


def test(learner: Learner, whole: dict, folder: Path | None, calibrated: dict[str, float]) -> dict:
    """Scores a model on the test data; predictions and a table go to `folder`."""
    whole = learner.place(whole)
    predictions = cache(lambda split: evaluate(learner, whole, split)[1])
    result, table = learner.task.test(predictions, learner.dataset, calibrated)
    if folder is not None and jax.process_index() == 0:
        np.savez_compressed(folder / "test.npz", predicted=predictions("test"))
        with open(folder / "test.csv", "w", newline="") as file:
            csv.writer(file).writerows(table)
    return {**result, "test_images": learner.dataset.sizes["test"], "ms_per_image": latency(learner, whole)}


def likeness(made: Run, learner: Learner, whole: dict) -> dict:
    """How alike the layers of a student and its teacher see the validation data, where both give rows of one kind."""
    if not learner.stage.teachers or not isinstance(learner.dataset, GraphSet):
        return {}
    key, taught = next(iter(learner.step.teachers.items()))
    sides = {"teacher": (taught, made.teachers(learner.stage)[key]), "student": (Network(learner.model), whole)}
    batch = next(iter(learner.dataset.evaluate("val", learner.stage.data.batch_size)))
    seen: dict[str, dict[str, np.ndarray]] = {}
    for side, (network, variables) in sides.items():
        outputs = jax.device_get(jax.jit(lambda v, b, n=network: n(v, b)[0])(variables, batch))
        rows = {k: x for k, x in outputs.items() if x.ndim == 3 and x.shape[:2] == batch["nodes"].shape}
        seen[side] = {k: x[batch["nodes"]] for k, x in rows.items() if 2 < x.shape[2] <= WIDEST}
    if not all(seen.values()):
        return {}
    alike = cka.similarities(seen["teacher"], seen["student"])
    return {"likeness": {"cka": alike.tolist(), **{side: list(layers) for side, layers in seen.items()}}}


def latency(learner: Learner, whole: dict, repeats: int = 5) -> float:
    """Median milliseconds per image of the compiled evaluation, a batch at a time."""
    share = {"process": jax.process_index(), "processes": jax.process_count()}
    local = next(iter(learner.dataset.evaluate("test", learner.stage.data.batch_size, **share)))
    batch = sharding.global_batch(local, learner.mesh)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(learner.evaluate_fn(whole, batch))
        times.append(time.perf_counter() - began)
    return 1e3 * float(np.median(times)) / batch["valid"].size


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


def summarise(made: Run) -> dict:
    """What the tables and the report show."""
    stages = {name: learner.stage for name, learner in made.learners.items()}
    taught_by = {t.stage for s in stages.values() for t in s.teachers.values()}
    rows = []
    for name, stage in stages.items():
        found = made.of(name) / "result.json"
        if stage.auxiliary or not found.exists():
            continue
        control = name.endswith("_control")
        role = "control" if control else "student" if stage.teachers else "teacher" if name in taught_by else "other"
        row = {"stage": name, "role": role, "teachers": [t.stage for t in stage.teachers.values() if t.stage]}
        row |= json.loads(found.read_text())
        rows.append(row)
        rows += [{"stage": name, "role": "baseline", **one} for one in row.pop("beside", [])]
    last = next(reversed(made.learners.values()))
    told = [made.of(name) / "result.json" for name in stages]
    return {
        "name": made.experiment.name,
        "seed": made.experiment.seed,
        "seconds": sum(json.loads(path.read_text())["seconds"] for path in told if path.exists()),
        "hardware": hardware(),
        "versions": {name: version(name) for name in ("jax", "flax", "optax", "numpy")},
        "num_classes": last.stage.data.num_classes,
        "test_images": last.dataset.sizes["test"],
        "item": last.dataset.item,
        **last.task.words(last.dataset),
        "rows": rows,
    }


def report(made: Run, summary: dict) -> None:
    """`summary.json`, `test_results.txt` and `report.html`, from what lies in the working directory."""
    from kdjax.report import page  # matplotlib takes its time, and training needs none of it

    folder = made.folder
    curves = {
        learner.stage.title or name: trackers.read(made.of(name) / "metrics.jsonl")
        for name, learner in made.learners.items()
    }
    write(folder / "summary.json", json.dumps(summary, indent=1))
    write(folder / "test_results.txt", tables.results(summary))
    write(
        folder / "report.html", page.render(summary, curves, pictures(made, summary), config.to_json(made.experiment))
    )


def pictures(made: Run, summary: dict) -> dict[str, str]:
    """What each task that was learned has to show of its finished stages: sections of the report."""
    tested: dict[str, list[Tested]] = {}
    for row in summary["rows"]:
        if row["role"] == "baseline":
            continue
        found, learner = made.of(row["stage"]) / "test.npz", made.learners[row["stage"]]
        if found.exists():
            tested.setdefault(learner.stage.task, []).append(Tested(row, learner.dataset, np.load(found)["predicted"]))
    shown: dict[str, str] = {}
    for stages in tested.values():
        shown |= made.learners[stages[-1].row["stage"]].task.pictures(stages)
    return shown


def hardware() -> str:
    """What the numbers were measured on."""
    kind, count = jax.devices()[0].device_kind, jax.device_count()
    if jax.devices()[0].platform != "cpu":
        return f"{count} x {kind}"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        models = []
    return f"{os.cpu_count()} x {models[0] if models else platform.processor() or 'CPU'}"
