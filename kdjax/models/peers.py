"""Several models as one student: they see the same examples and may learn from each other."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array

from kdjax import registry
from kdjax.config import ConfigError
from kdjax.models.inputs import Input


class Peers(nn.Module):
    """Inputs of all parts -> their endpoints, "PART.logits"; the first part's also by their own names.

    The first part is what is evaluated, kept and exported with the others beside it; each is a submodule of its name.
    """

    names: tuple[str, ...]
    models: tuple[nn.Module, ...]

    @property
    def inputs(self) -> dict[str, Input]:
        return {field: spec for model in self.models for field, spec in model.inputs.items()}  # type: ignore[attr-defined]

    @property
    def endpoints(self) -> tuple[str, ...]:
        several = [model.endpoints for model in self.models]  # type: ignore[attr-defined]
        own = (f"{name}.{endpoint}" for name, names in zip(self.names, several, strict=True) for endpoint in names)
        return (*several[0], *own)

    @nn.compact
    def __call__(self, *inputs: Any, train: bool = False) -> dict[str, Array]:
        given = dict(zip(self.inputs, inputs, strict=True))
        outputs: dict[str, Array] = {}
        for name, model in zip(self.names, self.models, strict=True):
            fields = [given[field] for field in model.inputs]  # type: ignore[attr-defined]
            part = model.clone(parent=self, name=name)(*fields, train=train)
            outputs = (outputs or part) | {f"{name}.{endpoint}": value for endpoint, value in part.items()}
        return outputs


def build_peers(dtype: Any = "float32", **parts: dict) -> Peers:
    """`parts` are models by name, {"name": ..., "options": {...}}, two or more that read the same view of a field."""
    if len(parts) < 2:
        raise ConfigError(f"peers: expected at least two parts, found {', '.join(parts) or 'none'}")
    built = {
        name: registry.get("models", part["name"])(**{"dtype": dtype, **part.get("options", {})})
        for name, part in parts.items()
    }
    seen: dict[str, tuple[str, Input]] = {}
    for name, model in built.items():
        for field, spec in model.inputs.items():
            first, other = seen.setdefault(field, (name, spec))
            if spec != other:
                raise ConfigError(
                    f"peers: {first!r} and {name!r} read {field!r} as {other} and {spec}; make them alike"
                )
    return Peers(tuple(built), tuple(built.values()))
