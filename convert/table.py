"""How the tensors of a PyTorch checkpoint and the leaves of a kdjax model correspond: rows that read both ways.

A row is a pair of templates, "blocks.{i}.attn.qkv.weight" and "params/blocks_{i}/attn/qkv/kernel", and what lies
between the two. Nothing else decides where a tensor goes, so a table that fills a model also empties it.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class How:
    """What lies between a leaf and the tensors it is made of; `apart` undoes `together`, bit for bit."""

    name: str
    together: Callable[..., np.ndarray]  # (tensor, ...) -> leaf
    apart: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    rank: int = 0  # axes of each tensor; 0: the row says it


def _one(
    name: str, there: Callable[[np.ndarray], np.ndarray], back: Callable[[np.ndarray], np.ndarray], rank: int = 0
) -> How:
    return How(name, there, lambda leaf: (back(leaf),), rank)


SAME = _one("same", lambda x: x, lambda x: x)
LINEAR = _one("linear", np.transpose, np.transpose, 2)  # [out, in] and [in, out]
CONV = _one("conv", lambda x: np.moveaxis(x, (0, 1), (-1, -2)), lambda x: np.moveaxis(x, (-1, -2), (0, 1)), 4)
# A 1 × 1 convolution that is a linear layer here: [out, in, 1, 1] and [in, out].
CONV_1X1 = _one("conv_1x1", lambda x: x[:, :, 0, 0].T, lambda leaf: leaf.T[:, :, None, None], 4)
# Of a transposed convolution: [in, out, h, w] and [h, w, in, out].
CONV_UP = _one("conv_up", lambda x: np.moveaxis(x, (0, 1), (-2, -1)), lambda x: np.moveaxis(x, (-2, -1), (0, 1)), 4)
# Three projections, or their biases, and the fused one.
FUSED = How("fused", lambda *x: np.concatenate(x).T, lambda x: tuple(np.split(x.T, 3)), 2)
FUSED_BIAS = How("fused_bias", lambda *x: np.concatenate(x), lambda x: tuple(np.split(x, 3)), 1)

Resize = Callable[[np.ndarray, tuple[int, ...]], np.ndarray]


@dataclass(frozen=True)
class Row:
    sources: tuple[str, ...]
    target: str
    how: How = SAME
    resize: Resize | None = None  # (tensor, shape wanted) -> tensor, for another image size
    # What the original stores beside it and no model needs: dropped on the way in, made anew on the way out.
    beside: Mapping[str, Callable[[Any], np.ndarray]] = field(default_factory=dict)  # name -> of the kdjax model
    tied: tuple[str, ...] = ()  # other names under which the original has the first source too; a file may lack them
    rank: int = 0  # axes of each source, where `how` does not say it


def path(source: str) -> str:
    """Where our models have the module of that name: "neck.0.attn" is "neck_0/attn"."""
    return re.sub(r"\.(?=\d+(\.|$)|\{)", "_", source).replace(".", "/")


def same(
    *sources: str,
    rank: int,
    target: str = "",
    collection: str = "params",
    resize: Resize | None = None,
    tied: tuple[str, ...] = (),
) -> tuple[Row, ...]:
    """Bare parameters or buffers of so many axes. Here and below, `target` says where one source is, if not at the
    same path."""
    at = lambda name: f"{collection}/{target or path(name)}"  # noqa: E731
    return tuple(Row((name,), at(name), resize=resize, tied=tied, rank=rank) for name in sources)


def linear(*sources: str, target: str = "") -> tuple[Row, ...]:
    return _layers(sources, target, "kernel", LINEAR)


def conv(*sources: str, target: str = "") -> tuple[Row, ...]:
    return _layers(sources, target, "kernel", CONV)


def conv_1x1(*sources: str, target: str = "") -> tuple[Row, ...]:
    return _layers(sources, target, "kernel", CONV_1X1)


def conv_up(*sources: str, target: str = "") -> tuple[Row, ...]:
    return _layers(sources, target, "kernel", CONV_UP)


def norm(*sources: str, target: str = "") -> tuple[Row, ...]:
    return _layers(sources, target, "scale", SAME)


def embed(*sources: str, target: str = "") -> tuple[Row, ...]:
    return tuple(Row((f"{name}.weight",), f"params/{target or path(name)}/embedding", rank=2) for name in sources)


def batch_norm(*sources: str, target: str = "") -> tuple[Row, ...]:
    def statistics(source: str) -> tuple[Row, ...]:
        at = f"batch_stats/{target or path(source)}"
        counted = {f"{source}.num_batches_tracked": lambda model: np.zeros((), np.int64)}
        mean = Row((f"{source}.running_mean",), f"{at}/mean", beside=counted, rank=1)
        return mean, Row((f"{source}.running_var",), f"{at}/var", rank=1)

    return (*norm(*sources, target=target), *(row for source in sources for row in statistics(source)))


def fused(q: str, k: str, v: str, target: str) -> tuple[Row, ...]:
    """Three linear layers that are one of ours, side by side."""
    return (
        Row((f"{q}.weight", f"{k}.weight", f"{v}.weight"), f"params/{target}/kernel", FUSED),
        Row((f"{q}.bias", f"{k}.bias", f"{v}.bias"), f"params/{target}/bias", FUSED_BIAS),
    )


def _layers(sources: tuple[str, ...], target: str, weight: str, how: How) -> tuple[Row, ...]:
    def layer(source: str) -> tuple[Row, ...]:
        at = f"params/{target or path(source)}"
        bias = Row((f"{source}.bias",), f"{at}/bias", rank=1)
        return Row((f"{source}.weight",), f"{at}/{weight}", how, rank=how.rank or 1), bias

    return tuple(row for source in sources for row in layer(source))


# -- a table against a model -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A row with numbers in the place of its braces."""

    row: Row
    names: tuple[str, ...]
    beside: dict[str, Callable[[Any], np.ndarray]]
    tied: tuple[str, ...]


@dataclass(frozen=True)
class Slot:
    """A leaf of the model, and the tensors that it is made of."""

    target: str
    leaf: Any  # its shape and dtype
    parts: tuple[Part, ...]  # several where stacked, none where no row speaks of the leaf
    stacked: bool

    @property
    def tensors(self) -> tuple[str, ...]:
        return tuple(name for part in self.parts for name in part.names)

    @property
    def beside(self) -> dict[str, Callable[[Any], np.ndarray]]:
        return {name: make for part in self.parts for name, make in part.beside.items()}

    @property
    def tied(self) -> dict[str, str]:
        """Name of a copy -> of which of the tensors."""
        return {copy: part.names[0] for part in self.parts for copy in part.tied}

    def further(self, tensors: Mapping[str, np.ndarray], model: Any) -> dict[str, np.ndarray]:
        """What the original stores beside these tensors."""
        made = {name: make(model) for name, make in self.beside.items()}
        return made | {copy: tensors[name] for copy, name in self.tied.items()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """What the tensors must be for this leaf."""
        shape = self.leaf.shape[1:] if self.stacked else self.leaf.shape
        nothing = np.broadcast_to(np.zeros((), np.bool), shape)
        return {
            name: tensor.shape
            for one in self.parts
            for name, tensor in zip(one.names, one.row.how.apart(nothing), strict=True)
        }

    def together(self, read: Callable[[str], np.ndarray]) -> np.ndarray:
        """The leaf, of the tensors."""
        shapes = self.shapes

        def fitted(row: Row, name: str) -> np.ndarray:
            tensor = read(name)
            return row.resize(tensor, shapes[name]) if row.resize and tensor.shape != shapes[name] else tensor

        leaves = [part.row.how.together(*(fitted(part.row, name) for name in part.names)) for part in self.parts]
        return np.asarray(np.stack(leaves) if self.stacked else leaves[0], self.leaf.dtype)

    def apart(self, leaf: np.ndarray) -> dict[str, np.ndarray]:
        """The tensors, of the leaf."""
        leaves = leaf if self.stacked else leaf[None]
        return {
            name: tensor
            for part, one in zip(self.parts, leaves, strict=True)
            for name, tensor in zip(part.names, part.row.how.apart(one), strict=True)
        }


def slots(rows: tuple[Row, ...], leaves: Mapping[str, Any], stacks: tuple[tuple[str, str], ...] = ()) -> list[Slot]:
    """A slot for every leaf; a leaf that no row speaks of has no parts.

    `stacks` are pairs ("params/blocks/{rest}", "params/blocks_{i}/{rest}"): a leaf of the first name holds those of the
    second along its first axis. With a {j} in the first, i = n * period + j.
    """
    compiled = [(re.compile(pattern(row.target)), row) for row in rows]

    def found(name: str) -> list[Part]:
        for pattern, row in compiled:
            if match := pattern.fullmatch(name):
                given = match.groupdict()
                names = tuple(source.format(**given) for source in row.sources)
                beside = {name.format(**given): make for name, make in row.beside.items()}
                return [Part(row, names, beside, tuple(name.format(**given) for name in row.tied))]
        return []

    made = []
    for target, leaf in sorted(leaves.items()):
        singles = _unstacked(target, leaf.shape, leaves, stacks)
        parts = [part for name in singles or [target] for part in found(name)]
        made.append(Slot(target, leaf, tuple(parts), bool(singles)))
    return made


def _unstacked(target: str, shape: tuple[int, ...], leaves: Mapping, stacks: tuple[tuple[str, str], ...]) -> list[str]:
    """The names of the leaves that are stacked in this one, in order."""
    for stacked, single in stacks:
        if match := re.fullmatch(pattern(stacked), target):
            given = match.groupdict()
            others = [m["j"] for name in leaves if "{j}" in stacked and (m := re.fullmatch(pattern(stacked), name))]
            period = 1 + max(map(int, others), default=0)
            first = int(given.get("j", 0))
            return [single.format(i=n * period + first, rest=given["rest"]) for n in range(shape[0])]
    return []


def pattern(template: str) -> str:
    """A template as a regular expression with named groups: {rest} is anything, any other name a number."""
    parts = re.split(r"\{(\w+)\}", template)
    groups = [f"(?P<{name}>{'.+' if name == 'rest' else '[0-9]+'})" for name in parts[1::2]]
    return "".join(a + b for a, b in zip(map(re.escape, parts[::2]), [*groups, ""], strict=True))


def ranks(rows: tuple[Row, ...]) -> Iterator[tuple[re.Pattern, int]]:
    """(pattern of names, how many axes these tensors have)"""
    for row in rows:
        for name in (*row.sources, *row.tied):
            yield re.compile(re.sub(r"\?P<\w+>", "", pattern(name))), row.rank or row.how.rank


def known(rows: tuple[Row, ...]) -> re.Pattern:
    """Every name of a tensor that the rows speak of."""
    names = {name for row in rows for name in (*row.sources, *row.beside, *row.tied)}
    return re.compile("|".join(re.sub(r"\?P<\w+>", "", pattern(name)) for name in sorted(names)) or r"(?!)")
