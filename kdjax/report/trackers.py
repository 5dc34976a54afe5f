"""What a stage records while it trains: metrics.jsonl always, TensorBoard and Weights & Biases where asked for.

metrics.jsonl holds nothing that depends on the clock, so that a run that was killed and resumed leaves the same bytes
as one that was not; times go to timing.jsonl. For this the loop writes the record of a step before it saves the
checkpoint of that step.
"""

import importlib
import importlib.util
import json
import math
import os
import pathlib
import secrets
from collections.abc import Mapping
from typing import Any, SupportsFloat

import numpy as np
from jaxtyping import UInt8

from kdjax.config import ConfigError, Log

METRICS, TIMING = "metrics.jsonl", "timing.jsonl"

Values = Mapping[str, SupportsFloat]

_told: set[str] = set()


def check(log: Log) -> None:
    """Raises where a tracker is asked for that cannot run; for before the training."""
    if log.wandb != "off" and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            f"log.wandb is {log.wandb!r}, but wandb is not installed: "
            'run `pip install -e ".[tracking]"`, or set --config.log.wandb=off'
        )


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, without a last line that is still being written; none where there is no file."""
    path = pathlib.Path(path)
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    records = []
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            continue
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise ConfigError(
                f"{path}, line {number}: expected a record, found none ({error}); remove the line to leave it out"
            ) from error
    return records


class Trackers:
    """Writes records of one stage into `folder`; what an earlier run recorded after step `steps_done` is cut off."""

    def __init__(
        self, folder: str | os.PathLike, log: Log, *, name: str = "", steps_done: int = 0, primary: bool = True
    ):
        self.primary = primary
        if not primary:
            return
        check(log)
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._wandb = _wandb(folder, log, name) if log.wandb != "off" else None  # first, as it may refuse
        for file in (METRICS, TIMING):
            _cut(folder / file, steps_done)
        self._metrics = (folder / METRICS).open("a")
        self._timing = (folder / TIMING).open("a")
        self._board = _tensorboard(folder, steps_done) if log.tensorboard else None

    def write(self, step: int, split: str, values: Values, timing: Values | None = None) -> None:
        """Records `values` of `split` ("train" | "val") at `step`; a number that is not finite is written as null."""
        if not self.primary:
            return
        _append(self._metrics, {"step": step, "split": split, **_numbers(values)})
        if timing:
            _append(self._timing, {"step": step, "split": split, **_numbers(timing)})
        tagged = {f"{split}/{k}": float(v) for k, v in sorted({**values, **(timing or {})}.items())}
        if self._board is not None:
            for tag, value in tagged.items():
                self._board.add_scalar(tag, value, step)
        if self._wandb is not None:
            self._wandb.log({"step": step, **tagged})

    @property
    def shows_images(self) -> bool:
        return self.primary and self._board is not None

    def show(self, step: int, split: str, images: Mapping[str, UInt8[np.ndarray, "h w 3"]]) -> None:
        """Puts pictures into TensorBoard."""
        if self._board is not None:
            for name, image in images.items():
                self._board.add_image(f"{split}/{name}", image, step, dataformats="HWC")

    def close(self) -> None:
        if not self.primary:
            return
        self._metrics.close()
        self._timing.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def _numbers(values: Values) -> dict[str, float | None]:
    return {k: float(v) if math.isfinite(float(v)) else None for k, v in sorted(values.items())}


def _append(file: Any, record: dict[str, Any]) -> None:
    """One line in one write, flushed: a kill leaves whole lines but for the last."""
    file.write(json.dumps(record) + "\n")
    file.flush()


def _cut(path: pathlib.Path, steps_done: int) -> None:
    """Leaves the whole lines up to `steps_done`; the file is replaced in one move or not at all."""
    if not path.exists():
        return
    old = path.read_bytes()
    new = b"".join(line for line in old.splitlines(keepends=True) if _belongs(line, steps_done))
    if new == old:
        return
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(new)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _belongs(line: bytes, steps_done: int) -> bool:
    try:
        return line.endswith(b"\n") and json.loads(line)["step"] <= steps_done
    except (ValueError, KeyError, TypeError):
        return False


def _tensorboard(folder: pathlib.Path, steps_done: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        if "tensorboard" not in _told:
            _told.add("tensorboard")
            print("TensorBoard files are not written: tensorboardX is not installed (`pip install tensorboardX`).")
        return None
    # Starts a new events file; what earlier files say after steps_done is hidden by TensorBoard.
    return SummaryWriter(str(folder / "tensorboard"), purge_step=steps_done + 1 if steps_done else None)


def _wandb(folder: pathlib.Path, log: Log, name: str) -> Any:
    wandb = importlib.import_module("wandb")  # an extra: not there for whoever checks types
    ticket = folder / "wandb_id"  # a resumed stage goes on in the same run
    if not ticket.exists():
        ticket.write_text(secrets.token_hex(4))
    mode: Any = log.wandb
    try:
        run = wandb.init(
            project=log.project,
            group=log.group or None,
            name=name or folder.name,
            dir=str(folder),
            mode=mode,
            id=ticket.read_text(),
            resume="allow",
        )
    except wandb.errors.Error as error:
        raise ConfigError(
            f"log.wandb is {log.wandb!r}, and Weights & Biases refuses: {error} Log in with `wandb login`, set "
            "WANDB_API_KEY, or keep the records here with --config.log.wandb=offline"
        ) from error
    # Steps as a value of its own: the run's own counter refuses the steps that a resumed stage repeats.
    run.define_metric("*", step_metric="step")
    return run
