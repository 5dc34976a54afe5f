"""Windows of CAN messages as graphs: ids are the nodes, and an edge leads from each message's id to the next one's.

Three generations of preprocessing, as the published detectors were trained on (KD-GAT, AD-KD, DQN-Fusion). In all of
them a window of `w` messages is the graph of the ids of these and of the one that follows, sorted, and of its distinct
pairs (id of a message, id of the next), sorted. Only messages of the window count for the features of a node; one that
is only the last target has zeros.

    A   window 50   [id, mean of the 8 bytes, count]; the id is a number among the features
    B   window 100  [mean of the 8 bytes / 255, count scaled to 0..1 within the graph, last place / (w - 1)] beside the
                    index of the id; ids that the mapping lacks are one node. A node that is only a target has index 0
    C   window 100  as B, but the mapping knows all ids of the training logs, sorted, and every node keeps its index
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int32, Int64

from kdjax.config import ConfigError, nearest
from kdjax.data.can.messages import Messages
from kdjax.data.graphs.packs import Graphs, joined

WINDOWS = {"A": 50, "B": 100, "C": 100}
FEATURES = 10
BLOCK = 1 << 15  # messages at a time: what a block needs stays in the cache


@dataclass(frozen=True)
class Mapping:
    """Index of each known CAN id; all others have the last index."""

    ids: tuple[int, ...]

    @property
    def num_ids(self) -> int:
        return len(self.ids) + 1

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(np.array(self.ids, np.int64))
        return np.array(self.ids, np.int64)[order], order

    def __call__(self, ids: Int64[np.ndarray, " n"]) -> Int32[np.ndarray, " n"]:
        known, order = self._sorted
        if not len(known):
            return np.zeros(len(ids), np.int32)
        at = np.minimum(np.searchsorted(known, ids), len(known) - 1)
        return np.where(known[at] == ids, order[at], len(known)).astype(np.int32)

    @staticmethod
    def build(logs: Sequence[Messages], generation: str = "B") -> "Mapping":
        """From the training logs in their order.

        B: in order of appearance the ids of messages that are no attack, then the ids that follow such messages (which
        may be an attack's). C: all ids, sorted.
        """
        check(generation)
        if generation == "A":
            return Mapping(())
        if generation == "C":
            return Mapping(tuple(np.unique(np.concatenate([log.id for log in logs])).tolist()))
        normal = [log.id[log.label != 1] for log in logs]
        after = [log.id[1:][log.label[:-1] != 1] for log in logs]
        ids, first = np.unique(np.concatenate(normal + after), return_index=True)
        return Mapping(tuple(ids[np.argsort(first)].tolist()))

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps({"ids": list(self.ids)}) + "\n")

    @staticmethod
    def load(path: str | Path) -> "Mapping":
        return Mapping(tuple(json.loads(Path(path).read_text())["ids"]))


def graphs(
    messages: Messages,
    generation: str = "B",
    window: int = 0,
    stride: int = 0,
    mapping: Mapping | None = None,
    file: int = 0,
) -> Graphs:
    """The graphs of one log, which has the number `file`; 0 is the generation's own window, and a stride of one window.

    A log of up to `window` messages has no graph, since the last message is only a target.
    """
    check(generation, window, stride)
    window = window or WINDOWS[generation]
    stride = stride or window
    if generation != "A" and mapping is None:
        raise ConfigError(f"generation {generation} needs a mapping of ids; build it from the training logs")
    index = mapping(messages.id) if mapping is not None and generation != "A" else None
    count = max(0, (len(messages) - 1 - window) // stride + 1)
    per_block = max(1, BLOCK // window)
    parts = []
    for first in range(0, max(count, 1), per_block):
        starts = np.arange(first, min(first + per_block, count)) * stride
        parts.append(_block(messages, index, starts, window, generation, file))
    return joined(parts)


def keepsake(mapping: Mapping, generation: str, window: int = 0, stride: int = 0, **reading: str) -> dict[str, Any]:
    """What cuts other logs as these were cut, for JSON: the arguments of `graphs`, the known ids in
    the order of their indices, and how logs are read."""
    window = window or WINDOWS[generation]
    cut = {"generation": generation, "window": window, "stride": stride or window}
    return {**cut, "reading": reading, "ids": list(mapping.ids)}


def check(generation: str, window: int = 0, stride: int = 0) -> None:
    faults = [] if generation in WINDOWS else [f"no generation {generation!r}; {nearest(generation, WINDOWS)}"]
    sizes = {"window": window, "stride": stride}
    faults += [f"{k}: expected messages, or 0 for the generation's own, found {n}" for k, n in sizes.items() if n < 0]
    if faults:
        raise ConfigError("\n  ".join(faults))


def _block(
    messages: Messages,
    index: Int32[np.ndarray, " n"] | None,
    starts: Int64[np.ndarray, " g"],
    window: int,
    generation: str,
    number: int,
) -> Graphs:
    """The graphs of the windows that begin at `starts`; g windows of w messages have g x (w + 1) places."""
    g, w = len(starts), window
    places = starts[:, None] + np.arange(w + 1)[None, :]
    ids = messages.id[places]
    kinds = ids if index is None else index[places].astype(np.int64)

    # Sorted by (id, place), the places of a node lie side by side, and node by node in the order wanted.
    order = np.sort(kinds * (w + 1) + np.arange(w + 1)[None, :], axis=1)
    kind, place = np.divmod(order, w + 1)
    new = np.ones((g, w + 1), bool)
    new[:, 1:] = kind[:, 1:] != kind[:, :-1]
    begins = np.flatnonzero(new)
    rank = np.cumsum(new, axis=1) - 1  # of the node within its graph
    node = np.empty((g, w + 1), np.int64)  # of each place, within its graph
    np.put_along_axis(node, place, rank, axis=1)
    nodes = rank[:, -1] + 1 if g else np.zeros(0, np.int64)
    first_node = np.concatenate([[0], np.cumsum(nodes)])
    n = int(first_node[-1])

    senders, receivers, edges = _edges(node)
    source = (node[:, :-1] + first_node[:-1, None]).ravel()
    count = np.bincount(source, minlength=n).astype(np.float64)
    seen = count > 0
    data = messages.data[places[:, :-1]].reshape(-1, 8)
    total = np.stack([np.bincount(source, data[:, k], n) for k in range(8)], axis=1)
    mean = total / np.maximum(count, 1)[:, None]
    name = ids[np.arange(g)[:, None], place].ravel()[begins]  # unknown ids that share a node: the first of them
    if index is None:
        features = [np.where(seen, name, 0)[:, None], mean, count[:, None]]
        known = np.zeros(n, np.int32)
    else:
        last = np.full(n, 0.0)
        if n:
            within = np.where(place < w, place, 0).ravel()
            last = np.maximum.reduceat(within, begins) / max(w - 1, 1)
        features = [mean / 255, _scaled(count, first_node)[:, None], last[:, None]]
        mapped = seen if generation == "B" else np.ones(n, bool)
        known = np.where(mapped, kind.ravel()[begins], 0).astype(np.int32)
    label = messages.label[places[:, :-1]].max(axis=1, initial=-1).astype(np.int32)
    return Graphs(
        x=np.concatenate(features, axis=1).astype(np.float32),
        id=known,
        name=name,
        senders=senders.astype(np.int32),
        receivers=receivers.astype(np.int32),
        label=label,
        file=np.full(g, number, np.int32),
        begin=messages.time[starts],
        first_node=first_node,
        first_edge=np.concatenate([[0], np.cumsum(edges)]),
    )


def _edges(
    node: Int64[np.ndarray, "g m"],
) -> tuple[Int64[np.ndarray, " e"], Int64[np.ndarray, " e"], Int64[np.ndarray, " g"]]:
    """Senders and receivers: each node and the one after it, every pair once in a graph; how many each graph has."""
    pairs = np.sort(node[:, :-1] * node.shape[1] + node[:, 1:], axis=1)
    new = np.ones(pairs.shape, bool)
    new[:, 1:] = pairs[:, 1:] != pairs[:, :-1]
    senders, receivers = np.divmod(pairs[new], node.shape[1])
    return senders, receivers, new.sum(axis=1)


def _scaled(count: Float64[np.ndarray, " n"], first_node: Int64[np.ndarray, " m"]) -> Float64[np.ndarray, " n"]:
    """Each count as its place between the smallest and the largest of its graph, 0 to 1."""
    if not len(count):
        return count
    least, most = np.minimum.reduceat(count, first_node[:-1]), np.maximum.reduceat(count, first_node[:-1])
    graph = np.repeat(np.arange(len(least)), np.diff(first_node))
    return (count - least[graph]) / np.maximum(most - least, 1)[graph]
