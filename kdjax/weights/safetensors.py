"""Variables in safetensors files: names such as "params/image_encoder/neck_0/kernel", never anything that is run."""

import difflib
import hashlib
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict


class WeightsError(ValueError):
    """Weights that cannot be read, written or used: says what was expected, what was found, and what to do."""


def save(path: str | os.PathLike, variables: Mapping, metadata: Mapping[str, str] | None = None) -> None:
    """Writes the nested dict of arrays under another name and renames it, so that `path` is never half a file."""
    path = Path(path)
    if not path.parent.is_dir():
        raise WeightsError(f"{path}: cannot be written, since there is no folder {path.parent}; create it first")
    # The format stores plain row-major bytes, so anything else is copied here.
    flat = {key: np.asarray(value, order="C") for key, value in _flat(variables).items()}
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        safetensors.numpy.save_file(flat, partial, metadata=dict(metadata or {}))
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)  # as other files; the writer keeps its own to its owner
        os.replace(partial, path)
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(
            f"{path}: writing {sum(a.nbytes for a in flat.values()):,} bytes failed ({error}); the old file, if any, "
            "is as it was: make room or choose another place"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def load(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, str]]:
    """(variables, metadata): the nested dict of NumPy arrays, each read once from the mapped file."""
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file of weights; check the path")
    size = path.stat().st_size
    if not size:
        raise WeightsError(f"{path}: the file is empty; fetch or export it again")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            flat = {key: file.get_tensor(key) for key in sorted(file.keys())}
            return unflatten_dict(flat, sep="/"), file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise WeightsError(
            f"{path}: {size:,} bytes that are no whole safetensors file ({error}); fetch it again if it was cut off, "
            "convert it first if it is of another kind (.pth, .pt, .ckpt)"
        ) from error


def overlay(target: Mapping, source: Mapping, *, skip: tuple[str, ...] = ()) -> dict[str, Any]:
    """`target` with every leaf taken from `source`, in the target's dtype; `skip` as in `check`."""
    check(target, source, skip=skip)
    into, given = _flat(target), _flat(source)
    kept = {key for key in into for pattern in skip if re.fullmatch(pattern, key)}
    leaves = {key: leaf if key in kept else np.asarray(given[key], leaf.dtype) for key, leaf in into.items()}
    return unflatten_dict(leaves, sep="/")


def check(target: Mapping, source: Mapping, *, skip: tuple[str, ...] = ()) -> None:
    """Raises one error that lists all that keeps `source` from filling `target`; both may be mere shapes.

    Names that a pattern of `skip` matches whole are left as they are in `target` and unused in `source`. Everything
    else must fit leaf for leaf.
    """
    into, given = _flat(target), _flat(source)
    skipped = {key for key in {**into, **given} for pattern in skip if re.fullmatch(pattern, key)}
    want, have = into.keys() - skipped, given.keys() - skipped
    wrong = [f"unfilled: {_kind(key, into)}{_near(key, into, have - want, given)}" for key in sorted(want - have)]
    wrong += [f"unused: {_kind(key, given)}{_near(key, given, want - have, into)}" for key in sorted(have - want)]
    for key in sorted(want & have):
        if into[key].shape != given[key].shape:
            wrong.append(f"shape of {key}: expected {tuple(into[key].shape)}, found {tuple(given[key].shape)}")
        elif _is_float(into[key]) != _is_float(given[key]):
            wrong.append(f"dtype of {key}: expected {into[key].dtype}, found {given[key].dtype}")
    for pattern in skip:
        if not any(re.fullmatch(pattern, key) for key in skipped):
            wrong.append(f"skip {pattern!r} matches nothing")
    if wrong:
        raise WeightsError(
            f"the weights do not fit the model ({len(wrong)} of {len({**into, **given})} names are wrong); "
            "build the model with the options that the weights were made with, or skip names on purpose:\n  "
            + "\n  ".join(wrong)
        )


def fingerprint(variables: Mapping) -> str:
    """SHA-256 over the names, shapes, dtypes and bytes: the same whatever the order of the names, the memory layout
    or the device."""
    digest = hashlib.sha256()
    for key, value in sorted(_flat(variables).items()):
        array = np.asarray(value, order="C")
        digest.update(f"{key} {array.dtype.name} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


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
