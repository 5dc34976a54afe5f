"""Random graphs, in packs or alone, and other orders and divisions of the same graphs."""

import jax
import jraph
import numpy as np

from convert.example import example
from kdjax.distill.taps import PACKS


def eaten(model) -> tuple:
    """A pack of eight graphs: isolated nodes, self-loops, graphs without nodes, padding."""
    return tuple(map(jax.device_put, example(model)))


def over_packs(function):
    """`function` of one pack, mapped over packs as a step does it."""
    return jax.vmap(function, axis_name=PACKS)


def random_graphs(count: int, features: int = 10, num_ids: int = 0, seed: int = 0) -> list[jraph.GraphsTuple]:
    """With self-loops, nodes without edges, a graph of one node and no edge, and one whose nodes share an id."""
    rng = np.random.default_rng(seed)
    graphs = []
    for i in range(count):
        n = 1 if i == 1 else int(rng.integers(3, 9))
        pairs = np.array([(a, b) for a in range(n) for b in range(n) if a != n - 1 != b])  # the last stays alone
        pairs = pairs[np.sort(rng.permutation(len(pairs))[: 2 * n])] if n > 1 else np.zeros((0, 2))
        ids = rng.integers(0, num_ids, n) if num_ids else np.zeros(n)
        x = rng.normal(size=(n, features)).astype(np.float32)
        ids = np.full(n, num_ids - 1) if num_ids and i == 2 else ids
        graphs.append(graph(x, ids, *pairs.astype(np.int32).T))
    return graphs


def graph(x, ids, senders, receivers) -> jraph.GraphsTuple:
    return jraph.GraphsTuple(
        nodes={"x": np.asarray(x, np.float32), "id": np.asarray(ids, np.int32)},
        edges=None,
        senders=np.asarray(senders, np.int32),
        receivers=np.asarray(receivers, np.int32),
        n_node=np.array([len(x)], np.int32),
        n_edge=np.array([len(senders)], np.int32),
        globals=None,
    )


def packed(packs: list[list[jraph.GraphsTuple]], nodes: int = 0, edges: int = 0, graphs: int = 0) -> jraph.GraphsTuple:
    """Each list of graphs is a pack, padded to at least so many nodes, edges and graphs; graphs that a pack lacks have
    no nodes and stand before the padding."""
    n = max(nodes, *(sum(len(g.nodes["x"]) for g in pack) + 1 for pack in packs))
    e = max(edges, *(sum(len(g.senders) for g in pack) for pack in packs), 1)
    count = max(graphs, *map(len, packs))
    empty = graph(np.zeros((0, packs[0][0].nodes["x"].shape[1])), [], [], [])
    full = [jraph.batch_np([*pack, *[empty] * (count - len(pack))]) for pack in packs]
    padded = [jraph.pad_with_graphs(each, n, e, count + 1) for each in full]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *padded)


def nodes_of(graphs: jraph.GraphsTuple) -> np.ndarray:
    """The graph of each node of packs [p, n]."""
    return np.stack([np.repeat(np.arange(len(sizes)), sizes) for sizes in np.asarray(graphs.n_node)])


def permuted(single: jraph.GraphsTuple, order: np.ndarray) -> jraph.GraphsTuple:
    """The same graph, its nodes in another order: the new node i is the old `order[i]`."""
    place = np.argsort(order).astype(np.int32)
    nodes = {name: value[order] for name, value in single.nodes.items()}
    return single._replace(nodes=nodes, senders=place[single.senders], receivers=place[single.receivers])
