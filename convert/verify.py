"""Both sides on the same input: the PyTorch original with its tensors, and our model with the converted weights.

Float64 decides whether they are the same function, for a wrong epsilon stands out from its rounding whatever the
weights. Float32 is what people run; how far it may differ, the original's own answer to nudged numbers says.
"""

import importlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import numpy as np

from convert.config_json import Config
from convert.example import example
from convert.family import Converted, ConvertError, Family, build
from convert.sources import plain
from kdjax.config import Model

TOLERANCE = 1e-5  # in float32, relative to the largest value of an endpoint
EXACT = 1e-12  # the same in float64
LOSS = 1e-7  # what float64 may lose of what float32 loses; its rounding is 2e-9 times as large
NUDGES = 4
MARGIN = 10  # so many times as far apart as the original is from itself, nudged or in float64: it has a heavy tail


@dataclass(frozen=True)
class Difference:
    """Between two computations of an endpoint, relative to its largest value."""

    endpoint: str
    shape: tuple[int, ...]
    absolute: float  # in float32
    relative: float
    exact: float  # relative, in float64
    rounding: float  # of the original: its float32 from its float64
    spread: float = 0.0  # of the original's float32, nudged; looked at where there is need
    no_numbers: int = 0  # values that are infinite or no numbers, on both sides alike

    @property
    def allowed(self) -> float:
        return max(TOLERANCE, MARGIN * max(self.spread, self.rounding))

    @property
    def allowed_exact(self) -> float:
        return max(EXACT, LOSS * min(1.0, self.rounding))

    @property
    def excess(self) -> float:
        """How many times what is allowed; what is not a number on one side alone is beyond any."""
        excess = max(self.relative / self.allowed, self.exact / self.allowed_exact)
        return excess if np.isfinite([self.relative, self.exact]).all() else np.inf

    @property
    def same(self) -> bool:
        return self.excess <= 1

    @property
    def fault(self) -> str:
        """Why they are not the same."""
        kind, found, allowed = "float64", self.exact, self.allowed_exact
        if not self.relative <= self.allowed:
            kind, found, allowed = "float32", self.relative, self.allowed
        return f"{self.endpoint} differs by {found:.1e} in {kind}, allowed is {allowed:.0e}"

    def __str__(self) -> str:
        numbers = f"{self.absolute:12.2e} {self.relative:12.2e} {self.exact:12.2e}"
        return f"{self.endpoint:24} {list(self.shape)!s:22} {numbers}"


HEADINGS = f"{'endpoint':24} {'shape':22} {'max abs':>12} {'relative':>12} {'in float64':>12}"


def verify(
    family: Family,
    model: Model,
    arrays: Mapping[str, np.ndarray],
    variables: Mapping,
    compiler_options: Mapping[str, Any] = {},
    config: Config | None = None,
) -> list[Difference]:
    """The differences of every endpoint that both have, of one random example.

    `arrays` are the original's tensors under its own names, and must fill it to the last. `config` is the source's own,
    which the original is then built from.
    """
    if not family.original:
        raise ConvertError(f"{family.name} has no original to compare with")
    theirs, inputs = Original(family, model, arrays, config), example(build(model))
    expected = theirs(inputs)
    found = _ours(model, variables, inputs, compiler_options)
    made = {name: _compared(name, found[name], x) for name, x in expected.items()}
    spread = 0.0
    if any(not relative <= TOLERANCE for _, relative, _ in made.values()):
        runs = [theirs.nudged(inputs, seed) for seed in range(NUDGES)]
        apart = [_compared(name, run[name], x)[1] for run in runs for name, x in expected.items()]
        spread = max(filter(np.isfinite, apart), default=0.0)
    theirs.to_float64()
    exact = theirs(jax.tree.map(_wide, inputs))
    with jax.enable_x64(True):
        wide = Model(model.name, **{**model.options, "dtype": "float64"})
        found = _ours(wide, jax.tree.map(_wide, dict(variables)), jax.tree.map(_wide, inputs), compiler_options)
    return [
        Difference(
            name,
            expected[name].shape,
            absolute,
            relative,
            exact=_compared(name, found[name], exact[name])[1],
            rounding=max(filter(np.isfinite, [_compared(name, expected[name], exact[name])[1]]), default=0.0),
            spread=spread,
            no_numbers=no_numbers,
        )
        for name, (absolute, relative, no_numbers) in made.items()
    ]


def remarks(found: list[Difference], config: Config | None, assumed: str) -> Iterator[str]:
    """What was proved, and what was not."""
    if spread := found[0].spread:
        yield f"float32 tells no more: numbers nudged in their last bit move the original's own answers by {spread:.1e}"
    for one in found:
        if one.no_numbers:
            share = f"{one.no_numbers:,} of {math.prod(one.shape):,}"
            yield f"WARNING, {one.endpoint}: {share} values are infinite or no numbers on both sides: they tell nothing"
    if config:
        yield f"the original is built as {config.path} describes it"
    elif assumed:
        yield f"both sides assume {plain(assumed)}: the tensors do not tell it, and this comparison does not prove it"
    exact = max(one.exact for one in found)
    yield f"the same: within {max(one.relative for one in found):.0e} in float32, {exact:.0e} in float64"


def worst(found: list[Difference]) -> Difference:
    """That which is the furthest beyond what is allowed."""
    return max(found, key=lambda one: one.excess)


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


class Original:
    """The PyTorch module with these tensors, in float32 until `to_float64`."""

    def __init__(self, family: Family, model: Model, arrays: Mapping[str, np.ndarray], config: Config | None):
        self.maker: Any = importlib.import_module(family.original)
        self.module = self.maker.build(model, config) if config else self.maker.build(model)
        self.arrays = {name: x if _is_whole(x) else np.asarray(x, np.float32) for name, x in arrays.items()}
        try:
            self.load(self.arrays)
        except RuntimeError as error:
            as_told = f" as {config.path} describes it" if config else ""
            reason = "\n".join(str(error).splitlines()[:6])
            raise ConvertError(f"the original{as_told} does not take these tensors: {reason}") from error

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        import torch

        self.module.load_state_dict({name: torch.from_numpy(np.array(x)) for name, x in arrays.items()}, strict=True)

    def to_float64(self) -> None:
        self.module.double()

    def __call__(self, inputs: tuple) -> dict[str, np.ndarray]:
        import torch

        with torch.no_grad():
            return self.maker.outputs(self.module, *inputs)

    def nudged(self, inputs: tuple, seed: int) -> dict[str, np.ndarray]:
        """Of tensors and inputs that differ from these by up to half a unit in their last place."""
        draw = np.random.default_rng(seed)
        self.load({name: _nudged(x, draw) for name, x in self.arrays.items()})
        outputs = self(jax.tree.map(lambda x: _nudged(x, draw), inputs))
        self.load(self.arrays)
        return outputs


def _ours(model: Model, variables: Mapping, inputs: tuple, options: Mapping[str, Any]) -> dict[str, np.ndarray]:
    with jax.default_matmul_precision("highest"):
        outputs = _program(build(model), tuple(options.items()))(dict(variables), *inputs)
    return {name: np.asarray(x) for name, x in outputs.items()}


@cache
def _program(module: Any, options: tuple) -> Any:
    return jax.jit(module.apply, compiler_options=dict(options))


def _is_whole(x: np.ndarray) -> bool:
    return x.dtype.kind in "iub"  # bfloat16 is of kind "V"


def _wide(x: np.ndarray) -> np.ndarray:
    return x if _is_whole(x) else np.asarray(x, np.float64)


def _nudged(x: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    return x if _is_whole(x) else (x * (1 + draw.uniform(-1, 1, x.shape) * 2.0**-24)).astype(np.float32)


def _compared(name: str, found: np.ndarray, expected: np.ndarray) -> tuple[float, float, int]:
    """(largest difference, that relative to the largest value, how many are infinite or no numbers on both sides)"""
    if found.shape != expected.shape:
        raise ConvertError(f"endpoint {name}: ours is {list(found.shape)}, the original's {list(expected.shape)}")
    strange = ~np.isfinite(expected) & ((found == expected) | (np.isnan(found) & np.isnan(expected)))
    numbers = ~strange
    with np.errstate(invalid="ignore"):  # infinite on one side alone
        absolute = float(np.abs(found[numbers] - expected[numbers]).max(initial=0.0))
    largest = float(np.abs(expected[numbers]).max(initial=0.0))
    return absolute, absolute / largest if largest else absolute, int(strange.sum())
