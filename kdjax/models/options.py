"""The options of a named variant of a model family, with some replaced."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any, TypeVar

import jax.numpy as jnp

from kdjax.config import ConfigError, nearest
from kdjax.type_faults import type_faults

T = TypeVar("T")

LAYERS = 64  # at most, of one kind: more take minutes to trace
DTYPES = ("bfloat16", "float16", "float32", "float64")
# Option -> the least and the greatest that it may be, or each of its numbers; the first that matches counts. What a
# family asks for beyond that, it checks itself.
RANGES = (
    (r"fc_layers|depths?|layers", 0, LAYERS),
    (r"decoder_depth", 1, 16),
    (r"image_size", 1, 1 << 13),
    (r"mlp_ratio", 0.01, 256),
    (r"mask_channels", 4, 1 << 24),  # a quarter of them are the first layer's
    (r"dim|patch_size|window|decoder_\w+|embed_dim|iou_dim|neck_dim|head_dim", 1, 1 << 24),
    (r".*", 0, 1 << 24),
)


def options_of(
    kind: type[T], family: str, variants: dict[str, dict[str, Any]], variant: str, overrides: dict[str, Any]
) -> T:
    """`kind` filled from the table; a saved config brings lists where the options have tuples."""
    if variant not in variants:
        raise ConfigError(f"no {family} variant {variant!r}; {nearest(variant, variants)}")
    types = {f.name: f.type for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in (variants[variant] | overrides).items()}
    faults = [f"{family} has no option {name!r}; {nearest(name, types)}" for name in values if name not in types]
    for name, value in values.items():
        if name == "dtype":
            faults += _dtype_faults(value)
        elif name in types:
            faults += type_faults(types[name], value, name) or _range_faults(name, value)
    if faults:
        raise ConfigError("\n".join(faults))
    return kind(**values | {"dtype": jnp.dtype(values.get("dtype", "float32"))})


def _range_faults(name: str, value: Any) -> Iterator[str]:
    least, greatest = next((a, b) for pattern, a, b in RANGES if re.fullmatch(pattern, name))
    numbers = value if isinstance(value, tuple) else (value,)
    bounded = int if least == int(least) else int | float
    if len(numbers) > LAYERS or any(
        type(n) is not bool and isinstance(n, bounded) and not least <= n <= greatest for n in numbers
    ):
        yield f"{name}: expected from {least} to {greatest:,}, found {_short(value)}"
    elif re.fullmatch(r"depths", name) and sum(numbers) > LAYERS:
        yield f"{name}: expected at most {LAYERS} together, found {_short(value)}"


def _dtype_faults(value: Any) -> list[str]:
    name = value if isinstance(value, str) else getattr(value, "name", getattr(value, "__name__", value))
    return [] if name in DTYPES else [f"dtype: expected one of {', '.join(DTYPES)}, found {_short(value)}"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}..."
