"""A tensor of a foreign checkpoint, read when it is asked for, and how names of foreign origin are told."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np


class SourceError(ValueError):
    """A checkpoint that cannot be read: one line that says what was expected, what was found, and what to do."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """An array of a checkpoint. `fault` says why it cannot be read (sparse, quantised, complex ...), "" if it can."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    get: Callable[[], np.ndarray] = field(repr=False)
    fault: str = ""

    def read(self) -> np.ndarray:
        """Read-only, and read anew each time; no copy is kept."""
        if self.fault:
            raise SourceError(f"{self.name}: expected a dense tensor of real numbers, found {self.fault}")
        array = self.get()
        array.flags.writeable = False
        return array


def dtype_of(kind: str) -> np.dtype:
    """Of "float32" or "bfloat16"; of what NumPy does not have, that of objects."""
    try:
        return np.dtype(getattr(ml_dtypes, kind, kind))
    except TypeError:
        return np.dtype(object)


def fault_of(dtype: np.dtype, shape: Sequence[int], kind: str = "") -> str:
    """Why there can be no array of these, as `Tensor.fault`; `kind` is the dtype's name in the file."""
    if not re.fullmatch(r"bool|bfloat16|(u?int|float)(8|16|32|64)", dtype.name):
        return f"one of {kind or dtype.name}"
    return "" if math.prod(n or 1 for n in shape) < 1 << 48 and len(shape) <= 32 else f"one of shape {list(shape)}"


def few(names: list[str], most: int = 6) -> str:
    return ", ".join(map(plain, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def line(error: Any) -> str:
    return plain(" ".join(str(error).split()))[:200] or "no reason given"


def plain(text: str) -> str:
    """What a terminal prints and does not obey; the names in a file may be anything."""
    return text if text.isprintable() else ascii(text)[1:-1]
