"""One graph whose nodes are the examples: each batch is the whole graph, and says which nodes count."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Float32, Int

from kdjax.config import ConfigError, Data
from kdjax.data.dataset import Batch, Dataset
from kdjax.data.fields import Field, GraphsField, examples, graphs_tuple
from kdjax.data.graphs.packs import padded
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
    """A batch is the whole graph as one pack, with a graph of one node as padding: `graphs`, and for each node class,
    index int32 [1, n] and class_known, valid bool [1, n].

    While training every node is valid, and the class of those of the training split is known; else both hold for the
    nodes of the split. `index` is the place in the split, -1 for the others.
    """

    item = "node"

    def __init__(self, data: Data, source: NodeSource):
        most = int(source.classes.max())
        num_classes = most + 1 if data.num_classes is None else data.num_classes
        if most >= num_classes:
            raise ConfigError(f"classes 0 to {most} do not fit num_classes={num_classes}; set {most + 1}")
        sizes = {split: len(nodes) for split, nodes in source.where.items()}
        super().__init__(sizes, np.ones(sizes["train"], bool), source.notes)
        self.data, self.num_classes = data, num_classes
        self._where, self._classes = source.where, source.classes
        n, e = len(source.x), len(source.senders)
        self.facts = {"features": source.x.shape[1], "num_classes": num_classes}
        graph = graphs_tuple(
            x=source.x,
            id=np.zeros(n, np.int32),
            senders=source.senders,
            receivers=source.receivers,
            n_node=np.array([n], np.int32),
            n_edge=np.array([e], np.int32),
        )
        self._graphs: Any = jax.tree.map(lambda x: x[None], padded(graph, n + 1, e))
        self._batches = {split: self._whole(split) for split in source.where}

    @property
    def fields(self) -> dict[str, Field | GraphsField]:
        (_, n, features), (_, e) = self._graphs.nodes["x"].shape, self._graphs.senders.shape
        return {"graphs": GraphsField(n, e, 2, features), **examples(n)}

    def shapes(self, rows: int) -> dict[str, Any]:
        return {name: field.shapes(rows) for name, field in self.fields.items()}

    def steps_per_epoch(self, batch_size: int) -> int:
        return 1

    def axis(self, batch_size: int) -> int:
        return 1

    def batch(self, split: str, indices: Int[np.ndarray, " b"], share: slice = slice(None)) -> Batch:
        """The whole graph, whichever nodes are asked for."""
        return self._batches[split]

    def train(self, batch_size: int, **_) -> Iterator[Batch]:
        n = self._graphs.nodes["x"].shape[1]
        batch = {**self._batches["train"], "valid": (np.arange(n) < n - 1)[None]}
        while True:
            yield batch

    def evaluate(self, split: str, batch_size: int, **_) -> Iterator[Batch]:
        yield self._batches[split]

    def called(self, split: str) -> tuple[str, list[str]]:
        """Their places in the graph."""
        return "node", [str(i) for i in self._where[split]]

    def content(self, split: str) -> list[np.ndarray]:
        return jax.tree.leaves(self._batches[split])

    def labels(self, split: str) -> Int[np.ndarray, " m"]:
        return self._classes[self._where[split]]

    def _whole(self, split: str) -> Batch:
        nodes = self._where[split]
        batch: Batch = {name: field.rows(1) for name, field in self.fields.items()} | {"graphs": self._graphs}
        batch["class"][0, nodes], batch["index"][0, nodes] = self._classes[nodes], np.arange(len(nodes))
        batch["class_known"][0, nodes] = batch["valid"][0, nodes] = True
        return batch
