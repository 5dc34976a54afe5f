"""What is learned beside a layer, as arrays: which layers can have it, and plain parameters of both.

A collection holds at the path of each layer a low-rank pair, `a` [in, r] and `b` [r, out], or the factors of its
outputs, `scale` [out]. For thirds of a fused projection their names begin with the third's: `q_a`, `q_b`, `v_scale`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from kdjax.config import ConfigError, nearest

THIRDS = ("q_", "k_", "v_")


def merge(params: Mapping, collection: Mapping, scale: float = 1.0) -> dict[str, Any]:
    """Plain parameters of the adapted model: each kernel plus `scale * a @ b`, or kernel and bias times the factors;
    the other leaves as they are."""
    flat: dict[str, Any] = flatten_dict(params, sep="/")
    layers: dict[str, dict[str, Any]] = {}
    for at, value in flatten_dict(collection, sep="/").items():
        path, _, name = at.rpartition("/")
        layers.setdefault(path, {})[name] = value
    for path, leaves in layers.items():
        kernel, bias = flat.get(f"{path}/kernel"), flat.get(f"{path}/bias")
        if kernel is None:
            raise ConfigError(
                f"lora has adapters for {path}, which the parameters lack; {nearest(path, dense_layers(params))}"
            )
        if are_factors(leaves):
            by = factors(leaves)
            flat[f"{path}/kernel"] = kernel * by[..., None, :].astype(kernel.dtype)
            flat |= {} if bias is None else {f"{path}/bias": bias * by.astype(bias.dtype)}
            continue
        a, b = pair(leaves)
        product = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        flat[f"{path}/kernel"] = kernel + (scale * product).astype(kernel.dtype)
    return unflatten_dict(flat, sep="/")


def pair(leaves: Mapping[str, Any]) -> tuple[Any, Any]:
    """One (a, b) for the whole layer; of a fused one, block-wise, with nothing for the third that has no pair."""
    if "a" in leaves:
        return leaves["a"], leaves["b"]
    there = [third for third in THIRDS if f"{third}a" in leaves]
    none = jnp.zeros_like(leaves[f"{there[0]}b"])
    rows = [jnp.concatenate([leaves[f"{t}b"] if t == third else none for t in THIRDS], -1) for third in there]
    return jnp.concatenate([leaves[f"{third}a"] for third in there], -1), jnp.concatenate(rows, -2)


def are_factors(leaves: Mapping[str, Any]) -> bool:
    return any(name.endswith("scale") for name in leaves)


def factors(leaves: Mapping[str, Any]) -> Any:
    """Those of all outputs of a layer; 1 for the third of a fused one that has none."""
    if "scale" in leaves:
        return leaves["scale"]
    none = jnp.ones_like(next(iter(leaves.values())))
    return jnp.concatenate([leaves.get(f"{third}scale", none) for third in THIRDS], -1)


def dense_layers(params: Mapping) -> dict[str, tuple[int, ...]]:
    """Path -> kernel shape of what may be a Dense layer, plain [in, out] or stacked by nn.scan [n, in, out]."""
    flat: dict[str, Any] = flatten_dict(params, sep="/")
    kernels = {at.removesuffix("/kernel"): leaf.shape for at, leaf in flat.items() if at.endswith("/kernel")}
    return {path: shape for path, shape in kernels.items() if len(shape) in (2, 3)}
