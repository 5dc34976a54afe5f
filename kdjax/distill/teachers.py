"""Teachers: sources of endpoints. Their parameters are arguments of the step and never receive a gradient."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from kdjax import registry
from kdjax.config import ConfigError, Model, Teacher
from kdjax.distill.scope import Outputs, Scope
from kdjax.distill.taps import Network


def build_model(model: Model, dtype: str = "float32") -> Any:
    """The registered model; `dtype` is what it computes in."""
    return registry.build("models", model.name, {**model.options, "dtype": jnp.dtype(dtype)})


@runtime_checkable
class Source(Protocol):
    """What fills a place of the scope."""

    def feed(self, scope: Scope) -> Any:
        """What it reads of the scope itself."""
        ...

    def __call__(self, feed: Any, batch: dict[str, Any], variables: dict) -> Outputs:
        """Its endpoints. `variables` are those of its network, {} where it has none of its own."""
        ...


@dataclass(frozen=True)
class Frozen:
    """A network with its own view of the batch, not training. The running average of a student is one as well."""

    network: Network

    def feed(self, scope: Scope) -> Any:
        return {}

    def __call__(self, feed: Any, batch: dict[str, Any], variables: dict) -> Outputs:
        return jax.lax.stop_gradient(_floats(self.network(variables, batch)[0]))


@dataclass(frozen=True)
class Peer:
    """A part of the student, a composed model, as its other parts see it: "PART.logits" is its "logits"."""

    part: str

    def feed(self, scope: Scope) -> Outputs:
        begin = f"{self.part}."
        own = {k.removeprefix(begin): v for k, v in scope.place("student").items() if k.startswith(begin)}
        if not own:
            raise ConfigError(f"the student has no part {self.part!r}: none of its endpoints begins with {begin!r}")
        return own

    def __call__(self, feed: Outputs, batch: dict[str, Any], variables: dict) -> Outputs:
        return jax.lax.stop_gradient(_floats(feed))


@dataclass(frozen=True)
class Tail:
    """A method of a frozen model on entries of the scope: gradients flow through it to what it is fed."""

    network: Network
    method: str
    reads: tuple[tuple[str, str], ...]  # argument -> path

    def feed(self, scope: Scope) -> dict[str, Any]:
        return {argument: scope[path] for argument, path in self.reads}

    def __call__(self, feed: dict[str, Any], batch: dict[str, Any], variables: dict) -> Outputs:
        variables = jax.lax.stop_gradient(variables)
        return _floats(self.network.model.apply(variables, **feed, method=self.method))


def source(teacher: Teacher, model: Model | None, student: Network, taps: tuple[str, ...]) -> Source:
    """The source that a teacher of the config is; `model` is the one that a frozen teacher has."""
    if teacher.part:
        return Peer(teacher.part)
    if teacher.average:
        return Frozen(Network(student.model, taps, student.around, student.names))
    assert model is not None
    network = Network(build_model(model, teacher.dtype), taps, names=tuple(teacher.inputs.items()))
    if not teacher.method:
        return Frozen(network)
    if not callable(getattr(network.model, teacher.method, None)):
        raise ConfigError(f"{model.name} has no method {teacher.method!r}")
    return Tail(network, teacher.method, tuple(teacher.reads.items()))


def _floats(outputs: Outputs) -> Outputs:
    return {name: value.astype(jnp.float32) for name, value in outputs.items()}
