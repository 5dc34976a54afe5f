"""The pure steps: `(state, fixed, knobs, batch) -> (state, measures)`.

`fixed` is what a step reads and never changes: the frozen parameters and the teachers. `knobs` are numbers. Both are
arguments, so nothing of them is compiled in, given away or saved. Every average is a (total, count) pair.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from kdjax.config import Optim
from kdjax.distill.taps import Network
from kdjax.tasks.task import Task
from kdjax.train import optim
from kdjax.train.knobs import Knobs
from kdjax.train.objective import Collections, Objective, variables

Measures = dict[str, tuple[Array, Array]]
Transform = Callable[[Array, dict[str, Any]], dict[str, Any]]


@flax.struct.dataclass
class State:
    """All that training changes, and all that a checkpoint holds. As a tree it also holds shapes, or shardings."""

    step: Any  # int32: steps done
    params: Any  # the trainable leaves of {"model": ..., "lora": ..., "adapters": {term: ...}, "losses": {term: ...}}
    collections: Any  # {"model": {"batch_stats": ...}, "adapters": {term: ...}, "losses": {term: ...}}
    opt_state: Any
    slow: Any  # the params that lookahead moves in some steps alone, or {} where it is off
    ema: Any  # averaged params, or {} where averaging is off


def eval_params(state: State) -> dict:
    """The trainable parameters to evaluate, keep and export: the averaged or the slow ones where there are any."""
    return state.ema or state.slow or state.params


@dataclass(frozen=True)
class Step:
    """What a stage's steps are made of; nothing here is an array."""

    objective: Objective
    tx: optax.GradientTransformationExtraArgs
    rate: optax.Schedule  # step -> learning rate
    transform: Transform | None  # of the batch: augmentation
    steps_per_epoch: int
    optim: Optim

    def collections(self, params: dict) -> dict:
        """What a step remembers besides the collections of its modules: nothing."""
        return {}

    def train(self, state: State, fixed: dict, knobs: Knobs, batch: dict[str, Any]) -> tuple[State, Measures]:
        """One update. The batch is read in `accumulate` micro-batches whose gradients add up exactly."""
        batch = self.prepare(batch, knobs)
        counts, weights = self.objective.counts(batch), self.weights(knobs, state.step)
        parts = jnp.maximum(counts, 1.0)
        rows = self.rows(weights / parts)

        def gradients(params: dict) -> tuple[list[dict], Array, Collections]:
            return self.pulled(params, state, fixed, knobs, batch, rows)

        groups, totals, collections = gradients(state.params)
        loss = (weights * totals / parts).sum()
        grads = optim.combined(self.optim.pull, groups)
        # Before the first validation a measure is -inf, and any that follows is better.
        over = self.optim.over
        watched = jnp.minimum(-knobs["measures"][over], 1e30) if over else loss
        extra = (
            {"grad_fn": lambda params, _: gradients(params)[0][0]}
            if self.optim.pull == "sharpness"
            else {"value": watched}
        )
        updates, opt_state = self.tx.update(
            groups if self.optim.pull == "separate" else grads, state.opt_state, state.params, **extra
        )
        lr = knobs["lr"] * self.rate(state.step)
        moves = jax.tree.map(lambda u: -lr * u, updates)
        params, slow = optim.stepped(self.optim, state.params, state.slow, moves, state.step)
        ema = optim.ema(self.optim.ema, state.ema, params, state.step) if self.optim.ema else state.ema
        names = [term.name for term in self.objective.terms]
        measures: Measures = {f"terms/{name}": (totals[i], counts[i]) for i, name in enumerate(names)}
        numbers = {"loss": loss, "grad_norm": optax.tree.norm(grads), "lr": lr * optim.plateau_scale(state.opt_state)}
        measures |= {k: (jnp.asarray(v), jnp.ones(())) for k, v in numbers.items()}
        return State(state.step + 1, params, collections, opt_state, slow, ema), measures  # type: ignore[call-arg]

    def pulled(
        self, params: dict, state: State, fixed: dict, knobs: Knobs, batch: dict[str, Any], rows: list[Array]
    ) -> tuple[list[dict], Float[Array, " t"], Collections]:
        """The objective pulled back: for each row of factors of the terms the gradient of their sum; the terms' totals;
        the new collections."""

        def micro(carry: tuple, part: tuple[dict, Array]) -> tuple[tuple, None]:
            grads, totals, collections = carry
            values = self.totals(state, fixed, knobs, collections, *part)
            new, pull, collections = jax.vjp(values, params, has_aux=True)
            grads = [jax.tree.map(jnp.add, old, pull(row)[0]) for old, row in zip(grads, rows, strict=True)]
            return (grads, totals + new, collections), None

        zeros = [jax.tree.map(jnp.zeros_like, params) for _ in rows]
        carry = (zeros, jnp.zeros(len(self.objective.terms)), state.collections)
        if self.optim.accumulate == 1:
            return micro(carry, (batch, jnp.zeros((), jnp.int32)))[0]
        micro_batches = split_batch(batch, self.optim.accumulate)
        return jax.lax.scan(micro, carry, (micro_batches, jnp.arange(self.optim.accumulate)))[0]

    def totals(
        self, state: State, fixed: dict, knobs: Knobs, collections: Collections, batch: dict[str, Any], part: Array
    ) -> Callable[[dict], tuple[Array, Collections]]:
        """The objective on a micro-batch, as a function of the trainable parameters."""
        teachers = dict(fixed["teachers"])
        if self.objective.averages:
            average = variables(optim.merge(eval_params(state), fixed["frozen"]), collections)
            teachers |= dict.fromkeys(self.objective.averages, jax.lax.stop_gradient(average))
        key = jax.random.fold_in(folded_key(knobs["seed"], "dropout", state.step), part)

        def values(params: dict) -> tuple[Array, Collections]:
            merged = optim.merge(params, fixed["frozen"])
            return self.objective.totals(merged, collections, teachers, knobs, batch, key)

        return values

    def weights(self, knobs: Knobs, step: Array) -> Float[Array, " t"]:
        return self.objective.weights(knobs, step / self.steps_per_epoch)

    def rows(self, factors: Float[Array, " t"]) -> list[Array]:
        """Which sums of terms have a gradient of their own: all together, or what teachers say apart from the rest."""
        if self.optim.pull not in ("separate", "balanced"):
            return [factors]
        heard = jnp.asarray([term.hears_teacher for term in self.objective.terms])
        return [jnp.where(heard, 0.0, factors), jnp.where(heard, factors, 0.0)]

    def grad_norms(self, state: State, fixed: dict, knobs: Knobs, batch: dict[str, Any]) -> Measures:
        """The norm of each weighted term's own gradient, on the first micro-batch of the step that `train` would make;
        one forward pass, and a backward pass for each term."""
        batch = self.prepare(batch, knobs)
        batch = jax.tree.map(lambda x: x[0], split_batch(batch, self.optim.accumulate))
        factors = self.weights(knobs, state.step) / jnp.maximum(self.objective.counts(batch), 1.0)
        values = self.totals(state, fixed, knobs, state.collections, batch, jnp.zeros((), jnp.int32))
        _, pull, _ = jax.vjp(values, state.params, has_aux=True)
        norms = jax.lax.map(lambda row: optax.tree.norm(pull(row)[0]), jnp.diag(factors))
        return {f"grad_norm/{t.name}": (norms[i], jnp.ones(())) for i, t in enumerate(self.objective.terms)}

    def prepare(self, batch: dict[str, Any], knobs: Knobs) -> dict[str, Any]:
        """The batch as the models read it: floats, padding blanked, augmented."""
        batch = as_floats(batch)
        return batch if self.transform is None else self.transform(named_key(knobs["seed"], "augment"), batch)


def named_key(seed: Any, use: str) -> Array:
    """The key of a use; no two uses share one."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(use.encode()))


def folded_key(seed: Any, use: str, step: Array) -> Array:
    """A key folded from its use and the step, so that no key is saved."""
    return jax.random.fold_in(named_key(seed, use), step)


def evaluate(network: Network, task: Task, variables: dict, batch: dict[str, Any]) -> tuple[Measures, dict, Array]:
    """The task's measures of a batch, its predictions by name and the places in the split that they are for, with
    nothing random and nothing learned."""
    batch = as_floats(batch)
    outputs, _ = network(variables, batch)
    index = batch["index"]
    predictions = task.predict(outputs, batch)
    rows = {name: value.reshape(index.size, *value.shape[index.ndim :]) for name, value in predictions.items()}
    return task.measure(outputs, batch), rows, index.reshape(-1)


def as_floats(batch: dict[str, Any]) -> dict[str, Any]:
    """Images travel as bytes and are read in [0, 1]; those of padding are black, whatever they were."""

    def read(value: Any) -> Any:
        if not (hasattr(value, "dtype") and value.ndim == 4 and batch["valid"].ndim == 1):
            return value
        if value.dtype == jnp.uint8:
            value = value.astype(jnp.float32) / 255.0
        elif not jnp.issubdtype(value.dtype, jnp.floating):
            return value
        return jnp.where(batch["valid"][:, None, None, None], value, jnp.zeros((), value.dtype))

    return {name: read(value) for name, value in batch.items()}


def split_batch(batch: dict[str, Any], parts: int) -> dict[str, Any]:
    """`[b, ...] -> [parts, b / parts, ...]`, interleaved, so that each device cuts its own rows."""
    return jax.tree.map(lambda v: v.reshape(v.shape[0] // parts, parts, *v.shape[1:]).swapaxes(0, 1), batch)
