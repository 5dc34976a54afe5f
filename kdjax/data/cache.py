"""Arrays kept in the user's cache folder: what takes long to make of a person's files, whole or not at all."""

import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

AUTO = "auto"


def folder(place: str, kind: str) -> Path:
    """`place`, or where it is "auto" kdjax/KIND in the user's cache folder."""
    if place != AUTO:
        return Path(place).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kdjax" / kind


def save(path: Path, arrays: Mapping[str, Any], about: dict[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise


def load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """The arrays and what was told with them; None where the file is missing or damaged (zip has a checksum for every
    array)."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
            return arrays, json.loads(arrays.pop("about").tobytes())
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None
