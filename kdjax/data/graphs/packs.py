"""Graphs: many of them in flat arrays, and their batches."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Protocol, runtime_checkable

import jax
import jraph
import numpy as np
from jaxtyping import Float32, Float64, Int, Int32, Int64

from kdjax.config import ConfigError, Data
from kdjax.data.dataset import Batch, Dataset
from kdjax.data.fields import Field, GraphsField, examples, graphs_tuple
from kdjax.data.source import SPLITS, open_source

KEEPSAKE = "windows.json"  # beside a model's weights: how logs become its graphs
ROUND = 64  # nodes and edges of a bucket are a multiple of it
SAMPLES = 300  # packs that are tried to choose the buckets


@dataclass(frozen=True)
class Graphs:
    """Graphs one after the other. The nodes of graph i are `first_node[i]:first_node[i + 1]`, and so with its edges."""

    x: Float32[np.ndarray, "n f"]  # node features
    id: Int32[np.ndarray, " n"]  # index into an embedding of ids; 0 where there is none
    name: Int64[np.ndarray, " n"]  # what a person calls the node: the CAN id
    senders: Int32[np.ndarray, " e"]  # places within the graph
    receivers: Int32[np.ndarray, " e"]
    label: Int32[np.ndarray, " g"]  # 0 normal, 1 attack; -1 unknown
    file: Int32[np.ndarray, " g"]  # which of the files it comes from
    begin: Float64[np.ndarray, " g"]  # seconds: when its window begins
    first_node: Int64[np.ndarray, " g+1"]
    first_edge: Int64[np.ndarray, " g+1"]

    def __len__(self) -> int:
        return len(self.label)

    def sizes(self) -> Int64[np.ndarray, "g 2"]:
        """Nodes and edges of each graph."""
        return np.stack([np.diff(self.first_node), np.diff(self.first_edge)], axis=1)


def joined(parts: Sequence[Graphs]) -> Graphs:
    """The graphs of all parts, one after the other."""

    def offsets(name: str) -> Int64[np.ndarray, " n"]:
        counts = [np.diff(getattr(part, name)) for part in parts]
        return np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)

    flat = ("x", "id", "name", "senders", "receivers", "label", "file", "begin")
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in flat}
    return Graphs(**arrays, first_node=offsets("first_node"), first_edge=offsets("first_edge"))


def pack(graphs: Graphs, chosen: Int[np.ndarray, " g"], nodes: int, edges: int) -> jraph.GraphsTuple:
    """One pack of the graphs at these places, a graph without nodes for -1, padded to so many nodes and edges.

    The nodes are {"x": float32 [n, f], "id": int32 [n]}; of the g + 1 graphs the last is the padding, with one node or
    more.
    """
    real = np.maximum(chosen, 0)
    n_node = np.where(chosen >= 0, graphs.first_node[real + 1] - graphs.first_node[real], 0)
    n_edge = np.where(chosen >= 0, graphs.first_edge[real + 1] - graphs.first_edge[real], 0)
    at = _ranges(graphs.first_node[real], n_node)
    lines = _ranges(graphs.first_edge[real], n_edge)
    shift = np.repeat(np.cumsum(n_node) - n_node, n_edge)
    disjoint = graphs_tuple(
        x=graphs.x[at],
        id=graphs.id[at],
        senders=graphs.senders[lines] + shift,
        receivers=graphs.receivers[lines] + shift,
        n_node=n_node.astype(np.int32),
        n_edge=n_edge.astype(np.int32),
    )
    return padded(disjoint, nodes, edges)


def padded(graphs: jraph.GraphsTuple, nodes: int, edges: int) -> jraph.GraphsTuple:
    """With one more graph, so that there are so many nodes and edges; indices are int32, which jraph makes int64."""
    graphs = jraph.pad_with_graphs(graphs, nodes, edges, len(graphs.n_node) + 1)
    return graphs._replace(senders=graphs.senders.astype(np.int32), receivers=graphs.receivers.astype(np.int32))


def _ranges(first: Int[np.ndarray, " g"], counts: Int[np.ndarray, " g"]) -> Int[np.ndarray, " n"]:
    """first[0], first[0] + 1, ... (counts[0] of them), first[1], ..."""
    return np.arange(counts.sum()) + np.repeat(first - (np.cumsum(counts) - counts), counts)


@runtime_checkable
class GraphSource(Protocol):
    """Graphs to train on, and the test sets that the data bring, by name; there may be none."""

    train: Graphs
    test: dict[str, Graphs]
    num_ids: int  # 0 where `id` says nothing
    notes: Sequence[str]


def build(data: Data, parts: int = 1) -> "GraphSet":
    """The data set of a reader of graphs; `buckets` and `normal_only` among the options are not for the reader."""
    options = dict(data.options)
    own = {k: options.pop(k) for k in ("buckets", "normal_only") if k in options}
    try:
        source: GraphSource = _opened(data.source, json.dumps(options, default=str))
        part = dealt(source.train, data.split if not source.test else (*data.split[:2], 0.0), data.split_seed)
        where = {split: np.flatnonzero(part == i) for i, split in enumerate(SPLITS)}
        groups = ["test"] * len(where["test"])
        if source.test:
            ends = np.cumsum([len(source.train), *map(len, source.test.values())])
            where["test"] = np.arange(ends[0], ends[-1])
            groups = [_spoken(name) for name, graphs in source.test.items() for _ in range(len(graphs))]
        if empty := [split for split, indices in where.items() if not len(indices)]:
            raise ConfigError(f"no graph is left for {', '.join(empty)}: {len(source.train)} windows are too few")
        graphs = joined([source.train, *source.test.values()])
        graph_set = GraphSet(data, graphs, where, groups, source.notes, parts=parts, **own)
        graph_set.facts = {"num_ids": source.num_ids, "features": graphs.x.shape[1]}
        graph_set.keepsakes = {KEEPSAKE: keepsake} if (keepsake := getattr(source, "keepsake", None)) else {}
        return graph_set
    except ConfigError as error:
        raise ConfigError(f"the data {data.source!r} cannot be used:\n  {error}") from error


def _spoken(name: str) -> str:
    """ "test_01_known_vehicle_known_attack" -> "known vehicle known attack" """
    return re.sub(r"^test_?\d*_?", "", name).replace("_", " ") or name


@lru_cache(maxsize=2)
def _opened(name: str, options: str) -> GraphSource:
    """Stages that read the same logs share them."""
    return open_source(name, json.loads(options))


def dealt(graphs: Graphs, shares: tuple[float, ...], seed: int) -> Int[np.ndarray, " g"]:
    """The split of each graph, as a place in `SPLITS`; graphs that are alike to the last bit are in the same."""
    bounds = np.cumsum(shares) / sum(shares)
    drawn, salt = np.empty(len(graphs)), seed.to_bytes(8, "little", signed=True)
    for i in range(len(graphs)):
        nodes = slice(*graphs.first_node[i : i + 2])
        content = graphs.x[nodes].tobytes() + graphs.name[nodes].tobytes()
        digest = hashlib.blake2b(content, digest_size=8, salt=salt)
        drawn[i] = int.from_bytes(digest.digest(), "little") / 2**64
    return np.minimum(np.searchsorted(bounds, drawn, side="right"), len(shares) - 1)


class GraphSet(Dataset):
    """Batches of p = `parts` packs, disjoint unions of graphs that nothing reaches across: `graphs`, as `pack` makes
    them with the packs as their first axis, and for each of a pack's graphs, the last of which is padding:

    class int32 [p, g], 1 for an attack, -1 where it is not known; class_known bool [p, g]; valid bool [p, g], False for
    padding; index int32 [p, g], the place in the split, -1 for padding.

    Packs are padded to one of a few sizes, the buckets, so that a step is compiled for each of them once.
    """

    item = "graph"

    def __init__(
        self,
        data: Data,
        graphs: Graphs,
        where: Mapping[str, Int[np.ndarray, " n"]],
        groups: Sequence[str],
        notes: Sequence[str] = (),
        *,
        parts: int = 1,
        buckets: int = 2,
        normal_only: bool = False,
    ):
        """With `normal_only` only graphs without an attack are dealt out for training."""
        self.data, self.graphs, self.parts = data, graphs, parts
        self.num_classes, self._where = 2, dict(where)
        labels = graphs.label[where["train"]]
        known = np.random.default_rng(data.split_seed).permutation(len(labels)) < round(data.labelled * len(labels))
        super().__init__({k: len(v) for k, v in where.items()}, known & (labels >= 0), notes, groups=groups)
        if normal_only:
            self.trained_on = np.flatnonzero(labels == 0)
        if not len(self.trained_on):
            raise ConfigError("no graph is left to train on: normal_only needs windows without an attack")
        self._sizes = graphs.sizes()
        sizes = self._sizes[where["train"]][self.trained_on]
        self.buckets, fill = _buckets(sizes, data.batch_size // parts, buckets)
        told = " or ".join(f"{n} nodes and {e} edges" for n, e in self.buckets)
        self.notes = (*self.notes, f"packs of {told}, on average {fill:.0%} full")

    def axis(self, batch_size: int) -> int:
        return self.parts

    @property
    def fields(self) -> dict[str, Field | GraphsField]:
        """Of the largest bucket."""
        g = self.data.batch_size // self.parts + 1
        return {"graphs": GraphsField(*self.buckets[-1], g, self.graphs.x.shape[1]), **examples(g)}

    def shapes(self, rows: int) -> dict[str, Any]:
        return {name: field.shapes(rows) for name, field in self.fields.items()}

    def order(self, split: str) -> Int[np.ndarray, " n"]:
        """Mixed, so that the packs of a log whose attacks come in bursts are of one size too."""
        return np.random.default_rng(0).permutation(self.sizes[split])

    def batch(self, split: str, indices: Int[np.ndarray, " b"], share: slice = slice(None)) -> Batch:
        rows = indices.reshape(self.parts, -1)
        at = np.where(rows >= 0, self._where[split][rows], -1)
        nodes, edges = self._bucket(at)
        first = share.start or 0
        mine = slice(first * self.parts // len(indices), (share.stop or len(indices)) * self.parts // len(indices))
        packs = [pack(self.graphs, row, nodes, edges) for row in at[mine]]
        rows, at = (np.pad(x[mine], ((0, 0), (0, 1)), constant_values=-1) for x in (rows, at))
        known = (rows >= 0) & self._labelled[split][rows]
        return {
            "graphs": jax.tree.map(lambda *leaves: np.stack(leaves), *packs),
            "class": np.where(known, self.graphs.label[at], -1).astype(np.int32),
            "class_known": known,
            "valid": rows >= 0,
            "index": rows.astype(np.int32),
        }

    def content(self, split: str) -> list[np.ndarray | bytes]:
        return [self._digest, self._where[split]]

    @cached_property
    def _digest(self) -> bytes:
        """Of all graphs, whichever split they are in."""
        whole = hashlib.blake2b(digest_size=16)
        for array in vars(self.graphs).values():
            whole.update(np.ascontiguousarray(array).view(np.uint8).data)
        return whole.digest()

    def labels(self, split: str) -> Int[np.ndarray, " n"]:
        return self.graphs.label[self._where[split]]

    def called(self, split: str) -> tuple[str, list[str]]:
        """When each window begins, in seconds."""
        return "begin", [f"{begin:.6f}" for begin in self.graphs.begin[self._where[split]]]

    def graph(self, split: str, i: int) -> dict[str, np.ndarray]:
        """One graph: "x", "name", "senders", "receivers", "label"."""
        at, g = int(self._where[split][i]), self.graphs
        nodes, edges = slice(*g.first_node[at : at + 2]), slice(*g.first_edge[at : at + 2])
        arrays = {"x": g.x[nodes], "name": g.name[nodes], "senders": g.senders[edges], "receivers": g.receivers[edges]}
        return {**arrays, "label": g.label[at]}

    def _bucket(self, at: Int[np.ndarray, "p g"]) -> tuple[int, int]:
        """The smallest bucket that every pack of the batch fits in; beyond the largest, as many times half as much
        again as are needed."""
        sizes = np.where((at >= 0)[..., None], self._sizes[at], 0).sum(axis=1).max(axis=0)
        nodes, edges = next((b for b in self.buckets if sizes[0] < b[0] and sizes[1] <= b[1]), self.buckets[-1])
        while sizes[0] >= nodes or sizes[1] > edges:
            nodes, edges = _up(1.5 * nodes), _up(1.5 * edges)
        return nodes, edges


def _buckets(sizes: Int[np.ndarray, "n 2"], g: int, count: int) -> tuple[list[tuple[int, int]], float]:
    """(nodes, edges) of so many buckets for packs of g graphs, the largest fitting all of many that are drawn; and the
    share of the nodes that are no padding."""
    rng = np.random.default_rng(0)
    totals = sizes[rng.integers(len(sizes), size=(SAMPLES, g))].sum(axis=1)
    levels = [np.quantile(totals, (i + 1) / count, axis=0) for i in range(count)]
    buckets = sorted({(_up(nodes + 1), _up(edges)) for nodes, edges in levels})
    used = [next(n for n, e in buckets if nodes < n and edges <= e) for nodes, edges in totals]
    return buckets, float(totals[:, 0].sum() / np.sum(used))


def _up(size: float) -> int:
    return int(-(-size // ROUND)) * ROUND
