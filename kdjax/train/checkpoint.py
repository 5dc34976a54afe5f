"""Checkpoints to resume from; the only file that imports orbax.

Each is a folder named after its step, written under a temporary name and renamed when whole, so that a run killed at
any moment finds either the old one or the new one.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint.experimental.v1 as ocp
from jax.experimental import multihost_utils

from kdjax.config import ConfigError

MARK = "orbax.checkpoint"  # the file by which orbax knows its own folders


def save(folder: Path, step: int, state: Any, progress: dict) -> None:
    """Writes state and progress, then removes older checkpoints. `progress` is plain JSON."""
    target = folder / str(step)
    if target.exists():
        return  # this very step was saved already
    try:
        ocp.save(str(target.absolute()), {"state": state}, custom_metadata=progress)
    except (OSError, ValueError, RuntimeError) as error:  # what a full disk raises depends on where it is met
        _clean(folder)
        raise OSError(
            f"could not write the checkpoint of step {step} to {folder}: {error}\n"
            "What was saved before is still there; make room (or check the permissions) and run the same command again."
        ) from error
    _clean(folder)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"saved {step}")


def latest(folder: Path) -> int | None:
    """The newest whole checkpoint's step. Removes what a killed run left half done."""
    _clean(folder)
    return max(_steps(folder), default=None)


def progress(folder: Path, step: int) -> dict:
    """What `save` was given of a step besides the state."""
    return _read(folder / str(step), _custom)


def restore(folder: Path, step: int, like: Any) -> Any:
    """The state of a step; `like` gives shapes, dtypes and shardings, which need not be those it was saved with."""
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
    return _read(folder / str(step), lambda path: ocp.load(path, {"state": abstract})["state"])


def _custom(path: str) -> dict:
    metadata: Any = ocp.metadata(path).custom_metadata
    return dict(metadata)


def _read(path: Path, read: Callable[[str], Any]) -> Any:
    try:
        return read(str(path.absolute()))
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"the checkpoint {path} cannot be read: {error}\nRemove that folder to start this stage over."
        ) from error


def _steps(folder: Path) -> list[int]:
    """Only whole checkpoints bear a bare number, but for an older one whose removal was cut short."""
    return [int(path.name) for path in folder.glob("*") if path.name.isdigit() and _is_ours(path)]


def _is_ours(path: Path) -> bool:
    """Whether a folder is a checkpoint, or what is left of one that was being written; nothing else is deleted."""
    if path.is_symlink() or not path.is_dir():
        return False
    return (path / MARK).exists() if path.name.isdigit() else bool(re.match(r"\d+\.orbax-checkpoint-tmp", path.name))


def _clean(folder: Path) -> None:
    """Deletes all checkpoints but the newest."""
    newest = max(_steps(folder), default=None)
    if jax.process_index() == 0 and folder.is_dir():
        for path in folder.iterdir():
            if path.name != str(newest) and _is_ours(path):
                shutil.rmtree(path, ignore_errors=True)
