"""Both sides on the same input: the PyTorch original with its tensors, and our model with the converted weights."""

import dataclasses
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from convert.example import example
from convert.family import Converted, ConvertError, Family, build
from kdjax.config import Model

TOLERANCE = 1e-5  # relative to the largest value of an endpoint, in float32
ROUNDING = 3  # where the original itself is further than that from its float64 self: so many times as far


@dataclass(frozen=True)
class Difference:
    """Between two float32 computations of an endpoint, relative to its largest value."""

    endpoint: str
    shape: tuple[int, ...]
    absolute: float
    relative: float
    rounding: float = 0.0  # of the original's worst endpoint, against its float64; looked at where there is need

    @property
    def allowed(self) -> float:
        return max(TOLERANCE, ROUNDING * self.rounding)

    @property
    def same(self) -> bool:
        return self.relative <= self.allowed  # which what is not a number is not

    def __str__(self) -> str:
        return f"{self.endpoint:24} {list(self.shape)!s:22} {self.absolute:12.2e} {self.relative:12.2e}"


def verify(
    family: Family,
    model: Model,
    arrays: Mapping[str, np.ndarray],
    variables: Mapping,
    compiler_options: dict[str, Any] | None = None,
) -> list[Difference]:
    """The differences of every endpoint that both have, of one random example.

    `arrays` are the original's tensors under its own names, and must fill it to the last.
    """
    if not family.original:
        raise ConvertError(f"{family.name} has no original to compare with")
    original = importlib.import_module(family.original)
    import torch

    theirs = original.build(model).eval()
    theirs.load_state_dict({name: torch.from_numpy(np.array(x)) for name, x in arrays.items()}, strict=True)
    module = build(model)
    inputs = example(module)
    with torch.no_grad():
        expected = original.outputs(theirs, *inputs)
    with jax.default_matmul_precision("highest"):
        found = jax.jit(module.apply, compiler_options=compiler_options)(dict(variables), *inputs)
    made = [_difference(name, np.asarray(found[name]), expected[name]) for name in expected]
    if all(one.relative <= TOLERANCE for one in made):
        return made
    # Weights can be such that float32 does not tell more: then the original is no nearer to the truth than we are.
    with torch.no_grad():
        exact = original.outputs(theirs.double(), *jax.tree.map(_exact, inputs))
    rounding = max(_difference(name, expected[name], exact[name]).relative for name in expected)
    return [dataclasses.replace(one, rounding=rounding) for one in made]


def worst(found: list[Difference]) -> Difference:
    """That which is the furthest from what is allowed; what is not a number is further than any."""
    return max(found, key=lambda one: (not one.same, one.relative / one.allowed))


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


def _exact(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) if x.dtype.kind == "f" else x


def _difference(name: str, found: np.ndarray, expected: np.ndarray) -> Difference:
    if found.shape != expected.shape:
        raise ConvertError(f"endpoint {name}: ours is {list(found.shape)}, the original's {list(expected.shape)}")
    with np.errstate(invalid="ignore"):  # infinite on both sides
        absolute = float(np.abs(found - expected).max())
    largest = float(np.abs(expected).max())
    return Difference(name, found.shape, absolute, absolute / largest if largest else absolute)
