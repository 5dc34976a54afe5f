"""Low-rank pairs as arrays: which layers can have them, what a pair is to its layer, and plain parameters of both.

A collection holds `a` [in, r] and `b` [r, out] at the path of each layer, or `q_a`, `q_b`, `v_a`, `v_b` for the q and
v thirds of a fused projection.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from kdjax.config import ConfigError, nearest


def merge(params: Mapping, collection: Mapping, scale: float = 1.0) -> dict[str, Any]:
    """Plain parameters of the adapted model: each kernel plus `scale * a @ b`; the other leaves as they are."""
    flat: dict[str, Any] = flatten_dict(params, sep="/")
    layers: dict[str, dict[str, Any]] = {}
    for at, value in flatten_dict(collection, sep="/").items():
        path, _, name = at.rpartition("/")
        layers.setdefault(path, {})[name] = value
    for path, leaves in layers.items():
        kernel = flat.get(f"{path}/kernel")
        if kernel is None:
            raise ConfigError(
                f"lora has adapters for {path}, which the parameters lack; {nearest(path, dense_layers(params))}"
            )
        a, b = pair(leaves)
        product = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        flat[f"{path}/kernel"] = kernel + (scale * product).astype(kernel.dtype)
    return unflatten_dict(flat, sep="/")


def pair(leaves: Mapping[str, Any]) -> tuple[Any, Any]:
    """One (a, b) for the whole layer; of a fused qkv, block-wise, with nothing for k."""
    if "a" in leaves:
        return leaves["a"], leaves["b"]
    q, v = leaves["q_b"], leaves["v_b"]
    none = jnp.zeros_like(q)
    rows = jnp.concatenate([q, none, none], -1), jnp.concatenate([none, none, v], -1)
    return jnp.concatenate([leaves["q_a"], leaves["v_a"]], -1), jnp.concatenate(rows, -2)


def dense_layers(params: Mapping) -> dict[str, tuple[int, ...]]:
    """Path -> kernel shape of what may be a Dense layer, plain [in, out] or stacked by nn.scan [n, in, out]."""
    flat: dict[str, Any] = flatten_dict(params, sep="/")
    kernels = {at.removesuffix("/kernel"): leaf.shape for at, leaf in flat.items() if at.endswith("/kernel")}
    return {path: shape for path, shape in kernels.items() if len(shape) in (2, 3)}
