"""From a stage of the config to what the loop needs: models, objective, step, and the state it starts from."""

import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from kdjax import config, registry
from kdjax.config import ConfigError, Experiment, Stage
from kdjax.data import transforms
from kdjax.data.dataset import Dataset
from kdjax.distill.adapters import patches_of
from kdjax.distill.taps import Network
from kdjax.distill.teachers import Frozen, Tail, build_model, source
from kdjax.distill.terms import BoundTerm
from kdjax.distill.vocabularies import refuse_strange_tokens
from kdjax.tasks.task import Acting, Task
from kdjax.train import knobs, lora, norms, optim, sharding
from kdjax.train.episodes import EpisodeStep
from kdjax.train.objective import Objective, bind, check_names, find_terms, taps
from kdjax.train.step import State, Step, Transform, as_floats, evaluate
from kdjax.weights import safetensors


@dataclass
class Learner:
    """A stage made ready: everything checked, nothing trained, no parameter computed yet."""

    name: str
    stage: Stage
    step: Step | EpisodeStep
    mesh: Mesh
    rules: tuple[tuple[str, str], ...]
    dataset: Dataset
    task: Task
    model: Any
    teachers: dict[str, Network]  # the frozen ones, which have variables of their own
    knobs: knobs.Knobs
    seed: int

    def __post_init__(self):
        self.whole_fn = jax.jit(self.whole)
        self.evaluate_fn = evaluator(self.model, tuple(self.stage.inputs.items()), self.task, self.mesh)

    @property
    def steps_per_epoch(self) -> int:
        return self.dataset.steps_per_epoch(self.stage.data.batch_size)

    @property
    def student(self) -> Network:
        """The student with the taps that its terms read."""
        names = tuple(self.stage.inputs.items())
        return Network(self.model, self.step.objective.student.taps if isinstance(self.step, Step) else (), names=names)

    @property
    def terms(self) -> list[BoundTerm]:
        return self.step.objective.terms if isinstance(self.step, Step) else []

    def start(self, init: dict[str, dict], teachers: dict[str, dict]) -> tuple[State, dict, str]:
        """The first state, what the steps read besides it, and a fingerprint of all that came from outside.

        `init`, by submodule with "" for all of the model, and `teachers` hold whole variables, as numpy arrays.
        """
        key = jax.random.fold_in(jax.random.key(self.seed), zlib.crc32(self.name.encode()))
        skip = self.stage.init_skip
        if "" in init and not skip:  # nothing fresh is left of the model
            variables = initial_shapes(self.model)
        else:
            variables = initialiser(self.model)(key)
        if init:
            given = safetensors.overlay(only(variables, init), together(init), skip=skip)
            variables = {k: {**v, **given.get(k, {})} for k, v in variables.items()}
        state, frozen = self.begin(key, variables)
        fixed = {"frozen": frozen, "teachers": teachers}
        outside = {"init": init, "teachers": teachers}
        return self.place(state), self.place(fixed), safetensors.fingerprint(outside)

    def begin(self, key: jax.Array, variables: dict) -> tuple[State, dict]:
        """The first state of the model with these variables, and the parameters that are not trained."""
        params, collections = jax.jit(partial(assemble, self.stage, self.terms))(key, variables)
        trainable, frozen = optim.split(params, optim.rules(self.stage.optim.trainable, params, "optim.trainable"))
        beside = lambda on: jax.tree.map(jnp.copy, trainable) if on else {}  # noqa: E731
        state = State(
            step=jnp.zeros((), jnp.int32),
            params=trainable,
            collections=collections | self.step.collections(trainable),
            opt_state=self.step.tx.init(trainable),
            slow=beside(self.stage.optim.lookahead),
            ema=beside(self.stage.optim.ema),
        )
        return state, frozen

    def place(self, tree: Any) -> Any:
        return sharding.place(tree, sharding.shardings(tree, self.mesh, self.rules))

    def whole(self, params: dict, collections: dict, frozen: dict) -> dict:
        """Plain variables of the model, of which `collections` are part: adapters left out, LoRA merged."""
        params = optim.merge(params, frozen)
        model = params["model"]
        if self.stage.lora is not None:
            model = lora.merge(model, params["lora"], self.stage.lora)
        return {"params": model, **collections}

    @cached_property
    def train_fn(self) -> Any:
        """The compiled step; the new state takes the old one's place in memory."""
        placed = jax.tree.map(lambda x: x.sharding, self.arguments[0])
        return jax.jit(self.step.train, donate_argnums=0, out_shardings=(placed, sharding.replicated(self.mesh)))

    @cached_property
    def arguments(self) -> tuple[State, dict, dict, dict]:
        """What a step takes, as shapes in their places on the mesh."""
        state, frozen = jax.eval_shape(self.begin, jax.random.key(0), initial_shapes(self.model))
        teachers = {name: initial_shapes(network.model) for name, network in self.teachers.items()}
        batch = self.dataset.shapes(self.dataset.axis(self.stage.data.batch_size))
        state, fixed = (
            sharding.shapes(tree, sharding.shardings(tree, self.mesh, self.rules))
            for tree in (state, {"frozen": frozen, "teachers": teachers})
        )
        split = jax.tree.map(lambda _: sharding.split(self.mesh), batch)
        return state, fixed, self.knobs, sharding.shapes(batch, split)

    def check(self) -> None:
        """Goes through a whole step with the shapes of the data, so that no fault is left for training; the first step
        starts from what was traced here."""
        self.train_fn.trace(*self.arguments)


def only(variables: dict, parts: Collection[str]) -> dict:
    """The variables of these submodules; "" is the whole model."""
    return variables if "" in parts else {k: {p: v[p] for p in parts if p in v} for k, v in variables.items()}


def together(parts: dict[str, dict]) -> dict:
    """What is given by submodule, as variables of the model; "" is all of it, but for the submodules given as well."""
    rest = {k: {p: x for p, x in v.items() if p not in parts} for k, v in parts.get("", {}).items()}
    own = {part: given for part, given in parts.items() if part}
    kinds = {*rest, *(kind for given in own.values() for kind in given)}
    return {k: rest.get(k, {}) | {p: given[k] for p, given in own.items() if k in given} for k in kinds}


@cache
def initialiser(model: Any) -> Any:
    """The compiled start of a model; it runs once, so on CPU the compiler spends little effort on it."""
    quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(partial(initial, model), compiler_options=quick if jax.default_backend() == "cpu" else None)


@cache
def evaluator(model: Any, names: tuple[tuple[str, str], ...], task: Task, mesh: Mesh) -> Any:
    """The compiled evaluation of a model; a student and its control share one."""
    network = Network(model, names=names)
    return jax.jit(partial(evaluate, network, task), out_shardings=sharding.replicated(mesh))


def prepare(
    name: str,
    stage: Stage,
    experiment: Experiment,
    mesh: Mesh,
    dataset: Dataset,
    models: dict[str, config.Model],
) -> Learner:
    """Builds a stage and refuses what cannot work, before anything is trained.

    `models` says what the earlier stages train.
    """
    try:
        learner = _prepared(name, stage, experiment, mesh, dataset, models)
        learner.check()
    except ConfigError as error:
        raise ConfigError(f"stages.{name}: {error}") from error
    return learner


def _prepared(
    name: str, stage: Stage, experiment: Experiment, mesh: Mesh, dataset: Dataset, models: dict[str, config.Model]
) -> Learner:
    task = task_of(stage)
    if stage.teachers and isinstance(task, Acting):
        raise ConfigError(
            "teachers: an agent is not distilled, it reads models that are: name teachers in the stages of its parts "
            f"({', '.join(stage.parts.values())}), and none here"
        )
    if faults := transforms.faults(stage.data.augment, dataset.fields):
        raise ConfigError("\n  ".join(faults))
    check_names(stage.teachers)
    model = build_model(stage.model, stage.dtype)
    objective = objective_of(stage, task, model, models, dataset)
    networks = {
        key: source.network
        for key, source in objective.sources.items()
        if isinstance(source, (Frozen, Tail)) and key not in objective.averages
    }
    params, _ = jax.eval_shape(partial(assemble, stage, objective.terms), jax.random.key(0), initial_shapes(model))
    trainable, _ = optim.split(params, optim.rules(stage.optim.trainable, params, "optim.trainable"))
    if not jax.tree.leaves(trainable):
        raise ConfigError("optim.trainable leaves nothing to train")
    step = step_of(stage, task, model, objective, trainable, dataset)
    numbers = knobs.start(objective.terms, experiment.seed, stage.optim.over)
    rules = experiment.mesh.rules
    return Learner(name, stage, step, mesh, rules, dataset, task, model, networks, numbers, experiment.seed)


def objective_of(stage: Stage, task: Task, model: Any, models: dict[str, config.Model], dataset: Dataset) -> Objective:
    """The terms of a stage, bound to its student and its sources by the shapes of its data."""
    terms = {k: term for k, term in {**task.terms(), **stage.terms}.items() if term.weight != 0}
    bound, faults = ([], []) if isinstance(task, Acting) else find_terms(terms)
    bound = [term.told(dataset.fact) for term in bound]
    names = tuple(stage.inputs.items())
    variables = initial_shapes(model)
    still = norms.frozen(stage.optim, variables)
    student = Network(model, taps(bound, stage.teachers, "student"), partial(around, stage.lora, still), names)
    sources = {
        key: source(teacher, teacher.model or models.get(teacher.stage), student, taps(bound, stage.teachers, key))
        for key, teacher in stage.teachers.items()
    }
    averages = tuple(key for key, teacher in stage.teachers.items() if teacher.average)
    networks = {key: s.network for key, s in sources.items() if isinstance(s, (Frozen, Tail))}
    refuse_strange_tokens(student, {k: s for k, s in sources.items() if k not in averages}, dataset.fields)
    teachers = {key: initial_shapes(network.model) for key, network in networks.items()}
    patches = {key: patches_of(network.model) for key, network in {"student": student, **networks}.items()}
    for rows in (3, 2):  # an axis that stays as it is while the batch grows is no batch
        batch = jax.eval_shape(as_floats, dataset.shapes(rows))
        outputs = student.shapes(variables, batch)
        task.check(outputs)
        _check_classes(outputs, dataset.facts.get("labels", {}))
        bound = bind(bound, outputs, sources, teachers, batch, faults, patches)
    _check_objective(stage, task, bound, dataset)
    return Objective(student, sources, averages, bound)


@contextmanager
def around(pairs: config.Lora | None, still: frozenset[str]) -> Iterator[None]:
    """What a student runs within: its low-rank pairs, and the BatchNorms that stand still."""
    with lora.active(pairs), norms.standing(still):
        yield


def step_of(
    stage: Stage, task: Task, model: Any, objective: Objective, trainable: dict, dataset: Dataset
) -> Step | EpisodeStep:
    steps = dataset.steps_per_epoch(stage.data.batch_size)
    if isinstance(task, Acting):
        updates = steps * (stage.data.batch_size // task.agent.acts)
        return EpisodeStep(model, *optim.build(stage.optim, trainable, updates, stage.epochs), task)
    return Step(
        objective,
        *optim.build(stage.optim, trainable, steps, stage.epochs),
        augmentation(stage, dataset),
        steps_per_epoch=steps,
        optim=stage.optim,
    )


def augmentation(stage: Stage, dataset: Dataset) -> Transform | None:
    """What a step does to each batch, given its key."""
    if not stage.data.augment:
        return None
    given = {"probabilities": stage.data.augment, "fields": dataset.fields, "alpha": stage.data.mix_alpha}
    return partial(transforms.transform, **given)


def task_of(stage: Stage) -> Task:
    """The task of a stage, made for its data."""
    named = config.task_of(stage)
    return registry.get("tasks", named.name).of(stage.data, **named.options)


def _check_objective(stage: Stage, task: Task, terms: list[BoundTerm], dataset: Dataset) -> None:
    optim.check_pull(stage.optim, any(term.hears_teacher for term in terms))
    if isinstance(task, Acting):
        optim.check_acting(stage.optim)
    if mixing := [term.name for term in terms if term.mixes and stage.optim.accumulate > 1]:
        raise ConfigError(
            f"optim.accumulate={stage.optim.accumulate}: the loss of {', '.join(mixing)} compares the examples of a "
            "batch with each other, and micro-batches would hide most of them; set accumulate=1, or leave the term out"
        )
    if alone := [term.name for term in terms if _all_alone(stage, term, dataset)]:
        raise ConfigError(
            f"terms.{alone[0]} compares examples that belong together, and no two do: data.copies=1, and it reads no "
            "class that two labelled examples share; set data.copies to 2, or read the classes where there are some"
        )
    measures = {f"terms.{t.name}.schedule": t.term.schedule.over for t in terms if t.term.schedule}
    for at, over in {**measures, "optim": stage.optim.over}.items():
        if over and over not in task.measures:
            name = config.task_of(stage).name
            raise ConfigError(
                f"{at}.over={over!r}: the task {name!r} measures {', '.join(task.measures)}; name one of them"
            )


def _check_classes(outputs: dict[str, Any], labels: dict[str, int]) -> None:
    """Refuses logits of a label that are of another number of classes than the label."""
    for label, count in labels.items():
        logits = outputs.get(f"logits_{label}")
        if logits is not None and logits.shape[-1] != count:
            raise ConfigError(
                f"expected 'logits_{label}' of {count} classes, as many as the data have of {label}, the model gives "
                f"{logits.shape[-1]}; leave out its option labels, which the data fill in, or name the data's classes"
            )


def _all_alone(stage: Stage, term: BoundTerm, dataset: Dataset) -> bool:
    """Whether the loss compares examples that belong together, and none can."""
    alike = getattr(term.module, "alike", "")
    if not alike or stage.data.copies > 1:
        return False
    labels = dataset.labels("train")[dataset.labelled("train")]
    labels = labels[labels >= 0].tolist()
    return alike not in term.reads or len(set(labels)) == len(labels)


def assemble(stage: Stage, terms: list[BoundTerm], key: jax.Array, variables: dict) -> tuple[dict, dict]:
    """Parameters and collections of all that a stage may train: the model, its low-rank pairs, adapters and losses."""
    params: dict[str, Any] = {"model": variables["params"], "lora": {}, "adapters": {}, "losses": {}}
    state = {k: v for k, v in variables.items() if k != "params"}
    collections: dict[str, Any] = {"model": state, "adapters": {}, "losses": {}}
    if stage.lora is not None:
        params["lora"] = lora.init(jax.random.fold_in(key, 1), variables["params"], stage.lora)
    for term in terms:
        named = jax.random.fold_in(key, zlib.crc32(term.name.encode()))
        for kind, fresh in (("adapters", term.adapter_start(named)), ("losses", term.start(named))):
            if "params" in fresh:
                params[kind][term.name] = fresh.pop("params")
            if fresh:
                collections[kind][term.name] = fresh
    return params, collections


def initial(model: Any, key: jax.Array) -> dict:
    """Fresh variables of a model; run it under `jax.jit` or `jax.eval_shape`."""
    network = Network(model)
    shapes = {name: spec.shape(1) for name, spec in model.inputs.items()}
    inputs = network.view(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))
    return model.init(key, *(jax.tree.map(lambda x: x[0], inputs) if network.packed else inputs))


@cache
def initial_shapes(model: Any) -> dict:
    """Fresh variables of a model, as shapes."""
    return initialiser(model).eval_shape(jax.random.key(0))
