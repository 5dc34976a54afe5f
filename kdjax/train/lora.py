"""What is learned beside the Dense layers of any model, by path.

Low-rank pairs (LoRA, Hu et al. 2021, arXiv 2106.09685), or factors of their outputs (IA3, Liu et al. 2022, arXiv
2205.05638).

It lives in a collection of its own, "lora", beside "params": that alone is trained, saved and sharded as trainable, and
the model knows nothing of it. A fused `qkv` can have it for two of its thirds alone: pairs of q and v as SAMed has them
(Zhang & Liu 2023, arXiv 2304.13785), factors of k and v as IA3 has them. There is no alpha / rank, only `Lora.scale`.
"""

import contextlib
import re
import zlib
from collections.abc import Mapping
from typing import Any, Optional

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from kdjax.config import ConfigError, Lora, nearest
from kdjax.weights import lora as weights

LEAVES = {"lora": ("a", "b"), "ia3": ("scale",)}  # kind -> of a layer, or of a third of it
TARGETS = {"all": ("",), "q_v": ("q_", "v_"), "k_v": ("k_", "v_")}  # kind of target -> what its leaves begin with


def matched(params: Mapping, lora: Lora) -> dict[str, str]:
    """Path -> kind of each Dense that gets adapters; the first target whose pattern matches the whole path decides."""
    dense = weights.dense_layers(params)
    faults = [f"rank: expected at least 1, found {lora.rank}"] if lora.rank < 1 else []
    if lora.kind not in LEAVES:
        faults.append(f"no kind {lora.kind!r}; {nearest(lora.kind, LEAVES)}")
    kinds: dict[str, str] = {}
    for pattern, kind in lora.targets:
        if kind not in TARGETS:
            faults.append(f"target {pattern!r}: no kind {kind!r}; {nearest(kind, TARGETS)}")
        paths = [path for path in dense if re.fullmatch(pattern, path)]
        if not paths:
            there = sorted({re.sub(r"_\d+", "_*", path) for path in dense})
            faults.append(f"target {pattern!r} matches no Dense layer; there are: {', '.join(there) or 'none'}")
        for path in paths:
            kind_here = kinds.setdefault(path, kind)
            if kind_here != "all" and dense[path][-1] % 3:
                faults.append(
                    f"{path}: {kind_here!r} needs a width of three equal parts, found {dense[path][-1]}; use 'all'"
                )
    if faults:
        raise ConfigError("lora cannot be applied:\n  " + "\n  ".join(faults))
    return kinds


def init(key: jax.Array, params: Mapping, lora: Lora) -> dict[str, Any]:
    """The collection: `a` [in, r] uniform within 1 / sqrt(in), as a new torch Linear; `b` [r, out] zeros; `scale` [out]
    ones.

    Kernels stacked by `nn.scan` [n, in, out] get stacked leaves. A layer's values depend on its path alone, so a
    further target changes no other layer's start.
    """
    dense, flat = weights.dense_layers(params), {}
    for path, kind in matched(params, lora).items():
        *stack, width, out = dense[path]
        out = out if kind == "all" else out // 3
        for name in (f"{third}{leaf}" for third in TARGETS[kind] for leaf in LEAVES[lora.kind]):
            at = f"{path}/{name}"
            if name.endswith("scale"):
                flat[at] = jnp.ones((*stack, out), jnp.float32)
            elif name.endswith("b"):
                flat[at] = jnp.zeros((*stack, lora.rank, out), jnp.float32)
            else:
                leaf_key = jax.random.fold_in(key, zlib.crc32(at.encode()))
                bound = width**-0.5
                flat[at] = jax.random.uniform(leaf_key, (*stack, width, lora.rank), jnp.float32, -bound, bound)
    return unflatten_dict(flat, sep="/")


def active(lora: Optional[Lora]):
    """Within this context `model.apply({"params": ..., "lora": ...}, ...)` adds the adapters; without the collection,
    or for `None`, nothing changes."""
    if lora is None:
        return contextlib.nullcontext()
    names = [f"{third}{leaf}" for third in ("", *weights.THIRDS) for leaves in LEAVES.values() for leaf in leaves]

    def add(call, args, kwargs, context):
        y, module = call(*args, **kwargs), context.module
        if context.method_name != "__call__":
            return y
        leaves = {name: module.get_variable("lora", name) for name in names if module.has_variable("lora", name)}
        if not leaves:
            return y
        if not isinstance(module, nn.Dense):
            raise ConfigError(
                f"lora works on nn.Dense, but {'/'.join(module.path)} is {type(module).__name__}; narrow lora.targets"
            )
        leaves = {name: leaf.astype(y.dtype) for name, leaf in leaves.items()}
        if weights.are_factors(leaves):
            return y * weights.factors(leaves).reshape((1,) * (y.ndim - 1) + (-1,))
        a, b = weights.pair(leaves)
        return y + lora.scale * ((args[0].astype(y.dtype) @ a) @ b)

    return nn.intercept_methods(add)


def merge(params: Mapping, collection: Mapping, lora: Lora) -> dict[str, Any]:
    """Plain parameters of the adapted model."""
    return weights.merge(params, collection, lora.scale)
