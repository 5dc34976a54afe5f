"""Something for a model to eat: random, small, and such that every fault shows."""

from typing import Any

import numpy as np

from kdjax.models.inputs import GraphInput

# Of two packs of 12 nodes: which graph a node is of (4: padding), and the edges. There are a graph of one node, nodes
# without neighbours, nodes with an edge to themselves, and graphs that are padding.
GRAPHS = ((0, 0, 0, 0, 0, 1, 2, 2, 2, 4, 4, 4), (0, 1, 1, 1, 1, 1, 1, 3, 3, 3, 3, 4))
EDGES = (
    ((0, 1), (1, 0), (0, 2), (2, 2), (4, 2), (1, 4), (4, 4), (2, 1), (6, 8), (8, 6), (8, 8), (11, 11), (11, 11)),
    ((0, 0), (1, 2), (3, 2), (5, 2), (2, 6), (6, 6), (4, 1), (6, 1), (1, 1), (5, 3), (3, 5), (11, 11), (11, 11)),
)
VALID = ((True, True, True, False), (True, True, False, True))


def example(module: Any) -> tuple[np.ndarray, ...]:
    """An array for each of `module.inputs`."""
    found = packs(module.input_spec) if "graph" in module.inputs else {"image": image(module)}
    return tuple(found[name] for name in module.inputs)


def image(module: Any) -> np.ndarray:
    """[1, h, w, c], normalised."""
    sides = getattr(getattr(module, "options", None), "image_hw", None)  # an input_spec is of squares alone
    shape = (1, *sides, 3) if sides else module.input_spec.example()["image"].shape
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def packs(spec: GraphInput) -> dict[str, np.ndarray]:
    draw, graph, edges = np.random.default_rng(0), np.array(GRAPHS, np.int32), np.array(EDGES, np.int32)
    return {
        "x": draw.normal(size=(*graph.shape, spec.features)).astype(np.float32),
        "id": draw.integers(0, max(1, spec.num_ids), graph.shape, np.int32),
        "senders": edges[..., 0],
        "receivers": edges[..., 1],
        "graph": graph,
        "valid": np.array(VALID),
    }
