"""A torch state dict becomes Linen variables by rule, where the module names of both agree.

`blocks.3.attn.qkv.weight` is `blocks_3/attn/qkv/kernel`, `lateral_convs.0.1.weight` is `lateral_convs_0_1/scale`: a
list index joins the name before it with an underscore, and the leaf is whichever one the Linen module has.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

WEIGHTS = ("kernel", "scale", "embedding")
STATISTICS = {"running_mean": "mean", "running_var": "var"}


def to_flax(state_dict: Mapping[str, Any], abstract_variables: Mapping, *, transposed: str = r"(?!)") -> dict[str, Any]:
    """Variables shaped like `abstract_variables` (`jax.eval_shape` of `init`) with the values of `state_dict`.

    `transposed` matches the paths of transposed convolutions whose stride is their kernel: [in, out, h, w] in torch,
    [h, w, in, out] here. One ValueError lists every unused key, unfilled leaf and wrong shape.
    """
    slots = {"/".join(path): leaf for path, leaf in flatten_dict(dict(abstract_variables)).items()}
    by_path = {slot.partition("/")[2]: slot for slot in slots}
    filled: dict[str, np.ndarray] = {}
    wrong: list[str] = []
    for key, tensor in state_dict.items():
        if key.endswith("num_batches_tracked"):
            continue
        path = re.sub(r"\.(?=\d+(\.|$))", "_", key).replace(".", "/")
        module, _, leaf = path.rpartition("/")
        names = WEIGHTS if leaf == "weight" else (STATISTICS.get(leaf, leaf),)
        slot = next((by_path[p] for name in names if (p := f"{module}/{name}".lstrip("/")) in by_path), None)
        if slot is None:
            wrong.append(f"unused: {key} {tuple(tensor.shape)}")
            continue
        value = np.asarray(tensor)
        if slot.endswith("/kernel"):
            swap = value.ndim > 2 and re.search(transposed, path)
            value = np.moveaxis(value, (0, 1), (-2, -1) if swap else (-1, -2))
        if value.shape != slots[slot].shape:
            wrong.append(f"shape: {key} gives {value.shape}, {slot} expects {slots[slot].shape}")
        filled[slot] = np.array(value, slots[slot].dtype)
    wrong += [f"unfilled: {slot} {leaf.shape}" for slot, leaf in slots.items() if slot not in filled]
    if wrong:
        raise ValueError("the state dict does not fit the model:\n  " + "\n  ".join(wrong))
    return jax.tree.map(jax.numpy.asarray, unflatten_dict({tuple(slot.split("/")): v for slot, v in filled.items()}))
