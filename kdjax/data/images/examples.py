"""Examples at the size that is trained on: looked over before training, and kept in memory where they fit."""

import hashlib
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.config import ConfigError
from kdjax.data.fields import LABELS, Field
from kdjax.data.images.resize import resize
from kdjax.data.source import Facts, Source

CACHE_BYTES = 1 << 30
DECODED = 20_000  # files; of larger sets only the headers are looked at beforehand


class Examples:
    """A source whose images and masks come as squares of side `size`; the arrays that `fields` declare, and no more.

    The field "mask" holds ids below `num_classes`.
    """

    def __init__(self, source: Source, size: int, cache: bool = True, num_classes: int = 256):
        self.source, self.size, self.num_classes = source, size, num_classes
        self.fields = {name: squared(field, size) for name, field in source.fields.items()}
        self.brightest = 255  # of all pixels of all images, once they are looked over
        each = sum(math.prod(f.shape) * _stored(f).itemsize for f in self.fields.values())
        self._cache = cache and len(source) * each <= CACHE_BYTES
        self.digests: dict[int, bytes] = {}  # of what was looked over
        self._forget()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> dict[str, np.ndarray | np.generic]:
        """The fields of an example; a label that it lacks is left out."""
        if not self._cache:
            return self._arrays(i, self.source[i])
        if not self._ready[i]:
            self._keep(i, self.source[i])
        return {name: array[i, ...] for name, array in self._memory.items() if self._present[name][i]}

    def inspect(self) -> tuple[list[Facts], list[str]]:
        """The facts of every example and all faults, in order; keeps what it decodes on the way."""
        decode = max(len(self), sum(map(len, self.source.files))) <= DECODED
        pictures = [name for name, field in self.fields.items() if field.kind == "image"]
        brightest: list[int] = []

        def look(i: int) -> Facts | str:
            try:
                facts = self.source.inspect(i, decode)
                if facts.example is not None:
                    self.digests[i] = digest(self._keep(i, facts.example))
                    brightest.extend(int(np.max(facts.example[name], initial=0)) for name in pictures)
                else:  # the image is not decoded, and its masks are known by their bytes as well
                    masks = self.source.files[i][1:] if self.source.files else ()
                    labels = b"".join(Path(file).read_bytes() for file in masks)
                    self.digests[i] = digest({"image": facts.content, "mask": labels, "class": facts.label})
            except ConfigError as error:
                return str(error)
            return facts._replace(example=None)

        if self.source.files:
            with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
                results = list(pool.map(look, range(len(self))))
        else:
            results = [look(i) for i in range(len(self))]
        self.brightest = max(brightest, default=255)
        return [r for r in results if not isinstance(r, str)], [r for r in results if isinstance(r, str)]

    def _keep(self, i: int, example: dict[str, Any]) -> dict[str, np.ndarray | np.generic]:
        arrays = self._arrays(i, example)
        if self._cache:
            for name, array in arrays.items():
                self._memory[name][i], self._present[name][i] = array, True
            self._ready[i] = True  # last: another thread may be looking
        return arrays

    def _arrays(self, i: int, example: Mapping[str, Any]) -> dict[str, np.ndarray | np.generic]:
        """The fields of an example as they are stored; refuses a field that differs from its declaration."""
        arrays = {}
        for name, field in self.fields.items():
            if (value := example.get(name)) is None:
                if field.kind not in LABELS:
                    raise ConfigError(self._fault(i, example, name, "nothing", "only labels may be missing"))
                continue
            array = np.asarray(value)
            if field.kind == "mask" and array.size:
                array = self._ids(i, example, name, array)
            layout = {"image": (3, 3), "mask": (2, 2)}.get(field.kind)
            if layout and (array.dtype != np.uint8 or array.ndim != layout[0] or array.shape[2:] != field.shape[2:]):
                remedy = "convert it to 8 bits and three channels" if layout[0] == 3 else "store class ids as uint8"
                raise ConfigError(self._fault(i, example, name, f"{array.dtype} {list(array.shape)}", remedy))
            if layout:
                array = resize(array, (self.size, self.size), nearest=field.kind == "mask")
            elif array.shape != field.shape:
                raise ConfigError(self._fault(i, example, name, str(list(array.shape)), "pad or cut it"))
            arrays[name] = array.astype(_stored(field), copy=False)
        return arrays

    def _ids(self, i: int, example: Mapping[str, Any], name: str, array: np.ndarray) -> np.ndarray:
        """A mask of whole numbers as uint8."""
        least, most = array.min(), array.max()
        if name == "mask" and not (least >= 0 and most < self.num_classes):
            found = f"{least if least < 0 else most}"
            raise ConfigError(
                f"example {example.get('name', i)!r}: expected class ids 0 to {self.num_classes - 1} in 'mask', found "
                f"{found}; renumber them, or set num_classes"
            )
        return array.astype(np.uint8) if array.dtype.kind in "iub" and least >= 0 and most < 256 else array

    def _fault(self, i: int, example: Mapping[str, Any], name: str, seen: str, remedy: str) -> str:
        field = self.source.fields[name]
        shape = {"image": "uint8 [h, w, 3]", "mask": "uint8 [h, w]"}.get(field.kind, f"{field.dtype} {[*field.shape]}")
        return f"example {example.get('name', i)!r}: expected {name!r} as {shape}, found {seen}; {remedy}"

    def _forget(self) -> None:
        n = len(self.source) if self._cache else 0
        self._memory = {name: np.empty((n, *f.shape), _stored(f)) for name, f in self.fields.items()}
        self._present = {name: np.zeros(n, bool) for name in self.fields}
        self._ready = np.zeros(n, bool)

    def __getstate__(self) -> dict[str, Any]:  # a worker process gets the source, not a copy of the memory
        kept = {"source": self.source, "size": self.size, "num_classes": self.num_classes, "fields": self.fields}
        return {**kept, "_cache": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()


def digest(values: Mapping[str, Any]) -> bytes:
    """Of arrays, texts and bytes by name."""
    whole = hashlib.blake2b(digest_size=16)
    for name, value in sorted(values.items()):
        array = np.asarray(value, order="C")
        whole.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
    return whole.digest()


def squared(field: Field, size: int) -> Field:
    if field.kind not in ("image", "mask"):
        return field
    return Field((size, size, *field.shape[2:]), field.dtype, field.kind, field.padding)


def _stored(field: Field) -> np.dtype:
    """A mask takes four times less memory than in a batch."""
    return np.dtype("uint8" if field.kind == "mask" else field.dtype)
