"""A file that has to stay as it is while parts of it are read."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np


class WeightsError(ValueError):
    """Weights that cannot be read, written or used: says what was expected, what was found, and what to do."""


@dataclass(frozen=True, slots=True)
class SteadyFile:
    """Read, not mapped: where a mapped file is cut off, the process dies."""

    path: Path
    size: int  # bytes
    stamp: tuple[int, ...]  # what differs once somebody writes to the file or puts another in its place

    @classmethod
    def at(cls, path: Path) -> "SteadyFile":
        found = os.stat(path)
        return cls(path, found.st_size, _stamp(found))

    def read(self, offset: int, size: int) -> np.ndarray:
        """So many bytes from there on, if the file is what it was when it was opened."""
        assert offset + size <= self.size
        try:
            with open(self.path, "rb") as file:
                file.seek(offset)
                found = np.fromfile(file, np.uint8, size)
                stamp = _stamp(os.fstat(file.fileno()))
        except OSError as error:
            raise WeightsError(f"{self.path}: cannot be read any more ({error}); start again once it can") from error
        if len(found) != size or stamp != self.stamp:
            raise WeightsError(
                f"{self.path}: changed while it was read; wait until nothing writes to it any more, and start again"
            )
        return found


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
