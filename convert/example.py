"""Something for a model to eat: random, small, and such that every fault shows."""

from typing import Any

import jax
import jraph
import numpy as np

from kdjax.models.inputs import GraphInput

# How many nodes each graph of a pack has, and its edges. There are a graph of one node, nodes without neighbours, nodes
# with an edge to themselves, and graphs without nodes.
GRAPHS: tuple[tuple[int, tuple[tuple[int, int], ...]], ...] = (
    (5, ((0, 1), (1, 0), (0, 2), (2, 2), (4, 2), (1, 4), (4, 4), (2, 1))),
    (1, ()),
    (3, ((0, 2), (2, 0), (2, 2))),
    (0, ()),
    (1, ((0, 0),)),
    (6, ((0, 1), (2, 1), (4, 1), (1, 5), (5, 5), (3, 0), (5, 0), (0, 0), (4, 2), (2, 4))),
    (0, ()),
    (4, ()),
)
PADDING = (4, 3)  # nodes and edges


def example(module: Any) -> tuple[Any, ...]:
    """One for each of `module.inputs`."""
    return tuple(pack(spec) if isinstance(spec, GraphInput) else image(spec) for spec in module.inputs.values())


def shapes(module: Any) -> tuple[Any, ...]:
    """Of the smallest such, for what only has to be traced."""

    def of(spec: Any) -> Any:
        row = lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype)  # noqa: E731
        return jax.tree.map(row, spec.shape(1)) if spec.packed else spec.shape(1)

    return tuple(map(of, module.inputs.values()))


def image(spec: Any) -> np.ndarray:
    """[1, h, w, c], normalised."""
    return np.random.default_rng(0).normal(size=spec.shape(1).shape).astype(np.float32)


def pack(spec: GraphInput) -> jraph.GraphsTuple:
    draw = np.random.default_rng(0)
    singles = [_graph(draw, spec, n, np.array(edges, np.int32).reshape(-1, 2)) for n, edges in GRAPHS]
    pack = jraph.batch_np(singles)
    nodes, edges = (int(sizes.sum()) + more for sizes, more in zip((pack.n_node, pack.n_edge), PADDING, strict=True))
    return jraph.pad_with_graphs(pack, nodes, edges, len(GRAPHS) + 1)


def _graph(draw: np.random.Generator, spec: GraphInput, n: int, edges: np.ndarray) -> jraph.GraphsTuple:
    nodes = {
        "x": draw.normal(size=(n, spec.features)).astype(np.float32),
        "id": draw.integers(0, max(1, spec.num_ids), n, np.int32),
    }
    ends = {"senders": edges[:, 0], "receivers": edges[:, 1]}
    sizes = {"n_node": np.array([n], np.int32), "n_edge": np.array([len(edges)], np.int32)}
    return jraph.GraphsTuple(nodes=nodes, edges=None, globals=None, **ends, **sizes)
