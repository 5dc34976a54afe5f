"""The options of a named variant of a model family, with some replaced."""

import dataclasses
from typing import Any, TypeVar

import jax.numpy as jnp

from kdjax.config import ConfigError, nearest

T = TypeVar("T")


def options_of(
    kind: type[T], family: str, variants: dict[str, dict[str, Any]], variant: str, overrides: dict[str, Any]
) -> T:
    """`kind` filled from the table; a saved config brings lists where the options have tuples."""
    if variant not in variants:
        raise ConfigError(f"no {family} variant {variant!r}; {nearest(variant, variants)}")
    known = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    unknown = [f"{family} has no option {name!r}; {nearest(name, known)}" for name in overrides if name not in known]
    if unknown:
        raise ConfigError("\n".join(unknown))
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in (variants[variant] | overrides).items()}
    return kind(**values | {"dtype": jnp.dtype(values.get("dtype", "float32"))})
