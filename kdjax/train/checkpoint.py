"""Checkpoints to resume from; the only file that imports orbax.

Each is a folder named after its step, written under a temporary name and renamed when whole, so that a run killed at
any moment finds either the old one or the new one. Its `progress.json` has the checksum of every file in it. Two whole
ones are kept: where the newest is damaged afterwards, the one before it is gone on from.
"""

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint.experimental.v1 as ocp
from absl import logging
from jax.experimental import multihost_utils

from kdjax.config import ConfigError
from kdjax.train import kept

MARK = "orbax.checkpoint"  # the file by which orbax knows its own folders
PROGRESS = "progress.json"
KEPT = 2
NUMBER, LEFTOVER = re.compile(r"0|[1-9][0-9]*"), re.compile(r"[0-9]+\.orbax-checkpoint-tmp.*")


def save(folder: Path, step: int, state: Any, progress: dict) -> None:
    """Writes state and progress, reads them back, and then removes the oldest. `progress` is plain JSON."""
    target = folder / str(step)
    if target.exists() and not fault(folder, step):
        return  # this very step was saved already
    if target.exists() and not _is_ours(target):
        raise ConfigError(
            f"{target}: expected nothing where the checkpoint of step {step} goes, found what is no checkpoint; move "
            "it away and run the same command again"
        )
    if jax.process_index() == 0 and target.exists():
        _remove(target)
    _wait(f"cleared {step}")
    try:
        with _quiet():
            ocp.save(str(target.absolute()), {"state": state}, custom_metadata=progress)
        if jax.process_index() == 0:
            names = [str(path.relative_to(target)) for path in sorted(target.rglob("*")) if path.is_file()]
            noted = {"progress": progress, kept.CHECKSUMS: kept.checksums(target, names)}
            kept.write_json(target / PROGRESS, noted)
    except (OSError, ValueError, RuntimeError) as error:  # what a full disk raises depends on where it is met
        _clean(folder)
        raise OSError(
            f"could not write the checkpoint of step {step} to {folder}: {error}\n"
            "What was saved before is still there; make room (or check the permissions) and run the same command again."
        ) from error
    _wait(f"saved {step}")
    _clean(folder)


def steps(folder: Path) -> list[int]:
    """The steps of all checkpoints, damaged ones too, the newest first. Removes what a killed run left half done."""
    _clean(folder)
    return _steps(folder)


def latest(folder: Path) -> int | None:
    """The newest whole checkpoint's step."""
    return next((step for step in steps(folder) if not fault(folder, step)), None)


def fault(folder: Path, step: int) -> str:
    """What keeps a checkpoint from being gone on from; "" of a whole one."""
    path = folder / str(step)
    try:
        progress(folder, step)
        if not (path / PROGRESS).exists():
            return ""  # of an earlier version, or killed at this moment: there is nothing to compare
        noted = kept.read_json(path / PROGRESS, "the checkpoint is not whole")[kept.CHECKSUMS]
    except ConfigError as error:
        return str(error)
    return next((text for name, checksum in noted.items() if (text := kept.fault(path / name, checksum))), "")


def progress(folder: Path, step: int) -> dict:
    """What `save` was given of a step besides the state."""
    path = folder / str(step)
    if (path / PROGRESS).exists():
        return kept.read_json(path / PROGRESS, "the checkpoint is not whole")["progress"]
    return _read(path, _custom)


def restore(folder: Path, step: int, like: Any) -> Any:
    """The state of a step; `like` gives shapes, dtypes and shardings, which need not be those it was saved with."""
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
    return _read(folder / str(step), lambda path: ocp.load(path, {"state": abstract})["state"])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """An error is told once, in a sentence, and not by orbax's threads with a trace for each."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _custom(path: str) -> dict:
    metadata: Any = ocp.metadata(path).custom_metadata
    return dict(metadata)


def _read(path: Path, read: Callable[[str], Any]) -> Any:
    try:
        with _quiet():
            return read(str(path.absolute()))
    except Exception as error:  # what orbax raises depends on which of its files is damaged
        raise ConfigError(
            f"the checkpoint {path} cannot be read: {error}\nRemove that folder to go on from the one before it, or, "
            "where there is none, to start this stage over."
        ) from error


def _steps(folder: Path) -> list[int]:
    """Of the checkpoints, the newest first."""
    return sorted((int(p.name) for p in folder.glob("*") if NUMBER.fullmatch(p.name) and _is_ours(p)), reverse=True)


def _is_ours(path: Path) -> bool:
    """Whether a folder is a checkpoint, or what is left of one that was being written; nothing else is deleted."""
    if path.is_symlink() or not path.is_dir():
        return False
    return bool(LEFTOVER.fullmatch(path.name)) or (path / MARK).exists() or (path / PROGRESS).exists()


def _clean(folder: Path) -> None:
    """Deletes what was being written or deleted, and what is older than the newest whole checkpoints."""
    if jax.process_index() != 0 or not folder.is_dir():
        return
    for path in folder.iterdir():
        if LEFTOVER.fullmatch(path.name) and _is_ours(path):
            shutil.rmtree(path, ignore_errors=True)
    whole = [step for step in _steps(folder) if not fault(folder, step)]
    for step in _steps(folder):
        if whole and step < whole[0] and step not in whole[:KEPT]:
            _remove(folder / str(step))


def _remove(path: Path) -> None:
    """Under another name first: half of a checkpoint is never taken for one."""
    away = path.with_name(f"{path.name}.orbax-checkpoint-tmp-removed")
    path.rename(away)
    shutil.rmtree(away, ignore_errors=True)


def _wait(what: str) -> None:
    """Until all processes have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)
