"""What sets of generated images have in common: every image follows from the seed, its part and its place there."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kdjax.config import ConfigError, nearest


@dataclass(frozen=True)
class Generated:
    """Images that are made when they are asked for; train, val and the test sets lie one after the other.

    A part does not change when another grows, and a shorter part is the beginning of a longer one. `test` is the number
    of images in each test set.
    """

    size: int = 128
    train: int = 400
    val: int = 60
    test: int = 100
    seed: int = 0
    domain: str = ""

    domains: ClassVar[Iterable[str]] = ()
    test_sets: ClassVar[tuple[str, ...]] = ("test",)

    def __post_init__(self):
        if faults := self.option_faults():
            raise ConfigError("the images cannot be made:\n  " + "\n  ".join(faults))

    def option_faults(self) -> list[str]:
        """What is wrong with the options."""
        counts = {"train": self.train, "val": self.val, "test": self.test}
        faults = [f"{name}: expected at least 1, found {n}" for name, n in counts.items() if n < 1]
        if self.size < 32:
            faults.append(f"size: expected at least 32 pixels, found {self.size}")
        if self.domain not in self.domains:
            faults.append(f"domain: no {self.domain!r}; {nearest(self.domain, self.domains)}")
        return faults

    @property
    def parts(self) -> list[tuple[str, str, int]]:
        """(split, test set, number of images)."""
        return [
            ("train", "test", self.train),
            ("val", "test", self.val),
            *(("test", test_set, self.test) for test_set in self.test_sets),
        ]

    @property
    def allowed(self) -> list[tuple[str, ...]]:
        return [(split,) for split, _, n in self.parts for _ in range(n)]

    @property
    def files(self) -> tuple[tuple[str, ...], ...]:
        return ()

    faults = notes = files

    def __len__(self) -> int:
        return sum(n for *_, n in self.parts)

    def place(self, i: int) -> tuple[int, int]:
        """The part that an image belongs to, and its place there."""
        for part, (*_, n) in enumerate(self.parts):
            if 0 <= i < n:
                return part, i
            i -= n
        raise IndexError(f"no such example in {self}")

    def rng(self, i: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *self.place(i)])
