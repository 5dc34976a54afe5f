"""Examples at the size that is trained on: looked over before training, and kept in memory where they fit."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from kdjax.config import ConfigError
from kdjax.data.source import Facts, Source

CACHE_BYTES = 1 << 30
DECODED = 20_000  # files; of larger sets only the headers are looked at beforehand


class Examples:
    """A source whose images and masks come as squares of side `size`."""

    def __init__(self, source: Source, size: int, cache: bool = True):
        self.source, self.size = source, size
        self._cache = cache and len(source) * size * size * 4 <= CACHE_BYTES
        self._forget()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> tuple[UInt8[np.ndarray, "s s 3"], UInt8[np.ndarray, "s s"], int]:
        """Image, mask and class."""
        if not self._cache:
            return self._squared(self.source[i])
        if not self._ready[i]:
            self._keep(i, self.source[i])
        return self._images[i], self._masks[i], int(self._classes[i])

    def inspect(self) -> tuple[list[Facts], list[str]]:
        """The facts of every example and all faults, in order; what is decoded on the way is kept."""
        decode = sum(map(len, self.source.files)) <= DECODED

        def one(i: int) -> Facts | str:
            try:
                facts = self.source.inspect(i, decode)
            except ConfigError as error:
                return str(error)
            if self._cache and facts.example is not None:
                self._keep(i, facts.example)
            return facts._replace(example=None)

        if self.source.files:
            with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
                found = list(pool.map(one, range(len(self))))
        else:
            found = [one(i) for i in range(len(self))]
        return [f for f in found if not isinstance(f, str)], [f for f in found if isinstance(f, str)]

    def _keep(self, i: int, example: dict[str, Any]) -> None:
        self._images[i], self._masks[i], self._classes[i] = self._squared(example)
        self._ready[i] = True  # last: another thread may be looking

    def _squared(self, example: dict[str, Any]) -> tuple[UInt8[np.ndarray, "s s 3"], UInt8[np.ndarray, "s s"], int]:
        image = resize(example["image"], self.size, Image.Resampling.BILINEAR)
        mask = resize(example["mask"], self.size, Image.Resampling.NEAREST)
        return image, mask, example["class"]

    def _forget(self) -> None:
        n, s = (len(self.source), self.size) if self._cache else (0, 0)
        self._images, self._masks = np.empty((n, s, s, 3), np.uint8), np.empty((n, s, s), np.uint8)
        self._classes, self._ready = np.zeros(n, np.int32), np.zeros(n, bool)

    def __getstate__(self) -> dict[str, Any]:  # a worker process gets the source, not a copy of the memory
        return {"source": self.source, "size": self.size, "_cache": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()


def resize(array: UInt8[np.ndarray, "h w *c"], size: int, how: Image.Resampling) -> UInt8[np.ndarray, "s s *c"]:
    if array.shape[:2] == (size, size):
        return array
    return np.asarray(Image.fromarray(array).resize((size, size), how))
