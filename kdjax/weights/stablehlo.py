"""A model as one file that runs wherever JAX does, without kdjax: StableHLO, the weights inside."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export
from jax.typing import DTypeLike

from kdjax.weights.safetensors import WeightsError

PLATFORMS = ("cpu", "cuda")
MONTHS = 6  # so long, at least, the JAX that is new then still reads the file
LARGEST = 2**31 - 2**24  # bytes of weights: what the format's messages hold


def save(
    path: Path, function: Callable, variables: Any, shapes: Sequence[tuple[Sequence[int | str], DTypeLike]]
) -> None:
    """Writes `function(variables, *arrays)`, arrays [b, *shape] -> a tree of [b, ...], for any b.

    `shapes` are (shape without b, dtype) of each array; a size with a name, as "n" in (("n", 10), "float32"), may be
    any too, and is the same wherever that name stands.
    """
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(variables))
    if size > LARGEST:
        raise WeightsError(f"{path}: {size:,} bytes of weights, StableHLO holds {LARGEST:,}; use the safetensors file")
    variables = jax.tree.map(jnp.asarray, variables)

    def one_example(*arrays: jax.Array) -> Any:
        return jax.tree.map(lambda y: y[0], function(variables, *(x[None] for x in arrays)))

    scope = export.SymbolicScope()
    arrays = [
        jax.ShapeDtypeStruct(export.symbolic_shape(", ".join(map(str, ("b", *shape))), scope=scope), dtype)
        for shape, dtype in shapes
    ]
    # One example at a time: a model may ask for the length of its batch, which has no number here.
    exported = export.export(jax.jit(jax.vmap(one_example)), platforms=PLATFORMS)(*arrays)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(exported.serialize())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path) -> Callable:
    """The function in the file: arrays -> a tree of arrays."""
    return export.deserialize(bytearray(path.read_bytes())).call
