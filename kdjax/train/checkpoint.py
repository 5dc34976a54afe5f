"""Checkpoints to resume from; the only file that imports orbax.

Each is a folder named after its step, written under a temporary name and renamed when whole, so that a run killed at
any moment finds either the old one or the new one.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint.experimental.v1 as ocp
from jax.experimental import multihost_utils

from kdjax.config import ConfigError

PROGRESS = "progress.json"


def save(folder: Path, step: int, state: Any, progress: dict) -> None:
    """Writes state and progress, then removes older checkpoints. `progress` is plain JSON."""
    target = (folder / str(step)).absolute()
    if target.exists():
        return  # this very step was saved already
    try:
        ocp.save(target, {"state": state}, custom_metadata=progress)
    except (OSError, ValueError) as error:
        raise OSError(
            f"could not write the checkpoint of step {step} to {folder}: {error}\n"
            "What was saved before is still there; make room (or check the permissions) and run the same command again."
        ) from error
    if jax.process_index() == 0:
        for old in folder.iterdir():
            if old.name != str(step):
                shutil.rmtree(old, ignore_errors=True)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"saved {step}")


def latest(folder: Path) -> int | None:
    """The newest whole checkpoint's step."""
    steps = [int(path.name) for path in folder.glob("*") if path.name.isdigit()] if folder.is_dir() else []
    return max(steps, default=None)


def restore(folder: Path, step: int, like: Any) -> tuple[Any, dict]:
    """State and progress of a step; `like` gives shapes, dtypes and shardings."""
    path = (folder / str(step)).absolute()
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
    try:
        state = ocp.load(path, {"state": abstract})["state"]
        progress = ocp.metadata(path).custom_metadata
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"the checkpoint {path} cannot be read: {error}\nRemove that folder to start over.") from error
    return state, json.loads(json.dumps(progress or {}))
