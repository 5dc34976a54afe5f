"""The files that a run keeps: written whole or not at all, and read back only as they were written.

The checksum of a JSON file is inside it. That of any other file is noted beside it: of a stage's files in its
`result.json`, of a checkpoint's in the checkpoint, of the best epoch's model in the record of progress.
"""

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from kdjax.config import ConfigError

CHECKSUM = "checksum"  # of all else in a JSON file
CHECKSUMS = "checksums"  # of other files, by name


class Damaged(ConfigError):
    """A file is not what the run wrote: says what was expected, what was found, and what to do."""


def write(path: Path, text: str) -> None:
    """A whole file or none."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: dict[str, Any]) -> None:
    write(path, sealed(value))


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """What `write_json` was given; `remedy` says what to do where the file holds something else."""
    return unsealed(text_of(path, remedy), path, remedy)


def text_of(path: Path, remedy: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Damaged(f"{path}: expected a file as a run writes it, cannot read it ({error}); {remedy}") from error


def sealed(value: dict[str, Any]) -> str:
    """JSON that holds its own checksum."""
    return json.dumps({**value, CHECKSUM: _of_json(value)}, indent=1)


def unsealed(text: str, path: Path | str, remedy: str) -> dict[str, Any]:
    """The value in `text`, of which `path` says where it comes from. A file that holds no checksum is of an earlier
    version, and there is nothing to compare."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path}: expected JSON as a run writes it, found no JSON ({error}); {remedy}") from error
    if not isinstance(value, dict):
        raise Damaged(f"{path}: expected values by name, found {str(value)[:60]!r}; {remedy}")
    noted = value.pop(CHECKSUM, None)
    if noted not in (None, _of_json(value)):
        raise Damaged(f"{path}: expected what this run wrote, found other values (their checksum differs); {remedy}")
    return value


def _of_json(value: dict[str, Any]) -> str:
    """The same whatever the order of the names."""
    return of_bytes(json.dumps(json.loads(json.dumps(value)), sort_keys=True).encode())


def of_bytes(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def checksum(path: Path) -> str:
    """Of the bytes of a file; they are read again only where the file has changed since."""
    found = os.stat(path)
    return _of_file(path, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))


@lru_cache(maxsize=512)
def _of_file(path: Path, stamp: tuple[int, ...]) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def checksums(folder: Path, names: list[str]) -> dict[str, str]:
    """Of those of the files that there are."""
    return {name: checksum(folder / name) for name in names if (folder / name).is_file()}


def fault(path: Path, noted: str) -> str:
    """What differs in a file that had this checksum when it was written; "" where nothing does."""
    try:
        found = checksum(path)
    except OSError as error:
        return f"{path}: expected the file that this run wrote, cannot read it ({error.strerror})"
    if found == noted:
        return ""
    size = path.stat().st_size
    return f"{path}: expected the file that this run wrote, found {size:,} bytes that are not it (checksum differs)"
