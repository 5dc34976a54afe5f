"""What is in a checkpoint, for people to read."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from convert.sources import Source
from convert.tensor import Tensor, plain

INDEX = re.compile(r"(?<![^._/])[0-9]{1,9}(?![^._/])")


def describe(source: Source) -> str:
    """What `inspect` prints: about the file, then its tensors, those that differ in an index alone on one line."""
    numbers = sum(math.prod(tensor.shape) for tensor in source.values())
    dtypes = Counter(_dtype(tensor) for tensor in source.values())
    about = {
        "file": source.path,
        "kind": f"{source.kind}, {source.size / 1e6:,.1f} MB",
        "tensors": f"{len(source):,}, {numbers:,} numbers ({', '.join(f'{n} {kind}' for kind, n in dtypes.items())})",
        "inside": " > ".join(source.wrappers),
        "also there": ", ".join(source.others),
        "prefix": source.prefix(),
        **{key: _short(value) for key, value in {**source.metadata, **source.extras}.items()},
    }
    about = {key: value for key, value in about.items() if value != ""}
    lines = [plain(f"{key:<{max(map(len, about))}}  {value}") for key, value in about.items()]
    rows = list(_collapsed(source))
    width = min(78, max(len(name) for name, _ in rows))
    return "\n".join([*lines, "", *(f"{name:<{width}}  {rest}" for name, rest in rows)])


def _collapsed(source: Source) -> Iterator[tuple[str, str]]:
    """(name with indices as {0..11}, dtype and shape), in the order of the file."""
    groups: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    for name, tensor in source.items():
        skeleton, indices = INDEX.sub("{}", name.replace("{", "{{").replace("}", "}}")), INDEX.findall(name)
        rest = f"{_dtype(tensor):<8} {list(tensor.shape)}" + (f"  unreadable: {tensor.fault}" if tensor.fault else "")
        groups.setdefault((skeleton, rest), []).append(tuple(indices))
    for (skeleton, rest), indices in groups.items():
        for ranges in _products(indices):
            yield plain(skeleton.format(*ranges)), rest


def _products(indices: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Tuples of indices as few products of ranges: [("0", "1"), ("0", "2"), ("1", "1"), ("1", "2")] -> {0,1} {1,2}."""
    if not indices[0]:
        return [()]
    after: dict[str, list[tuple[str, ...]]] = {}
    for first, *others in indices:
        after.setdefault(first, []).append(tuple(others))
    same: dict[tuple, list[str]] = {}
    for first, others in after.items():
        same.setdefault(tuple(sorted(others)), []).append(first)
    return [(_range(firsts), *rest) for others, firsts in same.items() for rest in _products(list(others))]


def _range(indices: list[str]) -> str:
    """["0", "1", "2", "5"] -> "{0..2,5}"."""
    runs: list[list[str]] = []
    for index in sorted(indices, key=int):
        if runs and int(index) == int(runs[-1][-1]) + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    parts = [f"{run[0]}..{run[-1]}" if len(run) > 2 else ",".join(run) for run in runs]
    return indices[0] if len(indices) == 1 else f"{{{','.join(parts)}}}"


def _dtype(tensor: Tensor) -> str:
    return "other" if tensor.dtype == object else tensor.dtype.name


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
