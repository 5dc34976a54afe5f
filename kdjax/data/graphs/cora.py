"""Cora: 2,708 papers, the words in each, what they cite, and the field of each (Sen et al. 2008)."""

import zipfile
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float32, Int, Int32

from kdjax.config import ConfigError

FILE = "cora.npz"
LABELLED, VALIDATION, TEST = 140, 500, 1000  # the standard split: the first, those after them, and the last


class Cora:
    """Reads `cora.npz` in a folder: features [n, f], labels [n] and edge_index [2, e], numbered as in Planetoid (Yang
    et al. 2016, arXiv 1603.08861), whose split it takes."""

    kind: ClassVar[str] = "nodes"

    def __init__(self, root: str):
        path = Path(root).expanduser() / FILE
        if not path.is_file():
            raise ConfigError(f"{path}: expected Cora's features, labels and edge_index, found no such file; set root")
        features, classes, edges = _read(path)
        n = len(features)
        self.x = sum_to_one(features)
        self.senders, self.receivers = with_loops(edges, n)
        self.classes = classes
        self.where = {
            "train": np.arange(LABELLED),
            "val": np.arange(LABELLED, LABELLED + VALIDATION),
            "test": np.arange(n - TEST, n),
        }
        self.notes = (f"{n} nodes with {features.shape[1]} words and {edges.shape[1]} edges",)


def _read(path: Path) -> tuple[Float32[np.ndarray, "n f"], Int32[np.ndarray, " n"], Int32[np.ndarray, "2 e"]]:
    try:
        with open(path, "rb") as file:
            file_arrays = np.load(file, allow_pickle=False)
            arrays = {name: file_arrays[name] for name in ("features", "labels", "edge_index")}
    except (KeyError, IndexError, OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path}: expected arrays features, labels and edge_index, but: {error}") from error
    features, classes, edges = arrays.values()
    least, faults = LABELLED + VALIDATION + TEST, []
    if features.ndim != 2 or len(features) < least:
        faults.append(f"features: expected a row for each of at least {least} nodes, found {features.shape}")
    elif not np.isfinite(features).all() or features.min() < 0:
        faults.append("features: expected counts of words, found negative or not finite numbers")
    if classes.shape != features.shape[:1] or classes.dtype.kind not in "iu" or classes.min(initial=0) < 0:
        faults.append(f"labels: expected a class from 0 for each row, found {classes.dtype} {classes.shape}")
    if edges.ndim != 2 or len(edges) != 2 or edges.dtype.kind not in "iu":
        faults.append(f"edge_index: expected whole numbers [2, e], found {edges.dtype} {edges.shape}")
    elif edges.size and (edges.min() < 0 or edges.max() >= len(features)):
        faults.append(f"edge_index: expected nodes 0 to {len(features) - 1}, found {edges.min()} to {edges.max()}")
    if faults:
        raise ConfigError(f"{path} is not Cora:\n  " + "\n  ".join(faults))
    return features.astype(np.float32), classes.astype(np.int32), edges.astype(np.int32)


def sum_to_one(features: Float32[np.ndarray, "n f"]) -> Float32[np.ndarray, "n f"]:
    """Each row divided by its sum; a node without words stays without."""
    total = features.sum(axis=1, keepdims=True)
    return features / np.where(total > 0, total, 1)


def with_loops(edges: Int[np.ndarray, "2 e"], n: int) -> tuple[Int32[np.ndarray, " m"], Int32[np.ndarray, " m"]]:
    """Senders and receivers: every edge once and both ways, and one from each node to itself; sorted by receiver."""
    both = np.concatenate([edges, edges[::-1], np.tile(np.arange(n), (2, 1))], axis=1)
    receivers, senders = np.unique(both[::-1], axis=1).astype(np.int32)
    return senders, receivers
