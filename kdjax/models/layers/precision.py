"""What is too coarse in half precision is computed in float32; a model that is built in float64 stays in float64."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array


def wide_dtype(x: Array) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)


def at_least_float32(x: Array) -> Array:
    return x.astype(wide_dtype(x))
