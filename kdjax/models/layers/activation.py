"""Activations by name, for models whose checkpoints differ in them."""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp

from kdjax.config import nearest
from kdjax.models.layers.gelu import gelu

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,  # exact
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu6": lambda x: jnp.where(x < 6, jax.nn.relu(x), 6),  # flat at both ends, as PyTorch's; a minimum is not
    "silu": jax.nn.silu,
}


def activation_faults(name: str) -> list[str]:
    return [] if name in ACTIVATIONS else [f"activation: no {name!r}; {nearest(name, ACTIVATIONS)}"]
