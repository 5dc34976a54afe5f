"""One graph whose nodes are the examples: each batch is the whole graph, and says which nodes count."""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Float32, Int

from kdjax.config import ConfigError, Data
from kdjax.data.dataset import Batch, Dataset
from kdjax.data.source import open_source


@runtime_checkable
class NodeSource(Protocol):
    """A graph with a class for each node, and the nodes of each split."""

    x: Float32[np.ndarray, "n f"]
    senders: Int[np.ndarray, " e"]
    receivers: Int[np.ndarray, " e"]
    classes: Int[np.ndarray, " n"]
    where: dict[str, Int[np.ndarray, " m"]]
    notes: Sequence[str]


def build(data: Data, parts: int = 1) -> "NodeSet":
    if parts > 1:
        raise ConfigError(
            f"{data.source!r} is one graph, which does not divide: set mesh.data=1 and optim.accumulate=1"
        )
    try:
        return NodeSet(data, open_source(data.source, data.options))
    except ConfigError as error:
        raise ConfigError(f"the data {data.source!r} cannot be used:\n  {error}") from error


class NodeSet(Dataset):
    """A batch is the whole graph as one pack, with a node of padding: x float32 [1, n, f]; id, graph int32 [1, n];
    senders, receivers int32 [1, e]; nodes, valid, labelled bool [1, n]; class, index int32 [1, n].

    While training every node is valid, and those of the training split are labelled; else the nodes of the split are
    both. `index` is the place in the split, -1 for the others.
    """

    item = "node"

    def __init__(self, data: Data, source: NodeSource):
        if (most := int(source.classes.max())) >= data.num_classes:
            raise ConfigError(f"classes 0 to {most} do not fit num_classes={data.num_classes}; set {most + 1}")
        sizes = {split: len(nodes) for split, nodes in source.where.items()}
        super().__init__(sizes, np.ones(sizes["train"], bool), source.notes)
        self.data, self.num_classes = data, data.num_classes
        self._where, self._classes = source.where, source.classes
        n, e = len(source.x), len(source.senders)
        self.facts = {"features": source.x.shape[1], "num_classes": data.num_classes}
        self._graph = {
            "x": np.pad(source.x, ((0, 1), (0, 0)))[None],
            "id": np.zeros((1, n + 1), np.int32),
            "senders": source.senders.astype(np.int32).reshape(1, e),
            "receivers": source.receivers.astype(np.int32).reshape(1, e),
            "graph": (np.arange(n + 1) == n).astype(np.int32)[None],
            "nodes": (np.arange(n + 1) < n)[None],
        }
        self._batches = {split: self._of(split) for split in source.where}

    def steps_per_epoch(self, batch_size: int) -> int:
        return 1

    def axis(self, batch_size: int) -> int:
        return 1

    def shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {k: jax.ShapeDtypeStruct((batch_size, *v.shape[1:]), v.dtype) for k, v in self._batches["val"].items()}

    def batch(self, split: str, indices: Int[np.ndarray, " b"], share: slice = slice(None)) -> Batch:
        """The whole graph, whichever nodes are asked for."""
        return self._batches[split]

    def train(self, batch_size: int, **_) -> Iterator[Batch]:
        batch = {**self._batches["train"], "valid": self._graph["nodes"]}
        while True:
            yield batch

    def evaluate(self, split: str, batch_size: int, **_) -> Iterator[Batch]:
        yield self._batches[split]

    def labels(self, split: str) -> Int[np.ndarray, " m"]:
        return self._classes[self._where[split]]

    def _of(self, split: str) -> Batch:
        nodes, n = self._where[split], self._graph["x"].shape[1]
        classes, index = np.full((1, n), -1, np.int32), np.full((1, n), -1, np.int32)
        classes[0, nodes], index[0, nodes] = self._classes[nodes], np.arange(len(nodes))
        chosen = index >= 0
        return {**self._graph, "class": classes, "labelled": chosen, "valid": chosen, "index": index}
