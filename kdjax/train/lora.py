"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) on the Dense layers of any model, by path.

The pairs live in a collection of their own, "lora", beside "params": that alone is trained, saved and sharded as
trainable, and the model knows nothing of it. A fused `qkv` takes separate pairs for its q and v thirds, as SAMed does
(Zhang & Liu 2023, arXiv:2304.13785); k is left alone. There is no alpha / rank, only `Lora.scale`.
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

KINDS = {"all": ("a", "b"), "q_v": ("q_a", "q_b", "v_a", "v_b")}  # target kind -> the leaves of one layer


def matched(params: Mapping, lora: Lora) -> dict[str, str]:
    """Path -> kind of each Dense that gets adapters; the first target whose pattern matches the whole path decides."""
    dense = weights.dense_layers(params)
    faults = [f"rank: expected at least 1, found {lora.rank}"] if lora.rank < 1 else []
    kinds: dict[str, str] = {}
    for pattern, kind in lora.targets:
        if kind not in KINDS:
            faults.append(f"target {pattern!r}: no kind {kind!r}; {nearest(kind, KINDS)}")
        paths = [path for path in dense if re.fullmatch(pattern, path)]
        if not paths:
            there = sorted({re.sub(r"_\d+", "_*", path) for path in dense})
            faults.append(f"target {pattern!r} matches no Dense layer; there are: {', '.join(there) or 'none'}")
        for path in paths:
            kind_here = kinds.setdefault(path, kind)
            if kind_here == "q_v" and dense[path][-1] % 3:
                faults.append(f"{path}: 'q_v' needs a width of three equal parts, found {dense[path][-1]}; use 'all'")
    if faults:
        raise ConfigError("lora cannot be applied:\n  " + "\n  ".join(faults))
    return kinds


def init(key: jax.Array, params: Mapping, lora: Lora) -> dict[str, Any]:
    """The collection: `a` [in, r] uniform within 1 / sqrt(in), as a new torch Linear; `b` [r, out] zeros.

    Kernels stacked by `nn.scan` [n, in, out] get stacked pairs. A layer's values depend on its path alone, so a
    further target changes no other layer's start.
    """
    dense, flat = weights.dense_layers(params), {}
    for path, kind in matched(params, lora).items():
        *stack, width, out = dense[path]
        for name in KINDS[kind]:
            at = f"{path}/{name}"
            if name.endswith("b"):
                flat[at] = jnp.zeros((*stack, lora.rank, out if kind == "all" else out // 3), jnp.float32)
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

    def add(call, args, kwargs, context):
        y, module = call(*args, **kwargs), context.module
        if context.method_name != "__call__" or not (module.has_variable("lora", "a") or _is_fused(module)):
            return y
        if not isinstance(module, nn.Dense):
            raise ConfigError(
                f"lora works on nn.Dense, but {'/'.join(module.path)} is {type(module).__name__}; narrow lora.targets"
            )
        names = KINDS["q_v" if _is_fused(module) else "all"]
        a, b = weights.pair({name: module.get_variable("lora", name).astype(y.dtype) for name in names})
        return y + lora.scale * ((args[0].astype(y.dtype) @ a) @ b)

    return nn.intercept_methods(add)


def merge(params: Mapping, collection: Mapping, lora: Lora) -> dict[str, Any]:
    """Plain parameters of the adapted model."""
    return weights.merge(params, collection, lora.scale)


def _is_fused(module: nn.Module) -> bool:
    return module.has_variable("lora", "q_a")
