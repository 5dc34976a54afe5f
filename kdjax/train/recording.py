"""What is known of a stage while it trains: the record that a checkpoint holds, and the measures that are written."""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from kdjax.config import ConfigError, Log, Stop
from kdjax.report.progress import Progress
from kdjax.report.trackers import METRICS, Trackers
from kdjax.tasks.task import Arrays
from kdjax.train import checkpoint, kept
from kdjax.train.clock import Clock
from kdjax.train.setup import Learner

MOVES = 1e-3  # a measure that changes by a smaller part over all epochs of a stage has not moved


class Diverged(RuntimeError):
    """A number became infinite or NaN."""


@dataclass
class Record:
    """How far a stage is. It is saved with each checkpoint."""

    outside: dict[str, Any]  # what the run began with that is not in its config
    epochs: int = 0
    best: float | None = None  # of the task's primary measure on validation data
    lowest: float | None = None
    best_epoch: int = 0
    best_file: str = ""
    best_checksum: str = ""
    seconds: float = 0.0
    ratio: float = 0.0  # under a curriculum: examples of class 0 to each of class 1
    measures: dict[str, float] = field(default_factory=dict)  # of the last validation
    written: dict[str, Any] = field(default_factory=dict)  # to metrics.jsonl: so many bytes, and their checksum

    @classmethod
    def resumed(cls, checkpoints: Path, step: int) -> "Record":
        saved, known = checkpoint.progress(checkpoints, step), {f.name for f in dataclasses.fields(cls)}
        return cls(**{k: v for k, v in saved.items() if k in known})

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def refuse_other_start(self, folder: Path, outside: dict[str, Any]) -> None:
        changed = [what for what, now in outside.items() if now != self.outside.get(what, now)]
        if changed:
            raise ConfigError(
                f"{folder}: this run began with other {' and '.join(changed)} than it is given now; "
                "give it the same ones, or start anew with another --workdir"
            )

    def fault(self, folder: Path) -> str:
        """What keeps a stage from being gone on with from here, besides the state."""
        best = folder / Path(self.best_file).name
        return kept.fault(best, self.best_checksum) if self.best_checksum else ""

    def metrics_fault(self, folder: Path) -> str:
        """What of the measures so far is not what was written."""
        path, noted = folder / METRICS, self.written
        if not noted or written(path, noted["bytes"]) == noted:
            return ""
        return (
            f"{path}: expected the measures of {self.epochs} epochs, found other ones or none; their curve is damaged, "
            "the model is not, and goes on"
        )

    def improves(self, value: float, stop: Stop | None) -> bool:
        return self.best is None or value > self.best + (stop.min_delta if stop else 0.0)

    def unmoved(self) -> bool:
        """Whether no epoch of several brought anything, and there was something to learn."""
        if self.best is None or self.lowest is None or self.epochs < 3:
            return False
        return self.best - self.lowest <= MOVES * abs(self.best) and self.best < 1 - MOVES

    def is_over(self, epochs: int, stop: Stop | None) -> bool:
        """Whether all epochs are done, or the last `patience` of them brought nothing."""
        return self.epochs >= epochs or (stop is not None and self.epochs - self.best_epoch >= stop.patience)


def written(path: Path, most: int | None = None) -> dict[str, Any]:
    """How a file that only grows begins: its first bytes, all of them or so many."""
    content = path.read_bytes()[:most] if path.is_file() else b""
    return {"bytes": len(content), "checksum": kept.of_bytes(content)}


class Recorder:
    """Writes the measures of a stage: those of a step are fetched while the next one runs."""

    def __init__(self, learner: Learner, folder: Path, log: Log, record: Record, steps_done: int, ranked: bool):
        stage, primary = learner.stage, jax.process_index() == 0
        self.learner, self.log, self.record, self.ranked = learner, log, record, ranked
        self.checkpoints = folder / "checkpoints"
        self.clock = Clock(stage.data.batch_size, record.seconds)
        self._pending: list[tuple[int, dict]] = []
        self._trackers = Trackers(folder, log, name=learner.name, steps_done=steps_done, primary=primary)
        item = learner.dataset.item
        self._bar = Progress(
            stage.title or learner.name,
            learner.steps_per_epoch * stage.epochs,
            steps_done,
            epochs=stage.epochs,
            unit={"image": "img"}.get(item, item),
            enabled=primary,
        )

    def step(self, step: int, measures: dict) -> None:
        """The measures of a step, which may still be running."""
        self.flush()
        self.clock.count()
        self._pending.append((step, measures))

    def flush(self) -> None:
        for step, measures in self._pending:
            values = averages(measures)
            refuse_non_finite(values, step, self.checkpoints)
            self._bar.update(step, {"loss": values["loss"]}, self.clock.rate, self.clock.waiting)
            values |= {"ratio": self.record.ratio} if self.ranked else {}
            if step % self.log.every == 0 or step % self.learner.steps_per_epoch in (0, 1):
                timing = {f"{self.learner.dataset.item}s_per_s": self.clock.rate, "wait": self.clock.waiting}
                self._trackers.write(step, "train", values, timing)
        self._pending.clear()

    def validation(self, step: int, measures: dict[str, float], predictions: Arrays) -> None:
        primary = self.learner.task.primary
        self._trackers.write(step, "val", measures)
        if self._trackers.shows_images:
            self._trackers.show(step, "val", self.learner.task.sketches(predictions, self.learner.dataset, "val"))
        self._bar.update(step, {primary: measures[primary]}, self.clock.rate, self.clock.waiting)

    def line(self, text: str) -> None:
        self._bar.line(text)

    def close(self) -> None:
        self._bar.close()
        self._trackers.close()


def averages(measures: dict) -> dict[str, float]:
    """Totals over counts, on the host."""
    return {k: float(total) / max(float(seen), 1.0) for k, (total, seen) in jax.device_get(measures).items()}


def refuse_non_finite(values: dict[str, float], step: int, checkpoints: Path) -> None:
    broken = [k for k, v in values.items() if not math.isfinite(v)]
    if broken:
        # A term that is not finite makes all sums so: it alone is named, where there is one.
        terms = [f"term {k.removeprefix('terms/')!r}" for k in broken if k.startswith("terms/")]
        parts = [f"the gradient of term {k.removeprefix('grad_norm/')!r}" for k in broken if k.startswith("grad_norm/")]
        what = terms or parts or ["the gradient" if k == "grad_norm" else f"the {k}" for k in broken]
        saved = f"the last good checkpoint is kept in {checkpoints}"
        raise Diverged(
            f"step {step}: {', '.join(what)} is not finite any more; "
            f"{saved if checkpoint.latest(checkpoints) is not None else 'nothing was saved before'}. "
            "Try a lower learning rate, optim.clip=1.0, or dtype=float32, with another --workdir"
        )


def warn(*texts: str) -> None:
    if jax.process_index() == 0:
        for text in filter(None, texts):
            print(f"warning  {text}\n", flush=True)
