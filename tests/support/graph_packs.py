"""Random packs of graphs, and other orders and divisions of the same graphs."""

import jax.numpy as jnp
import numpy as np

from convert.example import example

INPUTS = ("x", "id", "senders", "receivers", "graph", "valid")


def eaten(model) -> tuple:
    """Two packs of four graphs: isolated nodes, self-loops, padding."""
    return tuple(map(jnp.asarray, example(model)))


def random_graphs(count: int, features: int = 10, num_ids: int = 0, seed: int = 0) -> list[dict]:
    """With self-loops, nodes without edges, a graph of one node and no edge, and one whose nodes share an id."""
    rng = np.random.default_rng(seed)
    graphs = []
    for i in range(count):
        n = 1 if i == 1 else int(rng.integers(3, 9))
        pairs = np.array([(a, b) for a in range(n) for b in range(n) if a != n - 1 != b])  # the last stays alone
        pairs = pairs[np.sort(rng.permutation(len(pairs))[: 2 * n])] if n > 1 else np.zeros((0, 2))
        ids = rng.integers(0, num_ids, n) if num_ids else np.zeros(n)
        graphs.append(
            {
                "x": rng.normal(size=(n, features)).astype(np.float32),
                "id": np.full(n, num_ids - 1) if num_ids and i == 2 else ids,
                "senders": pairs[:, 0].astype(int),
                "receivers": pairs[:, 1].astype(int),
            }
        )
    return graphs


def packed(packs: list[list[dict]], nodes: int = 0, edges: int = 0, graphs: int = 0) -> tuple:
    """The inputs of a model: each list of graphs is a pack, padded to at least so many nodes, edges and graphs."""
    n = max(nodes, *(sum(len(g["x"]) for g in pack) + 1 for pack in packs))
    e = max(edges, *(sum(len(g["senders"]) for g in pack) for pack in packs), 1)
    many = max(graphs, *map(len, packs))
    features = packs[0][0]["x"].shape[1]
    x = np.zeros((len(packs), n, features), np.float32)
    ids, of = np.zeros((len(packs), n), np.int32), np.full((len(packs), n), many, np.int32)
    senders, receivers = (np.full((len(packs), e), n - 1, np.int32) for _ in range(2))
    valid = np.zeros((len(packs), many), bool)
    for p, pack in enumerate(packs):
        node = edge = 0
        for g, one in enumerate(pack):
            stop, last = node + len(one["x"]), edge + len(one["senders"])
            x[p, node:stop], ids[p, node:stop], of[p, node:stop] = one["x"], one["id"], g
            senders[p, edge:last], receivers[p, edge:last] = one["senders"] + node, one["receivers"] + node
            valid[p, g] = True
            node, edge = stop, last
    return x, ids, senders, receivers, of, valid


def permuted(graph: dict, order: np.ndarray) -> dict:
    """The same graph, its nodes in another order: the new node i is the old `order[i]`."""
    place = np.argsort(order)
    moved = {name: graph[name][order] for name in ("x", "id")}
    return moved | {name: place[graph[name]] for name in ("senders", "receivers")}
