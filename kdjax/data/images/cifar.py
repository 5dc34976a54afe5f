"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) as their authors publish them: pickles, read without running them."""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy._core.multiarray import _reconstruct

from kdjax.config import ConfigError
from kdjax.data.images import files
from kdjax.data.images.arrays import Labelled

SIDE = 32
FOLDERS = ("cifar-10-batches-py", "cifar-100-python")
PARTS = {  # file -> split, of either set
    "meta": {"train": "train", "test": "test"},
    "batches.meta": {**{f"data_batch_{i}": "train" for i in range(1, 6)}, "test_batch": "test"},
}


class Cifar(Labelled):
    """The folder of the extracted archive, `cifar-10-batches-py` or `cifar-100-python`, or the folder around it.

    60,000 images of 32 × 32; test is the authors' own, and val is taken from train. `coarse` has the 20 superclasses of
    CIFAR-100 instead of its 100 classes.
    """

    def __init__(self, root: str, coarse: bool = False, num_classes: int = 10):
        top = files.folder(root, *FOLDERS) or Path(root).expanduser()
        meta = next((name for name in PARTS if (top / name).is_file()), "")
        label, names = ("labels", "label_names") if meta == "batches.meta" else ("fine_labels", "fine_label_names")
        if coarse:
            label, names = "coarse_labels", "coarse_label_names"
        faults = [] if meta else [files.missing(top, f"the folder {' or '.join(FOLDERS)} with the files of CIFAR")]
        if coarse and meta == "batches.meta":
            faults.append(f"{top}: CIFAR-10 has no superclasses; leave coarse out")
        images, labels, splits, titles, classes = [np.zeros((0, 3 * SIDE**2), np.uint8)], [], [], [], []
        for part, split in ({meta: "", **PARTS[meta]} if not faults else {}).items():
            try:
                record = _read(top / part)
                if part == meta:
                    classes = [_text(name) for name in record[names]]
                    continue
                pixels, own = np.asarray(record["data"]), [int(k) for k in record[label]]
                if pixels.dtype != np.uint8 or pixels.shape != (len(own), 3 * SIDE**2):
                    raise ConfigError(
                        f"{top / part}: expected uint8 [{len(own)}, {3 * SIDE**2}], found {pixels.dtype} "
                        f"{list(pixels.shape)}; extract the archive again"
                    )
            except (KeyError, ConfigError) as error:
                lacks = f"{top / part}: expected an entry {error}, as CIFAR has it; extract the archive again"
                faults.append(lacks if isinstance(error, KeyError) else str(error))
                continue
            images.append(pixels)
            labels += own
            splits += [split] * len(own)
            titles += [f"{part}_{i:05d}" for i in range(len(own))]
        planes = np.concatenate(images).reshape(-1, 3, SIDE, SIDE)
        squares = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
        super().__init__(squares, np.array(labels, np.int64), classes, splits, titles, faults)


def _read(path: Path) -> dict[str, Any]:
    """The dict in a pickle, its keys as text."""
    if not path.is_file():
        raise ConfigError(f"{path}: expected this file of CIFAR, found none; extract the archive again")
    try:
        record = _Plain(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except (pickle.UnpicklingError, EOFError, IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
        # A damaged pickle fails in any of these ways.
        raise ConfigError(f"{path}: expected a pickle of CIFAR, but {error}; extract the archive again") from error
    if not isinstance(record, dict):
        raise ConfigError(f"{path}: expected a dict, found {type(record).__name__}; extract the archive again")
    return {_text(key): value for key, value in record.items()}


class _Plain(pickle.Unpickler):
    """Builds arrays of numpy, and out of itself what pickle has no names for: texts, numbers, lists and dicts.

    Any other name would run code of its choosing, and is refused.
    """

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _reconstruct
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes in old protocols
            return _latin1
        raise pickle.UnpicklingError(f"it would run {module}.{name}")


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it has bytes as {encoding!r}")
    return text.encode("latin1")


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
