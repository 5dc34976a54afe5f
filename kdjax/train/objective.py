"""The objective: one function from trainable parameters to the total of every term, and how it is checked."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.config import ConfigError, Term
from kdjax.data.fields import readable
from kdjax.distill import terms as binding
from kdjax.distill.adapters import Patches
from kdjax.distill.scope import PLACES, Scope, paths
from kdjax.distill.taps import Network
from kdjax.distill.teachers import Frozen, Source, Tail
from kdjax.distill.terms import BoundTerm

Collections = dict[str, Any]


@dataclass(frozen=True)
class Objective:
    """The student, what it learns from, and the terms that bring them together. Nothing here is an array."""

    student: Network
    sources: dict[str, Source]
    averages: tuple[str, ...]  # the sources that are the student's own average
    terms: list[BoundTerm]

    def totals(
        self,
        params: dict,
        collections: Collections,
        teachers: dict[str, dict],
        knobs: Mapping[str, Any],
        batch: dict[str, Any],
        key: Array,
    ) -> tuple[Float[Array, " t"], Collections]:
        """The sum of each term over the examples that it may read, and the new collections.

        `params` are whole: {model, lora, adapters, losses}. `teachers` holds the variables of every source that has
        some.
        """
        outputs, changed = self.student(variables(params, collections), batch, train=True, key=key)
        new: Collections = {"model": changed, "adapters": {}, "losses": {}}
        scope, fields = Scope(), readable(batch)
        scope.add("batch", lambda: fields)
        scope.add("student", lambda: outputs)
        for name, source in self.sources.items():
            scope.add(name, partial(_fill, source, scope, batch, teachers.get(name, {})))

        def adapt(term: BoundTerm) -> Array:
            features, state = term.adapted(scope, own(params, collections, "adapters", term.name))
            new["adapters"] |= {term.name: state} if state else {}
            return features

        for term in self.terms:
            if term.adapter is not None:
                scope.add(f"adapters:{term.name}", partial(adapt, term))
        totals = []
        for term in self.terms:
            mine = own(params, collections, "losses", term.name)
            total, state = term.total(scope, fields, mine, knobs["args"].get(term.name, {}))
            totals.append(total)
            new["losses"] |= {term.name: state} if state else {}
        return jnp.stack(totals), new

    def counts(self, batch: dict[str, Any]) -> Float[Array, " t"]:
        """How many examples each term may read."""
        fields = readable(batch)
        return jnp.stack([term.readable(fields).sum().astype(jnp.float32) for term in self.terms])

    def weights(self, knobs: Mapping[str, Any], epoch: Array) -> Float[Array, " t"]:
        return jnp.stack([term.weight(knobs, epoch) for term in self.terms])


def _fill(source: Source, scope: Scope, batch: dict, variables: dict) -> Mapping[str, Array]:
    return source(source.feed(scope), batch, variables)


def variables(params: dict, collections: Collections) -> dict:
    """What the model is applied to."""
    given = {"params": params["model"], "lora": params.get("lora"), **collections.get("model", {})}
    return {k: v for k, v in given.items() if v}


def own(params: dict, collections: Collections, kind: str, name: str) -> dict:
    """The variables of an adapter or a loss."""
    return {"params": params.get(kind, {}).get(name, {}), **collections.get(kind, {}).get(name, {})}


# -- from the config -------------------------------------------------------------------------------------------------


def taps(terms: list[BoundTerm], sources: Mapping[str, Any], place: str) -> tuple[str, ...]:
    """The module paths, told by their slash, that are read in a place; `sources` are the teachers of the config."""
    read = [path for term in terms for path in paths(term.reads)]
    read += [f"student:{t.term.student}" for t in terms if t.term.adapter] + [t.term.teacher for t in terms]
    read += [path for teacher in sources.values() for path in teacher.reads.values()]
    names = {path.partition(":")[2] for path in read if path.startswith(f"{place}:")}
    return tuple(sorted(name for name in names if "/" in name))


def find_terms(terms: dict[str, Term]) -> tuple[list[BoundTerm], list[str]]:
    """Every term with its loss, and what is wrong with those that have none, for `bind` to say with the rest."""
    return _each(terms, lambda name: binding.find(name, terms[name]))


def bind(
    terms: list[BoundTerm],
    student: dict[str, Any],
    sources: dict[str, Source],
    teachers: dict[str, dict],
    batch: dict[str, Any],
    faults: Sequence[str] = (),
    patches: Mapping[str, Patches | None] = {},
) -> list[BoundTerm]:
    """Checks every term against shapes, and builds its adapter: nothing is computed.

    `student` are its endpoints and `teachers` the variables of the sources for such a `batch`, all as shapes; `patches`
    are where the patches of each lie. All that does not fit is named in one ConfigError, after the `faults` that are
    known already.
    """
    scope, fields = Scope(), jax.eval_shape(readable, batch)
    bound = {term.name: term for term in terms}
    scope.add("batch", lambda: fields)
    scope.add("student", lambda: student)
    for name, source in sources.items():
        scope.add(name, partial(_shapes, name, source, scope, batch, teachers.get(name, {})))

    def adapted(name: str) -> Any:
        term = bound[name].term
        features = scope[f"student:{term.student}"]
        bound[name] = binding.with_adapter(bound[name], features, scope[term.teacher], patches)
        adapter = bound[name].adapter
        assert adapter is not None
        return jax.eval_shape(adapter.init_with_output, jax.random.key(0), features)[0]

    for term in terms:
        if term.term.adapter:
            scope.add(f"adapters:{term.name}", partial(adapted, term.name))

    def check(name: str) -> BoundTerm:
        term = bound[name].term
        examples = binding.check_over(term, fields)
        for path in paths(bound[name].reads):
            binding.check_batch(repr(path), scope[path].shape, examples)
        if term.teacher and not term.adapter:
            bound[name] = binding.with_adapter(bound[name], scope[f"student:{term.student}"], scope[term.teacher])
        given = {path: scope[path] for path in paths(bound[name].reads)}
        values, _ = jax.eval_shape(bound[name].given, given, fields)
        bound[name] = replace(bound[name], examples=values)
        total = lambda given, fields: bound[name].total(given, fields, bound[name].start(jax.random.key(0)), {})  # noqa: E731
        jax.eval_shape(total, given, fields)
        return bound[name]

    checked, more = _each(bound, check)
    if faults or more:
        raise ConfigError("the objective does not fit the models:\n  " + "\n  ".join([*faults, *more]))
    return checked


def _shapes(name: str, source: Source, scope: Scope, batch: dict, variables: dict) -> Mapping[str, Any]:
    if isinstance(source, Frozen):
        return source.network.shapes(variables, batch)
    feed = source.feed(scope)
    if isinstance(source, Tail):
        _check_arguments(name, source, feed)
    return jax.eval_shape(source, feed, batch, variables)


def _check_arguments(name: str, tail: Tail, feed: dict) -> None:
    accepted = list(inspect.signature(getattr(tail.network.model, tail.method)).parameters)
    if strange := [argument for argument in feed if argument not in accepted]:
        raise ConfigError(f"teachers.{name}.reads: {tail.method} takes {', '.join(accepted)}, found {strange[0]!r}")


def _each(names: Any, make: Any) -> tuple[list[BoundTerm], list[str]]:
    """What each name becomes, and the faults of the names that become nothing."""
    bound, faults = [], []
    for name in names:
        try:
            bound.append(make(name))
        except ConfigError as error:
            faults.append(f"terms.{name}: {error}")
    return bound, faults


def check_names(teachers: Mapping[str, Any]) -> None:
    if taken := [name for name in teachers if name in PLACES]:
        raise ConfigError(f"teachers.{taken[0]}: {', '.join(PLACES)} are places of their own; choose another name")
