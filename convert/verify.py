"""Both sides on the same image: the PyTorch original with its tensors, and our model with the converted weights."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np

from convert.family import Converted, ConvertError, Family, build, image_hw
from kdjax.config import Model

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # for what runs once
TOLERANCE = 1e-5  # relative to the largest value of an endpoint, in float32


@dataclass(frozen=True)
class Difference:
    endpoint: str
    shape: tuple[int, ...]
    absolute: float
    relative: float  # to the largest value

    def __str__(self) -> str:
        return f"{self.endpoint:24} {list(self.shape)!s:22} {self.absolute:12.2e} {self.relative:12.2e}"


def verify(family: Family, model: Model, arrays: Mapping[str, np.ndarray], variables: Mapping, seed: int = 0) -> list:
    """The differences of every endpoint that both have, of one random image.

    `arrays` are the original's tensors under its own names, and must fill it to the last.
    """
    if not family.original:
        raise ConvertError(f"{family.name} has no original to compare with")
    original = importlib.import_module(family.original)
    import torch

    theirs = original.build(model)
    theirs.load_state_dict({name: torch.from_numpy(np.array(x)) for name, x in arrays.items()}, strict=True)
    module = build(model)
    image = np.random.default_rng(seed).normal(size=(1, *image_hw(module), 3)).astype(np.float32)
    with torch.no_grad():
        expected = original.outputs(theirs.eval(), image)
    with jax.default_matmul_precision("highest"):
        run = jax.jit(module.apply, compiler_options=QUICK if jax.default_backend() == "cpu" else None)
        found = run(dict(variables), image)
    return [_difference(name, np.asarray(found[name]), expected[name]) for name in expected]


def original_tensors(converted: Converted) -> dict[str, np.ndarray]:
    """What fills the original: the checkpoint's own tensors; of those that were resized, what became of them."""
    resized, module = set(converted.resized), build(converted.model)
    found: dict[str, np.ndarray] = {}
    for slot in converted.slots:
        if resized.isdisjoint(slot.tensors):
            made = {name: converted.tensors[name].read() for name in slot.tensors}
        else:
            made = slot.apart(converted.leaf(slot))
        found |= made | slot.further(made, module)
    return found


def _difference(name: str, found: np.ndarray, expected: np.ndarray) -> Difference:
    if found.shape != expected.shape:
        raise ConvertError(f"endpoint {name}: ours is {list(found.shape)}, the original's {list(expected.shape)}")
    absolute = float(np.abs(found - expected).max())
    largest = float(np.abs(expected).max())
    return Difference(name, found.shape, absolute, absolute / largest if largest else absolute)
