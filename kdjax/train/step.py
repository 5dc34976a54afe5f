"""The pure steps: `(state, fixed, batch) -> (state, measures)`.

`fixed` is what a step reads and never changes: the frozen parameters and the teachers. It is an argument, so nothing
of it is compiled in, given away or saved. Every average is a (total, count) pair.
"""

import zlib
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from kdjax.distill.taps import Network
from kdjax.distill.teachers import teach
from kdjax.distill.terms import BoundTerm
from kdjax.train import optim

Measures = dict[str, tuple[Array, Array]]


@flax.struct.dataclass
class State:
    """All that training changes, and all that a checkpoint holds. As a tree it also holds shapes, or shardings."""

    step: Any  # int32: steps done
    params: Any  # the trainable leaves of {"model": ..., "lora": ..., "adapters": {term: ...}}
    batch_stats: Any  # {"model": ..., "adapters": {term: ...}}
    opt_state: Any
    ema: Any  # averaged params, or {} where averaging is off
    memory: Any  # what an agent remembers, else {}


def eval_params(state: State) -> dict:
    """The trainable parameters to evaluate, keep and export: the averaged ones where there are any."""
    return state.ema or state.params


def variables(params: dict, batch_stats: dict) -> dict:
    """What the model is applied to."""
    found = {"params": params["model"], "lora": params.get("lora"), "batch_stats": batch_stats.get("model")}
    return {k: v for k, v in found.items() if v}


@dataclass(frozen=True)
class Step:
    """What a stage's steps are made of; nothing here is an array."""

    student: Network
    teachers: dict[str, Network]
    terms: list[BoundTerm]
    tx: optax.GradientTransformationExtraArgs
    rate: optax.Schedule
    task: Any
    augment: Any  # (key, image, mask, index) -> (image, mask), or None
    seed: int
    steps_per_epoch: int
    accumulate: int = 1
    ema: float = 0.0

    def train(self, state: State, fixed: dict, batch: dict[str, Array]) -> tuple[State, dict]:
        """One update. The batch is read in `accumulate` micro-batches whose gradients add up exactly."""
        batch = self.prepare(batch, state.step)
        counts = {term.name: term.readable(batch).sum() for term in self.terms}
        weights = self.weights(state.step)

        def micro(carry: tuple[dict, dict, dict], part: tuple[dict, Array]) -> tuple[tuple[dict, dict, dict], None]:
            grads, totals, stats = carry
            (_, (new, stats)), g = jax.value_and_grad(self.loss, has_aux=True)(
                state.params, stats, fixed, part[0], counts, weights, self.dropout_key(state.step, part[1])
            )
            return (jax.tree.map(jnp.add, grads, g), jax.tree.map(jnp.add, totals, new), stats), None

        carry = (jax.tree.map(jnp.zeros_like, state.params), dict.fromkeys(counts, jnp.zeros(())), state.batch_stats)
        if self.accumulate == 1:
            carry, _ = micro(carry, (batch, jnp.zeros((), jnp.int32)))
        else:
            carry, _ = jax.lax.scan(micro, carry, (split_batch(batch, self.accumulate), jnp.arange(self.accumulate)))
        grads, totals, stats = carry
        loss = sum(weights[k] * totals[k] / jnp.maximum(counts[k], 1.0) for k in totals)
        updates, opt_state = self.tx.update(grads, state.opt_state, state.params, value=loss)
        params = optax.apply_updates(state.params, updates)
        ema = optim.ema(self.ema, state.ema, params) if self.ema else state.ema
        measures: Measures = {f"terms/{k}": (totals[k], counts[k]) for k in totals}
        rate = self.rate(state.step) * optim.plateau_scale(state.opt_state)
        one_number = {"loss": loss, "grad_norm": optax.tree.norm(grads), "lr": rate}
        measures |= {k: (jnp.asarray(v), jnp.ones(())) for k, v in one_number.items()}
        return State(state.step + 1, params, stats, opt_state, ema, state.memory), measures  # type: ignore[arg-type]

    def loss(
        self, params: dict, stats: dict, fixed: dict, batch: dict, counts: dict, weights: dict, key: Array
    ) -> tuple[Array, tuple[dict, dict]]:
        """This batch's part of the weighted objective; also each term's total, and the new batch statistics."""
        totals, stats = self.totals(params, stats, fixed, batch, key)
        return sum(weights[k] * totals[k] / jnp.maximum(counts[k], 1.0) for k in totals), (totals, stats)  # type: ignore

    def totals(self, params: dict, stats: dict, fixed: dict, batch: dict, key: Array) -> tuple[dict, dict]:
        params = optim.merge(params, fixed["frozen"])
        outputs, model_stats = self.student(variables(params, stats), batch, train=True, key=key)
        taught = teach(self.teachers, fixed["teachers"], batch, self.terms)
        totals, adapter_stats = {}, {}
        for term in self.terms:
            own = {
                "params": params.get("adapters", {}).get(term.name, {}),
                "batch_stats": stats["adapters"].get(term.name, {}),
            }
            totals[term.name], changed = term.total(outputs, taught, batch, own)
            adapter_stats |= {term.name: changed} if changed else {}
        return totals, {"model": model_stats, "adapters": adapter_stats}

    def weights(self, step: Array) -> dict[str, Array]:
        epoch = step / self.steps_per_epoch
        return {term.name: jnp.asarray(term.weight(epoch), jnp.float32) for term in self.terms}

    def grad_norms(self, state: State, fixed: dict, batch: dict[str, Array]) -> Measures:
        """The norm of each weighted term's own gradient, on the first micro-batch of the step that `train` would make;
        one forward pass, and a backward pass for each term."""
        batch = self.prepare(batch, state.step)
        batch = {k: v[0] for k, v in split_batch(batch, self.accumulate).items()}
        weights = self.weights(state.step)

        def values(params: dict) -> Array:
            key = self.dropout_key(state.step, 0)
            totals, _ = self.totals(params, state.batch_stats, fixed, batch, key)
            parts = [weights[t.name] * totals[t.name] / jnp.maximum(t.readable(batch).sum(), 1.0) for t in self.terms]
            return jnp.stack(parts)

        _, pull = jax.vjp(values, state.params)
        norms = jax.lax.map(lambda one: optax.tree.norm(pull(one)[0]), jnp.eye(len(self.terms)))
        return {f"grad_norm/{t.name}": (norms[i], jnp.ones(())) for i, t in enumerate(self.terms)}

    def prepare(self, batch: dict[str, Array], step: Array) -> dict[str, Array]:
        """The batch as the models read it: floats, padding blanked, augmented."""
        batch = as_floats(batch)
        if self.augment is not None:
            key = folded_key(self.seed, "augment", step)
            batch["image"], batch["mask"] = self.augment(key, batch["image"], batch["mask"], batch["index"])
        return batch

    def dropout_key(self, step: Array, part: Array | int) -> Array:
        """The key of a micro-batch."""
        return jax.random.fold_in(folded_key(self.seed, "dropout", step), part)

    def memory(self, params: dict) -> dict:
        """A step of terms remembers nothing."""
        return {}


def folded_key(seed: int, use: str, step: Array) -> Array:
    """Folded from what it is for and the step, so that no key is saved and no two uses share one."""
    named = jax.random.fold_in(jax.random.key(seed), zlib.crc32(use.encode()))
    return jax.random.fold_in(named, step)


def evaluate(network: Network, task: Any, whole: dict, batch: dict[str, Array]) -> tuple[Measures, Array, Array]:
    """The task's measures of a batch, its predictions and the places in the split that they are for, with nothing
    random and nothing learned."""
    batch = as_floats(batch)
    outputs, _ = network(whole, batch)
    predicted, index = task.predict(outputs, batch), batch["index"]
    return (
        task.measure(outputs, batch),
        predicted.reshape(index.size, *predicted.shape[index.ndim :]),
        index.reshape(-1),
    )


def as_floats(batch: dict[str, Array]) -> dict[str, Array]:
    """Images travel as bytes and are read in [0, 1]; those of padding are black, whatever they were."""
    if "image" not in batch:
        return batch
    image = batch["image"]
    image = image.astype(jnp.float32) / 255.0 if image.dtype == jnp.uint8 else image
    return {**batch, "image": jnp.where(batch["valid"][:, None, None, None], image, 0.0)}


def split_batch(batch: dict[str, Array], parts: int) -> dict[str, Array]:
    """`[b, ...] -> [parts, b / parts, ...]`, interleaved, so that each device cuts its own rows."""
    return {k: v.reshape(v.shape[0] // parts, parts, *v.shape[1:]).swapaxes(0, 1) for k, v in batch.items()}
