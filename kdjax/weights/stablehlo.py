"""A model as one file that runs wherever JAX does, without kdjax: StableHLO, the weights inside."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from kdjax.weights.safetensors import WeightsError

PLATFORMS = ("cpu", "cuda")
MONTHS = 6  # so long, at least, the JAX that is new then still reads the file
LARGEST = 2**31 - 2**24  # bytes of weights: what the format's messages hold


def save(path: Path, function: Callable, variables: Any, shape: tuple[int, ...]) -> None:
    """Writes `function(variables, x)`, float32 [b, *shape] -> a tree of [b, ...], for any b."""
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(variables))
    if size > LARGEST:
        raise WeightsError(f"{path}: {size:,} bytes of weights, StableHLO holds {LARGEST:,}; use the safetensors file")
    variables = jax.tree.map(jnp.asarray, variables)

    def one(x: jax.Array) -> Any:
        return jax.tree.map(lambda y: y[0], function(variables, x[None]))

    # One example at a time: a model may ask for the length of its batch, which has no number here.
    (b,) = export.symbolic_shape("b")
    made = export.export(jax.jit(jax.vmap(one)), platforms=PLATFORMS)(jax.ShapeDtypeStruct((b, *shape), jnp.float32))
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(made.serialize())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path) -> Callable:
    """The function in the file: x -> a tree of arrays."""
    return export.deserialize(bytearray(path.read_bytes())).call
