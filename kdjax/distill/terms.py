"""Objectives: a list of terms, each a loss and what it reads in the scope of a step.

Every term is summed as a (total, count) pair over the examples it may read, so that padding, missing labels,
micro-batches, devices and hosts all give the same number.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax import registry
from kdjax.config import ConfigError, Schedule, Term, nearest
from kdjax.data.fields import known
from kdjax.distill import adapters
from kdjax.distill.scope import Scope, paths, split
from kdjax.models.layers.resize import resize

Knobs = Mapping[str, Any]


@dataclass(frozen=True)
class BoundTerm:
    """A term with its loss found, its paths written out and its modules built.

    A loss is a function, or a module with parameters or a memory of its own, which live under the term's name.
    """

    name: str
    term: Term
    loss: Callable[..., Array]
    module: nn.Module | None  # the loss, where it is a module
    reads: dict[str, Any]  # argument of the loss -> path, or a tuple of paths
    adapter: nn.Module | None = None
    features: Any = None  # what the adapter maps, as shapes of a small batch
    examples: dict[str, Any] = dataclasses.field(default_factory=dict)  # what the loss is given, as shapes

    @property
    def labels(self) -> list[str]:
        """The fields of the batch that an example needs for the term to read it. A label whose flag is read beside it
        may be missing: the loss sees where it is."""
        fields = [split(path)[1] for path in paths(self.reads) if split(path)[0] == "batch"]
        return [field for field in fields if known(field) not in fields]

    @property
    def hears_teacher(self) -> bool:
        """Whether it reads anything besides the student and the batch."""
        return any(split(path)[0] not in ("batch", "student") for path in paths(self.reads)) or self.adapter is not None

    @property
    def mixes(self) -> bool:
        """Whether the loss of an example depends on the other examples of its batch."""
        return getattr(self.module or self.loss, "mixes", False)

    def numbers(self) -> dict[str, float]:
        """The arguments of the loss that may differ from student to student of one program."""
        return {} if self.module else {k: v for k, v in self.term.args.items() if isinstance(v, float)}

    def told(self, fact: Callable[[str], Any]) -> "BoundTerm":
        """The term with the arguments that the data tell: those that are None, where that is not the loss's default."""
        defaults = {name: p.default for name, p in inspect.signature(self.loss).parameters.items()}
        asked = [k for k, v in self.term.args.items() if v is None and defaults.get(k) is not None]
        if self.module is not None or not asked:
            return self
        args = {**self.term.args, **{name: fact(name) for name in asked}}
        return dataclasses.replace(self, term=dataclasses.replace(self.term, args=args))

    def readable(self, batch: Mapping[str, Array]) -> Bool[Array, "b *s"]:
        """True for each example that the term may read: real, with all the labels it needs; or what `over` says.

        An example may lie deeper than on the first axis: [b] for images, [p, g] for the graphs of packs."""
        if self.term.over:
            return batch[self.term.over]
        readable = batch["valid"]
        for label in self.labels:
            readable = readable & batch[known(label)] if known(label) in batch else readable
        return readable

    def adapted(self, scope: Scope, variables: dict) -> tuple[Array, dict]:
        """The student's features in the channels of the teacher's, and the adapter's new collections."""
        assert self.adapter is not None
        features = scope[f"student:{self.term.student}"].astype(jnp.float32)
        return _apply(self.adapter, variables, features, train=True)

    def given(self, scope: Any, batch: Mapping[str, Array]) -> tuple[dict[str, Any], Bool[Array, " n"]]:
        """What the loss is given, examples on the first axis, and which of them count."""
        readable = self.readable(batch)
        values = self._values(scope, readable)
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[readable.ndim :]), values)
        return flat, readable.reshape(-1)

    def total(
        self, scope: Any, batch: Mapping[str, Array], variables: dict, numbers: Mapping[str, Any]
    ) -> tuple[Float[Array, ""], dict]:
        """The sum over readable examples, and the loss's new collections. `numbers` replace arguments of the loss."""
        values, readable = self.given(scope, batch)
        masked = {"where": readable} if "where" in arguments(self.loss, inspect.Parameter.KEYWORD_ONLY) else {}
        if self.module is None:
            each, collections = self.loss(**values, **masked, **{**self.term.args, **numbers}), {}
        else:
            each, collections = _apply(self.module, variables, **values, **masked)
        each = each.reshape(each.shape[0], -1).mean(axis=1)
        return jnp.where(readable, each, 0.0).sum(), collections

    def _values(self, scope: Any, readable: Bool[Array, "b *s"]) -> dict[str, Any]:
        """What the loss reads; a missing label becomes 0, since a loss may give NaN for it, which no mask removes."""

        def value(path: str) -> Array:
            entry = scope[path]
            if split(path)[0] != "batch":
                return entry.astype(jnp.float32)
            there = jnp.expand_dims(readable, tuple(range(readable.ndim, entry.ndim)))
            return jnp.where(there, entry, jnp.zeros((), entry.dtype))

        values = {k: value(v) if isinstance(v, str) else tuple(map(value, v)) for k, v in self.reads.items()}
        return values if self.term.reads else self._alike(values)

    def _alike(self, values: dict[str, Any]) -> dict[str, Any]:
        """Student and target of the short form, laid out alike in space."""
        if len(values) == 1:
            return values
        (first, student), (second, target) = values.items()
        if not self.term.label:
            target = adapters.resize_like(target, student.shape)
        elif student.ndim == 4 and target.ndim == 3:
            student = resize(student, (target.shape[1], target.shape[2]))
        return {first: student, second: target}

    def adapter_start(self, key: Array) -> dict:
        """The first variables of the adapter, {} where there is none."""
        if self.adapter is None:
            return {}
        assert self.features is not None
        return dict(self.adapter.init(key, jnp.zeros(self.features.shape)))

    def start(self, key: Array) -> dict:
        """The first variables of the loss, {} where it is a function."""
        if self.module is None:
            return {}
        values = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.examples)
        return dict(self.module.init(key, **values))

    def weight(self, knobs: Knobs, epoch: Array) -> Float[Array, ""]:
        """The weight at `epoch`, a real number of epochs since the start, or at what validation has measured."""
        weight = jnp.asarray(knobs["weights"][self.name], jnp.float32)
        schedule = self.term.schedule
        if schedule is None:
            return weight
        return weight * factor(schedule, knobs["measures"][schedule.over] if schedule.over else epoch)


def _apply(module: nn.Module, variables: dict, *args: Any, **options: Any) -> tuple[Array, dict]:
    """The module's output, and what its collections become."""
    state = [k for k in variables if k != "params"]
    output, changed = module.apply(variables, *args, **options, mutable=state)
    return output, dict(changed)


def factor(schedule: Schedule, at: Any) -> Float[Array, ""]:
    """What the schedule says at an epoch or a measure."""
    at = jnp.asarray(at, jnp.float32)
    if schedule.shape == "steps":
        value = jnp.asarray(schedule.start, jnp.float32)
        for begin, end in sorted(schedule.points):
            value = jnp.where(at >= begin, end, value)
        return value
    span = max(schedule.until - schedule.begin, 1e-9)
    done = jnp.clip((at - schedule.begin) / span, 0.0, 1.0)
    if schedule.shape == "cosine":
        done = 0.5 - 0.5 * jnp.cos(jnp.pi * done)
    return schedule.start + (schedule.end - schedule.start) * done


# -- from the config -------------------------------------------------------------------------------------------------


def arguments(loss: Callable, kind: Any) -> list[str]:
    """The arguments of a loss of one kind, by position or by name."""
    return [p.name for p in inspect.signature(loss).parameters.values() if p.kind == kind]


def written_out(name: str, term: Term, loss: Callable) -> dict[str, Any]:
    """The `reads` of a term; the short form's are the first arguments of the loss."""
    if term.reads:
        return {k: v if isinstance(v, str) else tuple(v) for k, v in term.reads.items()}
    student = f"adapters:{name}" if term.adapter else f"student:{term.student}"
    target = [term.teacher] if term.teacher else [f"batch:{term.label}"] if term.label else []
    positional = arguments(loss, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return dict(zip(positional, [student, *target], strict=False))


def find(name: str, term: Term) -> BoundTerm:
    """The term with its loss, before anything is known of shapes."""
    loss, module = registry.get("losses", term.loss), None
    registry.check_arguments(term.loss, loss, term.args)
    if isinstance(loss, type) and issubclass(loss, nn.Module):
        module = loss(**term.args)
        loss = module.__call__
    reads = written_out(name, term, loss)
    parameters = inspect.signature(loss).parameters
    every = arguments(loss, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if unknown := [a for a in reads if a not in parameters]:
        raise ConfigError(f"the loss {term.loss!r} reads no {unknown[0]!r}; {nearest(unknown[0], every)}")
    if unread := [a for a in every if a not in reads and parameters[a].default is inspect.Parameter.empty]:
        raise ConfigError(
            f"the loss {term.loss!r} also reads {' and '.join(map(repr, unread))}; name a teacher or a label, or write "
            f"reads={{...}} with a path for each of {', '.join(map(repr, every))}"
        )
    return BoundTerm(name, term, loss, module, reads)


def with_adapter(
    bound: BoundTerm, student: Any, teacher: Any, patches: Mapping[str, adapters.Patches | None] = {}
) -> BoundTerm:
    """The term with the adapter that its shapes ask for; refused where channels differ and none is named. `patches` are
    those of the student and of the teachers, by their names."""
    term = bound.term
    if term.adapter:
        two = patches.get("student"), patches.get(split(term.teacher)[0])
        adapter = adapters.build(term.adapter, student.shape, teacher.shape, two)
        return dataclasses.replace(bound, adapter=adapter, features=student)
    if student.shape[-1] != teacher.shape[-1]:
        raise ConfigError(
            f"student {term.student!r} has {student.shape[-1]} channels, teacher {term.teacher!r} has "
            f"{teacher.shape[-1]}; name an adapter, for example adapter='conv_bn_relu'"
        )
    return bound


def check_over(term: Term, batch: Mapping[str, Any]) -> tuple[int, ...]:
    """The axes of the batch that tell examples apart, by the mask of what a term is averaged over."""
    mask = term.over or "valid"
    if mask not in batch or batch[mask].dtype != jnp.bool:
        masks = [k for k, v in batch.items() if getattr(v, "dtype", None) == jnp.bool]
        raise ConfigError(f"over={term.over!r}: the data have no such mask; {nearest(mask, masks)}")
    return batch[mask].shape


def check_batch(what: str, shape: tuple[int, ...], examples: tuple[int, ...]) -> None:
    if shape[: len(examples)] != examples:
        axes = "the first axis is not the batch" if len(examples) == 1 else f"it does not begin with {list(examples)}"
        raise ConfigError(
            f"{what} gives {list(shape)} for {math.prod(examples)} examples: {axes}; a "
            "module inside nn.scan gives all layers at once, so read an endpoint, or build the model with scan=False"
        )
