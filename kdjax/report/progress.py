"""The line on the terminal that says how a stage is getting on."""

import math
import sys
import time
from typing import SupportsFloat

from tqdm import tqdm


class Progress:
    """One bar that stays in place on a terminal; one line per epoch where the output goes to a file or a pipe.

    `wait` is the share of the time, in [0, 1], that the loop waited for data. What an update leaves out keeps its
    last value.
    """

    def __init__(
        self, title: str, total_steps: int, start: int = 0, *, epochs: int = 1, unit: str = "img", enabled: bool = True
    ):
        self.unit = unit
        self.title, self.total, self.epochs = title, total_steps, epochs
        self.enabled = enabled
        self._seen: dict[str, float] = {}
        self._rate: float | None = None
        self._wait: float | None = None
        self._step = self._start = start
        self._clock: float | None = None  # starts at the first update: compilation says nothing about the rest
        self._now = 0.0
        self._told = self._epoch(start)  # epochs whose line is printed
        self._bar = None
        if enabled and sys.stdout.isatty():
            self._bar = tqdm(
                desc=f"{title} compiling ",
                total=total_steps,
                initial=start,
                file=sys.stdout,
                dynamic_ncols=True,
                leave=True,
                bar_format="{desc}|{bar}|",  # the bar takes what the text leaves
            )

    def update(
        self,
        step: int,
        values: dict[str, SupportsFloat],
        per_second: SupportsFloat | None = None,
        wait: SupportsFloat | None = None,
    ) -> None:
        """`step` steps are done. The second update at the end of an epoch, its validation, prints its line."""
        if not self.enabled:
            return
        again = step == self._step and self._clock is not None
        if not again:
            self._print_epoch()  # of an epoch that brought no validation
        self._step, self._now = step, time.monotonic()
        if self._clock is None:
            self._clock, self._start = self._now, step
        self._seen |= {k: float(v) for k, v in values.items()}
        self._rate = self._rate if per_second is None else float(per_second)
        self._wait = self._wait if wait is None else float(wait)
        if self._bar is not None:
            self._bar.set_description_str(self._text(), refresh=False)
            self._bar.update(step - self._bar.n)
        elif again:
            self._print_epoch()

    def line(self, text: str) -> None:
        """Prints a line of its own, above the bar."""
        if not self.enabled:
            return
        if self._bar is not None:
            self._bar.write(text, file=sys.stdout)
        else:
            print(text, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()
        else:
            self._print_epoch()

    def _epoch(self, step: int) -> int:
        """Whole epochs in `step` steps."""
        return step * self.epochs // max(1, self.total)

    def _print_epoch(self) -> None:
        """One line for the epoch that has ended, once, where there is no bar."""
        if self.enabled and self._bar is None and self._epoch(self._step) > self._told:
            self._told = self._epoch(self._step)
            print(self._text(), flush=True)

    def _text(self) -> str:
        epoch, gap = ("epoch ", "  ") if self._bar is None else ("", " ")  # all of it fits into 80 columns
        current = min(self.epochs, math.ceil(self._step * self.epochs / max(1, self.total)))
        parts = [self.title, f"{epoch}{current}/{self.epochs}"]
        parts += [f"{_label(k)} {v:.3g}" for k, v in self._seen.items()]
        if self._rate is not None:
            parts.append(f"{self._rate:.{1 if self._rate < 10 else 0}f} {self.unit}/s")
        if self._wait is not None:
            parts.append(f"wait {100 * self._wait:.0f}%")
        return gap.join([*parts, self._left()])

    def _left(self) -> str:
        done = self._step - self._start
        if self._step >= self.total:
            return "done"
        if self._clock is None or done <= 0:
            return "left ?"
        return "left " + tqdm.format_interval((self._now - self._clock) / done * (self.total - self._step))


def _label(name: str) -> str:
    return {"dice": "Dice", "iou": "IoU"}.get(name, name)
