"""How fast a stage trains, and how long it waits for data."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Time of the steps after the first, which compiles: images per second, and the share spent waiting for data."""

    def __init__(self, batch_size: int, seconds: float):
        self.batch_size, self.before, self.began = batch_size, seconds, time.monotonic()
        self.first: float | None = None
        self.steps, self.waited = 0, 0.0

    @contextmanager
    def wait(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.waited += time.monotonic() - began if self.first is not None else 0.0

    def count(self) -> None:
        """A step is done."""
        if self.first is None:
            self.first = time.monotonic()
        else:
            self.steps += 1

    @property
    def seconds(self) -> float:
        """Since the run began, over all its restarts."""
        return self.before + time.monotonic() - self.began

    @property
    def rate(self) -> float:
        return self.steps * self.batch_size / self._elapsed

    @property
    def waiting(self) -> float:
        return min(1.0, self.waited / self._elapsed)

    @property
    def _elapsed(self) -> float:
        return max(time.monotonic() - self.first, 1e-9) if self.first is not None else 1e-9
