"""Something for a model to eat: random, small, and such that every fault shows."""

from typing import Any

import jax
import jraph
import numpy as np

from kdjax.models.inputs import GraphInput, Input, TokenMaskInput, TokensInput

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
TOKENS = 128  # of the longest text, if a model takes as many


def example(module: Any) -> tuple[Any, ...]:
    """One for each of `module.inputs`."""
    return tuple(map(_value, module.inputs.values()))


def _value(spec: Input) -> Any:
    if isinstance(spec, GraphInput):
        return pack(spec)
    if isinstance(spec, TokensInput):
        return np.random.default_rng(0).integers(0, spec.vocab_size, (3, min(spec.length, TOKENS)), np.int32)
    return mask(spec) if isinstance(spec, TokenMaskInput) else image(spec)


def shapes(module: Any) -> tuple[Any, ...]:
    """Of the smallest such, for what only has to be traced."""

    def of(spec: Any) -> Any:
        row = lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype)  # noqa: E731
        return jax.tree.map(row, spec.shape(1)) if spec.packed else spec.shape(1)

    return tuple(map(of, module.inputs.values()))


def image(spec: Any) -> np.ndarray:
    """[1, h, w, c], normalised."""
    return np.random.default_rng(0).normal(size=spec.shape(1).shape).astype(np.float32)


def mask(spec: TokenMaskInput) -> np.ndarray:
    """Of three texts: one without padding, one half as long, and one of two tokens."""
    n = min(spec.length, TOKENS)
    return (np.arange(n) < np.array([[n], [max(1, n // 2)], [min(2, n)]])).astype(np.int32)


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
