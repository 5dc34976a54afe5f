"""Teachers: frozen networks, each with its own view of the batch; their variables are arguments of the step."""

from typing import Any

import jax
import jax.numpy as jnp

from kdjax import registry
from kdjax.config import Model
from kdjax.distill.taps import Network
from kdjax.distill.terms import BoundTerm, Outputs


def build_model(model: Model, dtype: str = "float32") -> Any:
    """The registered model; `dtype` is what it computes in."""
    return registry.get("models", model.name)(**model.options, dtype=jnp.dtype(dtype))


def taps(terms: Any, teacher: str = "") -> tuple[str, ...]:
    """The module paths, told by their slash, that `terms` read from that teacher, or from the student."""
    if teacher:
        names = [t.teacher.partition(":")[2] for t in terms if t.teacher.partition(":")[0] == teacher]
    else:
        names = [t.student for t in terms]
    return tuple(sorted({name for name in names if "/" in name}))


def teach(networks: dict[str, Network], variables: dict[str, dict], batch: dict, terms: list[BoundTerm]) -> dict:
    """What each teacher says of the batch, for the endpoints that are read: `{teacher: {endpoint: array}}`."""
    read: dict[str, Outputs] = {}
    for name, network in networks.items():
        outputs, _ = network(variables[name], batch)
        wanted = {term.endpoint for term in terms if term.teacher == name}
        read[name] = {k: jax.lax.stop_gradient(v.astype(jnp.float32)) for k, v in outputs.items() if k in wanted}
    return read
