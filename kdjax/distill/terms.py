"""Objectives: a list of terms, each one endpoint of the student against one of a teacher or a label.

Every term is summed as a (total, count) pair over the examples it may read, so that padding, unlabelled items,
micro-batches, devices and hosts all give the same number.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax import registry
from kdjax.config import ConfigError, Schedule, Term, nearest
from kdjax.distill import adapters
from kdjax.distill.views import resize

Outputs = dict[str, Array]


@dataclass(frozen=True)
class BoundTerm:
    """A term with its loss found and its adapter built."""

    name: str
    loss: Callable[..., Array]
    term: Term
    adapter: Any = None

    @property
    def accepts(self) -> list[str]:
        """The arguments that the loss takes by name."""
        kinds = inspect.signature(self.loss).parameters.values()
        return [p.name for p in kinds if p.kind == p.KEYWORD_ONLY]

    @property
    def teacher(self) -> str:
        return self.term.teacher.partition(":")[0]

    @property
    def endpoint(self) -> str:
        return self.term.teacher.partition(":")[2]

    def readable(self, batch: dict[str, Array]) -> Float[Array, "b *s"]:
        """1 for each example that this term may read: real, and labelled where it needs the label; or what `over` says.

        An example may lie deeper than on the first axis: [b] for images, [p, g] for the graphs of packs."""
        readable = batch[self.term.over or "valid"]
        if self.term.label and not self.term.over:
            readable = readable & batch["labelled"]
        return readable.astype(jnp.float32)

    def total(
        self, outputs: Outputs, teachers: dict[str, Outputs], batch: dict[str, Array], variables: dict
    ) -> tuple[Float[Array, ""], dict]:
        """The sum over readable examples, and the adapter's new batch statistics."""
        student, stats = outputs[self.term.student].astype(jnp.float32), {}
        readable, targets = self.readable(batch) > 0, []
        if self.term.label:
            # What is no label is made a harmless one: the loss may answer with NaN, whose gradient no mask would stop.
            label = batch[self.term.label]
            target = jnp.where(jnp.expand_dims(readable, tuple(range(readable.ndim, label.ndim))), label, 0)
            if student.ndim == 4 and target.ndim == 3:
                student = resize(student, (target.shape[1], target.shape[2]))
            targets = [target]
        elif self.term.teacher:
            target = jax.lax.stop_gradient(teachers[self.teacher][self.endpoint])
            if self.adapter is not None:
                student, changed = self.adapter.apply(variables, student, train=True, mutable=["batch_stats"])
                stats = changed.get("batch_stats", {})
            targets = [adapters.resize_like(target, student.shape)]
        # To a loss, examples lie on the first axis.
        student, *targets = (x.reshape(-1, *x.shape[readable.ndim :]) for x in (student, *targets))
        readable = readable.reshape(-1)
        masked = {"where": readable} if "where" in self.accepts else {}
        each = self.loss(student, *targets, **masked, **self.term.args)
        each = each.reshape(each.shape[0], -1).mean(axis=1)
        return jnp.where(readable, each, 0.0).sum(), stats

    def weight(self, epoch: Array) -> Array:
        """The weight at `epoch`, a real number of epochs since the start."""
        return self.term.weight * (jnp.ones(()) if self.term.schedule is None else factor(self.term.schedule, epoch))


def factor(schedule: Schedule, epoch: Array) -> Array:
    span = max(schedule.until - schedule.begin, 1e-9)
    done = jnp.clip((epoch - schedule.begin) / span, 0.0, 1.0)
    if schedule.shape == "cosine":
        done = 0.5 - 0.5 * jnp.cos(jnp.pi * done)
    return schedule.start + (schedule.end - schedule.start) * done


def bind(
    terms: dict[str, Term], student: dict[str, Any], teachers: dict[str, dict[str, Any]], batch: dict[str, Any]
) -> list[BoundTerm]:
    """Checks every term against the shapes that student and teachers give for `batch`, and builds losses and adapters.

    All that does not fit is named in one ConfigError.
    """
    bound, wrong = [], []
    for name, term in terms.items():
        try:
            bound.append(_bind(name, term, student, teachers, batch))
        except (ConfigError, TypeError, ValueError) as error:
            wrong.append(f"terms.{name}: {error}")
    if wrong:
        raise ConfigError("the objective does not fit the models:\n  " + "\n  ".join(wrong))
    return bound


def _bind(
    name: str, term: Term, student: dict[str, Any], teachers: dict[str, dict[str, Any]], batch: dict
) -> BoundTerm:
    bound = BoundTerm(name, registry.get("losses", term.loss), term)
    known = [name for name in bound.accepts if name != "where"]
    for arg in term.args:
        if arg not in known:
            raise ConfigError(f"the loss {term.loss!r} takes no argument {arg!r}; {nearest(arg, known)}")
    if term.student not in student:
        raise ConfigError(f"the student has no endpoint {term.student!r}; {nearest(term.student, student)}")
    mine = student[term.student].shape
    mask = term.over or "valid"
    if mask not in batch or batch[mask].dtype != jnp.bool:
        masks = [k for k, v in batch.items() if v.dtype == jnp.bool]
        raise ConfigError(f"over={term.over!r}: the data have no such mask; {nearest(mask, masks)}")
    examples = batch[mask].shape
    _check_batch(f"student {term.student!r}", mine, examples)
    adapted: dict = {}
    if term.label:
        if term.label not in batch:
            raise ConfigError(f"the data have no label {term.label!r}; {nearest(term.label, batch)}")
    elif term.teacher:
        given = teachers[bound.teacher]
        if bound.endpoint not in given:
            raise ConfigError(f"teacher {bound.teacher!r} has no {bound.endpoint!r}; {nearest(bound.endpoint, given)}")
        theirs = given[bound.endpoint].shape
        _check_batch(f"teacher {term.teacher!r}", theirs, examples)
        if term.adapter:
            bound = dataclasses.replace(bound, adapter=adapters.build(term.adapter, mine, theirs))
            adapted = jax.eval_shape(bound.adapter.init, jax.random.key(0), student[term.student])
        elif mine[-1] != theirs[-1]:
            raise ConfigError(
                f"student {term.student!r} has {mine[-1]} channels, teacher {term.teacher!r} has {theirs[-1]}; "
                "name an adapter, for example adapter='conv_bn_relu'"
            )
    jax.eval_shape(bound.total, student, teachers, batch, adapted)  # shapes and arguments that the loss refuses
    return bound


def _check_batch(what: str, shape: tuple[int, ...], examples: tuple[int, ...]) -> None:
    if shape[: len(examples)] != examples:
        axes = "the first axis is not the batch" if len(examples) == 1 else f"it does not begin with {list(examples)}"
        raise ConfigError(
            f"{what} gives {list(shape)} for {math.prod(examples)} examples: {axes}; a "
            "module inside nn.scan gives all layers at once, so read an endpoint, or build the model with scan=False"
        )
