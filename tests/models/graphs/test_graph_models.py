"""What holds for every model of graphs: it knows neither padding, nor packs, nor the order of nodes and edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import registry
from tests.models.graphs.test_can_gat import SMALL as GAT
from tests.models.graphs.test_can_vgae import SMALL as VGAE
from tests.support.graph_packs import INPUTS, packed, permuted, random_graphs
from tests.support.quick import QUICK

FUSED = {"vgae": {"name": "can_vgae", "options": VGAE}, "gat": {"name": "can_gat", "options": GAT}}
CASES = {
    "gat": ("can_gat", GAT),
    "gat_lstm": ("can_gat", GAT | {"variant": "a_student"}),
    "gatv2": ("can_gat", GAT | {"conv": "gatv2"}),
    "vgae": ("can_vgae", VGAE),
    "node_gat": ("node_gat", {"features": 5, "hidden": (4,), "heads": (2, 3)}),
    "node_mlp": ("node_mlp", {"features": 5, "hidden": (4,)}),
    "fusion": ("can_fusion", FUSED | {"agent": {"hidden": 6, "layers": 1}}),
}


def prepared(case):
    """A model, its jitted application to graphs in packs, and five graphs."""
    name, options = CASES[case]
    model, graphs = registry.get("models", name)(**options), random_graphs(5, 5, 9)
    assert model.inputs == INPUTS
    inputs = tuple(map(jnp.asarray, packed([graphs])))
    variables = jax.jit(model.init, compiler_options=QUICK)(jax.random.key(0), *inputs)
    apply = jax.jit(model.apply, compiler_options=QUICK)

    def run(packs, orders=None, **sizes):
        """Of each graph, in order, its part of every endpoint; nodes as they were before `orders`."""
        inputs = packed(packs, **sizes)
        out = {k: np.asarray(v) for k, v in apply(variables, *map(jnp.asarray, inputs)).items()}
        assert all(np.isfinite(v).all() for v in out.values())
        graph, found = inputs[4], []
        for p, g in [(p, g) for p, pack in enumerate(packs) for g in range(len(pack))]:
            nodes = np.flatnonzero(graph[p] == g)
            nodes = nodes if orders is None else nodes[np.argsort(orders[len(found)])]
            found.append({k: v[p, nodes] if v.shape[1] == graph.shape[1] else v[p, g] for k, v in out.items()})
        return found

    return run, graphs


@pytest.mark.parametrize("case", CASES)
def test_neither_padding_nor_packs_nor_order_matter(case):
    run, graphs = prepared(case)
    plain = run([graphs])
    orders = [np.random.default_rng(i).permutation(len(graph["x"])) for i, graph in enumerate(graphs)]
    moved = [permuted(graph, order) for graph, order in zip(graphs, orders, strict=True)]
    for graph in moved:
        edges = np.random.default_rng(9).permutation(len(graph["senders"]))
        graph["senders"], graph["receivers"] = graph["senders"][edges], graph["receivers"][edges]
    divided = run([graphs[:2], graphs[2:]], nodes=60, edges=90, graphs=6)
    reordered = run([moved[::-1]], orders[::-1])[::-1]
    for found in (divided, reordered):
        for one, other in zip(found, plain, strict=True):
            assert one.keys() == other.keys()
            for name, value in other.items():
                scale = max(np.abs(each[name]).max() for each in plain)
                np.testing.assert_allclose(one[name], value, rtol=0, atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize("case", ["gat", "vgae", "fusion"])
def test_graphs_do_not_see_each_other(case):
    """One graph becomes another; the rest of its pack and the other packs stay as they were, to the last bit."""
    run, graphs = prepared(case)
    changed = {**graphs[3], "x": graphs[3]["x"] + 100}
    before, after = run([graphs[:2], graphs[2:]]), run([graphs[:2], [graphs[2], changed, graphs[4]]])
    for i in (0, 1, 2, 4):
        for name, value in before[i].items():
            np.testing.assert_array_equal(after[i][name], value, err_msg=name)
    assert any(not np.allclose(after[3][name], value) for name, value in before[3].items())
