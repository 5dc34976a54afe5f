"""A checkpoint that holds a part of a model, put on the weights of a whole one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from convert.family import ConvertError, Family, leaves
from kdjax.config import Model
from kdjax.weights import lora, safetensors


def put_on(family: Family, part: tuple[Model, Mapping], base: tuple[Model, Mapping]) -> tuple[Model, dict, dict]:
    """(the whole model, its variables without the part's low-rank pairs, and with them)"""
    assert family.onto is not None
    model, plain = family.onto(*part, *base)
    return model, plain, plain | {"params": lora.merge(plain["params"], part[1]["lora"])}


def put_on_exactly(
    family: Family, part: tuple[Model, Mapping], base: tuple[Model, Mapping]
) -> tuple[Model, dict, dict]:
    """The same with the pairs added in float64, so that what a file holds is these rounded once."""
    with jax.enable_x64(True):
        model, plain, whole = put_on(family, *((m, jax.tree.map(np.float64, dict(v))) for m, v in (part, base)))
    return model, jax.tree.map(np.float32, plain), jax.tree.map(np.asarray, whole)


def differing(merged: Mapping, exact: Mapping) -> str:
    """The first leaf that is not the exact one to float32's rounding; "" where there is none."""
    leaves = zip(jax.tree_util.tree_leaves_with_path(merged), jax.tree.leaves(exact), strict=True)
    for (path, found), expected in leaves:
        if not np.allclose(found, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max(initial=0), equal_nan=True):
            return jax.tree_util.keystr(path, simple=True, separator="/")
    return ""


def options_of(whole: Model) -> dict:
    """Of the part's model; how many masks there are, the part says itself."""
    return {name: value for name, value in whole.options.items() if name != "num_classes"}


def read(variables: Mapping) -> dict:
    """Leaves that are made when they are asked for, made."""
    return jax.tree.map(lambda leaf: leaf.read(), dict(variables))


def random_base(model: Model) -> tuple[Model, dict]:
    """The model itself, with variables that leave nothing at zero, for a comparison without a base."""
    draw = np.random.default_rng(0)

    def leaf(path: Any, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        random = draw.normal(size=shape.shape).astype(np.float32)
        if name == "scale":
            return 1 + np.float32(0.1) * random
        return random * np.float32(np.prod(shape.shape[-4:-1]) ** -0.5 if name == "kernel" else 0.1)

    return model, jax.tree.map_with_path(leaf, unflatten_dict(leaves(model), sep="/"))


def check_written(path: Path, whole: Mapping) -> None:
    """Reads the file back and compares it, bit for bit."""
    written = safetensors.stored(path)[0]
    for name, leaf in flatten_dict(dict(whole), sep="/").items():
        if written[name].read().tobytes() != np.asarray(leaf).tobytes():
            raise ConvertError(f"{path}: {name} was not written as it is; this is a fault of kdjax")
