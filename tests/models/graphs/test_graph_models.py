"""What holds for every model of graphs: it knows neither padding, nor packs, nor the order of nodes and edges."""

from functools import partial

import jax
import jraph
import numpy as np
import pytest

import kdjax
from kdjax import registry
from tests.models.graphs.test_can_gat import SMALL as GAT
from tests.models.graphs.test_can_gat import started
from tests.models.graphs.test_can_vgae import SMALL as VGAE
from tests.support.graph_packs import nodes_of, over_packs, packed, permuted, random_graphs
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
    assert list(model.inputs) == ["graphs"]
    variables = started(model)
    apply = jax.jit(over_packs(partial(model.apply, variables)), compiler_options=QUICK)

    def run(packs, orders=None, **sizes):
        """Of each graph, in order, its part of every endpoint; nodes as they were before `orders`."""
        inputs = packed(packs, **sizes)
        out = {k: np.asarray(v) for k, v in apply(inputs).items()}
        assert all(np.isfinite(v).all() for v in out.values())
        graph, found = nodes_of(inputs), []
        for p, g in [(p, g) for p, pack in enumerate(packs) for g in range(len(pack))]:
            nodes = np.flatnonzero(graph[p] == g)
            nodes = nodes if orders is None else nodes[np.argsort(orders[len(found)])]
            found.append({k: v[p, nodes] if v.shape[1] == graph.shape[1] else v[p, g] for k, v in out.items()})
        return found

    return run, graphs


LARGE = ("gat_lstm", "gatv2", "fusion")  # which take longest to compile
each = pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.long if case in LARGE else ()) for case in CASES]
)


@each
def test_neither_padding_nor_packs_nor_order_matter(case):
    run, graphs = prepared(case)
    plain = run([graphs])
    orders = [np.random.default_rng(i).permutation(len(graph.nodes["x"])) for i, graph in enumerate(graphs)]
    moved = [permuted(graph, order) for graph, order in zip(graphs, orders, strict=True)]
    for i, graph in enumerate(moved):
        edges = np.random.default_rng(9).permutation(len(graph.senders))
        moved[i] = graph._replace(senders=graph.senders[edges], receivers=graph.receivers[edges])
    divided = run([graphs[:2], graphs[2:]], nodes=60, edges=90, graphs=6)
    reordered = run([moved[::-1]], orders[::-1])[::-1]
    for found in (divided, reordered):
        for one, other in zip(found, plain, strict=True):
            assert one.keys() == other.keys()
            for name, value in other.items():
                scale = max(np.abs(each[name]).max() for each in plain)
                np.testing.assert_allclose(one[name], value, rtol=0, atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize("case", ["gat", "vgae", pytest.param("fusion", marks=pytest.mark.long)])
def test_graphs_do_not_see_each_other(case):
    """One graph becomes another; the rest of its pack and the other packs stay as they were, to the last bit."""
    run, graphs = prepared(case)
    changed = graphs[3]._replace(nodes={**graphs[3].nodes, "x": graphs[3].nodes["x"] + 100})
    before, after = run([graphs[:2], graphs[2:]]), run([graphs[:2], [graphs[2], changed, graphs[4]]])
    for i in (0, 1, 2, 4):
        for name, value in before[i].items():
            np.testing.assert_array_equal(after[i][name], value, err_msg=name)
    assert any(not np.allclose(after[3][name], value) for name, value in before[3].items())


@pytest.mark.long
@each
def test_graphs_of_any_origin(case):
    """All of them real, batched by jraph; they give what they give in padded packs."""
    name, options = CASES[case]
    model, graphs = kdjax.build(name, **options), random_graphs(5, 5, 9)
    variables = started(model)
    packs = packed([graphs[:2], graphs[2:]], nodes=60, edges=90)
    run = jax.jit(partial(kdjax.apply, model), compiler_options=QUICK)
    padded, plain = (run(variables, each) for each in (packs, jraph.batch(graphs)))
    for endpoint, value in plain.items():
        per_node = len(value) == sum(len(graph.nodes["x"]) for graph in graphs)
        real = nodes_of(packs) < 3 if per_node else packs.n_node > 0
        real[:, -1] = False  # the padding
        atol = 1e-5 * np.abs(value).max()
        np.testing.assert_allclose(padded[endpoint][real], value, rtol=0, atol=atol, err_msg=endpoint)


@pytest.mark.long
@pytest.mark.parametrize("case", ["node_gat", "node_mlp"])
def test_nodes_may_be_a_plain_array(case):
    name, options = CASES[case]
    model, graphs = kdjax.build(name, **options), jraph.batch(random_graphs(3, 5))
    variables = started(model)
    plain = kdjax.apply(model, variables, graphs._replace(nodes=graphs.nodes["x"]))
    jax.tree.map(np.testing.assert_array_equal, plain, kdjax.apply(model, variables, graphs))
