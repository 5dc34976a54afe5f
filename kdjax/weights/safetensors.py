"""Variables in safetensors files: names such as "params/image_encoder/neck_0/kernel", never anything that is run."""

import difflib
import errno
import hashlib
import json
import math
import mmap
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
from flax.traverse_util import flatten_dict, unflatten_dict

from kdjax.config import Model, to_dict
from kdjax.weights.files import SteadyFile, WeightsError

CODES = {  # of NumPy's dtypes in the header of a file
    "bool": "BOOL",
    **{f"{kind}{bits}": f"{kind[0].upper()}{bits}" for kind in ("int", "uint", "float") for bits in (16, 32, 64)},
    **{"int8": "I8", "uint8": "U8", "complex64": "C64", "bfloat16": "BF16"},
    **{"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"},
}
DTYPES = {code: np.dtype(getattr(ml_dtypes, name, name)) for name, code in CODES.items()}


@dataclass(frozen=True, slots=True)
class Stored:
    """An array in a file, read when it is asked for."""

    shape: tuple[int, ...]
    dtype: np.dtype
    file: SteadyFile = field(repr=False)
    offset: int

    def read(self) -> np.ndarray:
        size = math.prod(self.shape) * self.dtype.itemsize
        return self.file.read(self.offset, size).view(self.dtype).reshape(self.shape)


def save(
    path: str | os.PathLike,
    variables: Mapping,
    metadata: Mapping[str, str] | None = None,
    prove: Callable[[Path], None] = lambda written: None,
) -> None:
    """Writes the nested dict of arrays under another name and renames it, so that `path` is never half a file, nor one
    that `prove`, which gets the other name, has raised an error about.

    A leaf is an array, or anything with `shape`, `dtype` and `read() -> array`; one at a time is in memory.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise WeightsError(f"{path}: cannot be written, since there is no folder {path.parent}; create it first")
    leaves = {key: leaf if hasattr(leaf, "dtype") else np.asarray(leaf) for key, leaf in _flat(variables).items()}
    strange = [f"{key} {leaf.dtype}" for key, leaf in leaves.items() if np.dtype(leaf.dtype).name not in CODES]
    strange += [key for key in leaves if key == "__metadata__"]
    if strange:
        raise WeightsError(f"{path}: safetensors files cannot hold {', '.join(strange)}; leave that out or convert it")
    # The widest first, so that every array is aligned in the mapped file.
    leaves = dict(sorted(leaves.items(), key=lambda item: (-np.dtype(item[1].dtype).itemsize, item[0])))
    header, size = _header(leaves, metadata or {})
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise WeightsError(f"{path}: needs {size:,} bytes and {free:,} are free; make room or choose another place")
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(header)
            for key, leaf in leaves.items():
                file.write(_bytes(key, leaf))
            file.flush()
            os.fsync(file.fileno())
        prove(partial)
        os.replace(partial, path)
    except OSError as error:
        raise WeightsError(
            f"{path}: writing {size:,} bytes failed ({error}); the old file, if any, is as it was: make room or choose "
            "another place"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def load(path: str | os.PathLike, *, mapped: bool = True) -> tuple[dict[str, Any], dict[str, str]]:
    """(variables, metadata): the nested dict of read-only NumPy arrays, views of the mapped file: a byte is read when
    it is first used. Not mapped, all are read at once, and the file may be cut off afterwards."""
    flat, metadata = views(path) if mapped else _read(path)
    parents = {"/".join(parts[:i]) for key in flat for parts in [key.split("/")] for i in range(1, len(parts))}
    if clash := sorted(parents & flat.keys()):
        raise WeightsError(f"{path}: {clash[0]!r} is both an array and a group of arrays; kdjax cannot have made it")
    return unflatten_dict(flat, sep="/"), metadata


def views(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """As `load`, of any safetensors file, by the names as they are in it."""
    entries, metadata = stored(path)
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def view(entry: Stored) -> np.ndarray:
        array = np.frombuffer(mapped, entry.dtype, math.prod(entry.shape), entry.offset).reshape(entry.shape)
        return array if array.flags.aligned else array.copy()

    return {name: view(entry) for name, entry in entries.items()}, metadata


def _read(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    entries, metadata = stored(path)
    return {name: entry.read() for name, entry in entries.items()}, metadata


def stored(path: str | os.PathLike) -> tuple[dict[str, Stored], dict[str, str]]:
    """As `views`, of which nothing is read yet but what the head of the file says."""
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: {no_file(path)}")
    file = SteadyFile.at(path)
    if not file.size:
        raise WeightsError(f"{path}: the file is empty; fetch or export it again")
    try:
        # The library checks the header: every byte after it belongs to one array, in the order of `offset_keys`.
        with safetensors.safe_open(path, framework="numpy") as opened:
            kinds = {key: (part.get_dtype(), part.get_shape()) for key, part in _parts(opened)}
            metadata = opened.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: {file.size:,} bytes that are no whole safetensors file ({error}); fetch it again if it was cut "
            "off, convert it first if it is of another kind (.pth, .pt, .ckpt)"
        ) from error
    if strange := [f"{key} {code}" for key, (code, _) in kinds.items() if code not in DTYPES]:
        raise WeightsError(f"{path}: numbers of a kind that is not read here: {', '.join(strange)}; make them floats")
    offset, found = 8 + int.from_bytes(file.read(0, 8).tobytes(), "little"), {}
    for key, (code, shape) in kinds.items():
        found[key] = Stored(tuple(shape), DTYPES[code], file, offset)
        offset += math.prod(shape) * DTYPES[code].itemsize
    return dict(sorted(found.items())), metadata


def no_file(path: Path) -> str:
    """What there is where a file is expected."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "a link that leads back to itself; name the file itself"
        if path.is_symlink():
            return f"a link to {os.readlink(path)}, where there is nothing; mend the link or name the file itself"
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return "no such file of weights; check the path"
        return f"cannot be looked at ({error.strerror}); check the path and its rights"
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
    kind = next((name for is_kind, name in kinds if is_kind(mode)), "a device")
    return f"{kind}, expected a file" + ("; write what comes through it to a file first" if kind == "a pipe" else "")


def overlay(target: Mapping, source: Mapping, *, skip: tuple[str, ...] = ()) -> dict[str, Any]:
    """`target` with every leaf taken from `source`, in the target's dtype; `skip` as in `check`."""
    check(target, source, skip=skip)
    into, given = _flat(target), _flat(source)
    skipped = {key for key in into for pattern in skip if re.fullmatch(pattern, key)}
    leaves = {key: leaf if key in skipped else np.asarray(given[key], leaf.dtype) for key, leaf in into.items()}
    return unflatten_dict(leaves, sep="/")


def check(target: Mapping, source: Mapping, *, skip: tuple[str, ...] = ()) -> None:
    """Raises one error that lists all that keeps `source` from filling `target`; both may be mere shapes.

    Names that a pattern of `skip` matches whole are left as they are in `target` and unused in `source`. Everything
    else must fit leaf for leaf.
    """
    into, given = _flat(target), _flat(source)
    skipped = {key for key in {**into, **given} for pattern in skip if re.fullmatch(pattern, key)}
    want, have = into.keys() - skipped, given.keys() - skipped
    faults = [f"unfilled: {_kind(key, into)}{_near(key, into, have - want, given)}" for key in sorted(want - have)]
    faults += [f"unused: {_kind(key, given)}{_near(key, given, want - have, into)}" for key in sorted(have - want)]
    for key in sorted(want & have):
        if into[key].shape != given[key].shape:
            faults.append(f"shape of {key}: expected {tuple(into[key].shape)}, found {tuple(given[key].shape)}")
        elif _is_float(into[key]) != _is_float(given[key]):
            faults.append(f"dtype of {key}: expected {into[key].dtype}, found {given[key].dtype}")
    for pattern in skip:
        if not any(re.fullmatch(pattern, key) for key in skipped):
            faults.append(f"skip {pattern!r} matches nothing")
    if faults:
        raise WeightsError(
            f"the weights do not fit the model ({len(faults)} of {len({**into, **given})} names are wrong); "
            "build the model with the options that the weights were made with, or skip names on purpose:\n  "
            + "\n  ".join(faults)
        )


def about(model: Model) -> dict[str, str]:
    """The metadata that tells which model a file is for."""
    return {"model": model.name, "options": json.dumps(to_dict(model.options))}


def model_in(metadata: Mapping[str, str]) -> Model | None:
    """The model that a file is for, if it says so."""
    if "model" not in metadata:
        return None
    try:
        options = json.loads(metadata.get("options", "{}"))
    except (ValueError, RecursionError) as error:
        raise WeightsError(
            f"the file's metadata are damaged, its options are no JSON ({error}); fetch it again"
        ) from error
    if not isinstance(options, dict):
        raise WeightsError(f"the file's metadata are damaged, expected options by name, found {str(options)[:60]}")
    return Model(metadata["model"], **options)


def fingerprint(variables: Mapping) -> str:
    """SHA-256 over the names, shapes, dtypes and bytes: the same whatever the order of the names, the memory layout
    or the device."""
    digest = hashlib.sha256()
    for key, value in sorted(_flat(variables).items()):
        array = np.asarray(value, order="C")
        digest.update(f"{key} {array.dtype.name} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _header(leaves: Mapping[str, Any], metadata: Mapping[str, str]) -> tuple[bytes, int]:
    """The head of a file of these leaves in this order, and the size of the whole; the first array is at a multiple
    of 64 bytes."""
    entries: dict[str, Any] = {"__metadata__": {str(k): str(v) for k, v in metadata.items()}} if metadata else {}
    offset = 0
    for key, leaf in leaves.items():
        dtype, shape = np.dtype(leaf.dtype), [int(n) for n in leaf.shape]
        end = offset + math.prod(shape) * dtype.itemsize
        entries[key] = {"dtype": CODES[dtype.name], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text, 8 + len(text) + offset


def _bytes(key: str, leaf: Any) -> memoryview:
    """Little-endian, row by row; a copy only where the leaf is not so already."""
    array = np.asarray(leaf.read() if hasattr(leaf, "read") else leaf, order="C")
    if (array.shape, array.dtype) != (tuple(leaf.shape), np.dtype(leaf.dtype)):
        raise WeightsError(
            f"{key}: announced as {np.dtype(leaf.dtype)}{list(leaf.shape)}, read as {array.dtype}{list(array.shape)}; "
            "nothing was written"
        )
    if array.dtype.byteorder == (">" if sys.byteorder == "little" else "="):
        array = array.byteswap()
    return array.reshape(-1).view(np.uint8).data


def _parts(file: Any) -> Iterator[tuple[str, Any]]:
    return ((key, file.get_slice(key)) for key in file.offset_keys())


def _flat(variables: Mapping) -> dict[str, Any]:
    return flatten_dict(variables, sep="/")


def _kind(key: str, leaves: Mapping) -> str:
    return f"{key} {leaves[key].dtype}{list(leaves[key].shape)}"


def _near(key: str, leaves: Mapping, others: set[str], other_leaves: Mapping) -> str:
    """Which of the other side's names without a partner it could be, by its shape and its spelling."""
    same = [other for other in others if other_leaves[other].shape == leaves[key].shape]
    close = difflib.get_close_matches(key, sorted(same), n=1)
    return f"; perhaps {close[0]}" if close else ""


def _is_float(leaf: Any) -> bool:
    return np.dtype(leaf.dtype).kind not in "iub"  # bfloat16 is of kind "V"
