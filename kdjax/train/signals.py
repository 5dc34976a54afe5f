"""Ending a run from outside, with everything saved."""

import os
import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils


class Stopped(Exception):
    """A signal asked for an end; everything is saved."""

    def __init__(self, signal: int):
        super().__init__(signal)
        self.signal = signal


class Signals:
    """While entered, remembers that SIGTERM or Ctrl-C came, so that the step in flight ends and its state is saved."""

    def __init__(self):
        self.asked = 0  # the signal's number
        self._before: dict = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            alone = jax.process_count() == 1
            asked = {signal.SIGTERM: self._ask, signal.SIGINT: self._ask} if alone else {signal.SIGINT: self._pass_on}
            self._before = {name: signal.signal(name, handler) for name, handler in asked.items()}
        return self

    def __exit__(self, *_: Any) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked and number == signal.SIGINT:  # a second Ctrl-C is meant
            raise KeyboardInterrupt
        self.asked = number

    def _pass_on(self, number: int, frame: Any) -> None:
        """Of several processes none stops alone: Ctrl-C to one is what all of them hear of."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = number
        os.kill(os.getpid(), signal.SIGTERM)

    def stop(self, step: int) -> int:
        """The signal that asks for a stop after this step, 0 where none does; over several hosts JAX's own watch on
        SIGTERM makes all agree on one step."""
        if jax.process_count() == 1:
            return self.asked
        return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else 0
