"""From a stage of the config to what the loop needs: models, objective, step, and the state it starts from."""

import zlib
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from kdjax import config, registry
from kdjax.config import ConfigError, Experiment, Stage
from kdjax.data import transforms
from kdjax.data.dataset import Dataset
from kdjax.distill import teachers as teaching
from kdjax.distill.taps import Network
from kdjax.distill.terms import BoundTerm, bind
from kdjax.distill.views import view
from kdjax.train import lora, optim, sharding
from kdjax.train.episodes import EpisodeStep
from kdjax.train.step import State, Step, evaluate
from kdjax.weights import safetensors

EXAMPLES = 97  # in a batch of mere shapes: a number that no axis of a model has, so that the batch axis is told from it


@dataclass
class Learner:
    """A stage made ready: everything checked, nothing trained, no parameter computed yet."""

    name: str
    stage: Stage
    step: Step | EpisodeStep
    mesh: Mesh
    rules: tuple[tuple[str, str], ...]
    dataset: Dataset
    task: Any
    model: Any
    outputs: dict  # the student's outputs as shapes
    seed: int

    def __post_init__(self):
        self.whole_fn = jax.jit(self.whole)
        self.evaluate_fn = evaluator(self.model, self.task, self.mesh)

    @property
    def steps_per_epoch(self) -> int:
        return self.dataset.steps_per_epoch(self.stage.data.batch_size)

    def start(self, init: dict[str, dict], teachers: dict[str, dict]) -> tuple[State, dict, str]:
        """The first state, what the steps read besides it, and a fingerprint of all that came from outside.

        `init`, by submodule with "" for all of the model, and `teachers` hold whole variables, as numpy arrays.
        """
        key = jax.random.fold_in(jax.random.key(self.seed), zlib.crc32(self.name.encode()))
        skip = self.stage.init_skip if self.stage.init and not self.stage.init.startswith("stage:") else ()
        if "" in init and not skip:  # nothing fresh is left of the model
            variables = jax.eval_shape(partial(initial, self.model), key)
        else:
            variables = initialiser(self.model)(key)
        for part, given in init.items():
            variables = with_part(variables, part, safetensors.overlay(part_of(variables, part), given, skip=skip))
        state, frozen = self.begin(key, variables)
        fixed = {"frozen": frozen, "teachers": teachers}
        outside = {"init": init, "teachers": teachers}
        return self.place(state), self.place(fixed), safetensors.fingerprint(outside)

    def begin(self, key: jax.Array, variables: dict) -> tuple[State, dict]:
        """The first state of the model with these variables, and the parameters that are not trained."""
        params, stats = jax.jit(partial(assemble, self.stage, self.step.terms, self.outputs))(key, variables)
        trainable, frozen = optim.split(params, optim.rules(self.stage.optim.trainable, params, "optim.trainable"))
        state = State(
            step=jnp.zeros((), jnp.int32),
            params=trainable,
            batch_stats=stats,
            opt_state=self.step.tx.init(trainable),
            ema=jax.tree.map(jnp.copy, trainable) if self.stage.optim.ema else {},
            memory=self.step.memory(trainable),
        )
        return state, frozen

    def place(self, tree: Any) -> Any:
        return sharding.place(tree, sharding.shardings(tree, self.mesh, self.rules))

    def whole(self, params: dict, stats: dict, frozen: dict) -> dict:
        """Plain variables of the model, of which `stats` are the batch statistics: adapters left out, LoRA merged."""
        params = optim.merge(params, frozen)
        model = params["model"]
        if self.stage.lora is not None:
            model = lora.merge(model, params["lora"], self.stage.lora)
        return {"params": model, **({"batch_stats": stats} if stats else {})}


def part_of(variables: dict, part: str) -> dict:
    """The variables of a submodule; "" is the whole model."""
    return {k: v[part] for k, v in variables.items() if part in v} if part else variables


def with_part(variables: dict, part: str, given: dict) -> dict:
    return {k: {**v, part: given[k]} if k in given else v for k, v in variables.items()} if part else given


@cache
def initialiser(model: Any) -> Any:
    """The compiled start of a model; it runs once, so on CPU the compiler is told not to spend itself on it."""
    quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(partial(initial, model), compiler_options=quick if jax.default_backend() == "cpu" else None)


@cache
def evaluator(model: Any, task: Any, mesh: Mesh) -> Any:
    """The compiled evaluation of a model; a student and its control share one."""
    return jax.jit(partial(evaluate, Network(model), task), out_shardings=sharding.replicated(mesh))


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
    at = f"stages.{name}"
    task = registry.get("tasks", stage.task).of(stage.data)
    terms = {**task.terms(), **stage.terms}
    terms = {k: term for k, term in terms.items() if term.weight != 0}
    batch = dataset.shapes(EXAMPLES)
    try:
        model = teaching.build_model(stage.model, stage.dtype)
        student = Network(model, teaching.taps(terms.values()), partial(lora.active, stage.lora))
        abstract = initial_shapes(model)
        outputs = student.shapes(abstract, batch)
        task.check(outputs)
        if getattr(task, "acts", False) != (stage.agent is not None):
            raise ConfigError("agent: the tasks that act, and no others, need an Agent")
        networks, taught = {}, {}
        for key, teacher in stage.teachers.items():
            built = teaching.build_model(teacher.model or models[teacher.stage], teacher.dtype)
            networks[key] = Network(built, teaching.taps(terms.values(), key))
            taught[key] = networks[key].shapes(initial_shapes(built), batch)
        bound = bind(terms, outputs, taught, batch)
        params, _ = jax.eval_shape(partial(assemble, stage, bound, outputs), jax.random.key(0), abstract)
        trainable, _ = optim.split(params, optim.rules(stage.optim.trainable, params, "optim.trainable"))
        if not jax.tree.leaves(trainable):
            raise ConfigError("optim.trainable leaves nothing to train")
        steps = dataset.steps_per_epoch(stage.data.batch_size)
        updates = steps * (stage.data.batch_size // stage.agent.acts if stage.agent else 1)
        tx, rate = optim.build(stage.optim, trainable, updates, stage.epochs)
        transform = partial(transforms.augment, probabilities=stage.data.augment) if stage.data.augment else None
    except (ConfigError, ValueError, TypeError) as error:
        raise ConfigError(f"{at}: {error}") from error
    step = (
        EpisodeStep(model, stage.agent, tx, rate, task, experiment.seed)
        if stage.agent
        else Step(
            student,
            networks,
            bound,
            tx,
            rate,
            task,
            transform,
            seed=experiment.seed,
            steps_per_epoch=steps,
            accumulate=stage.optim.accumulate,
            ema=stage.optim.ema,
        )
    )
    return Learner(name, stage, step, mesh, experiment.mesh.rules, dataset, task, model, outputs, experiment.seed)


def assemble(stage: Stage, terms: list[BoundTerm], outputs: dict, key: jax.Array, variables: dict) -> tuple[dict, dict]:
    """Parameters and batch statistics of all that a stage may train: the model, its low-rank pairs, the adapters."""
    params = {"model": variables["params"], "lora": {}, "adapters": {}}
    stats = {"model": variables.get("batch_stats", {}), "adapters": {}}
    if stage.lora is not None:
        params["lora"] = lora.init(jax.random.fold_in(key, 1), variables["params"], stage.lora)
    for term in terms:
        if term.adapter is not None:
            features = jnp.zeros((2, *outputs[term.term.student].shape[1:]))
            made = term.adapter.init(jax.random.fold_in(key, zlib.crc32(term.name.encode())), features)
            params["adapters"][term.name] = made["params"]
            stats["adapters"] |= {term.name: made["batch_stats"]} if "batch_stats" in made else {}
    return params, stats


def initial(model: Any, key: jax.Array) -> dict:
    """Fresh variables of a model; run it under `jax.jit` or `jax.eval_shape`."""
    batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), model.input_spec.example())
    return model.init(key, *view(model, batch))


@cache
def initial_shapes(model: Any) -> dict:
    """Fresh variables of a model, as shapes."""
    return jax.eval_shape(partial(initial, model), jax.random.key(0))
