"""The benchmark of the CAN models: what it feeds them, and that both sides train the same."""

import jax
import numpy as np
import pytest

from benchmarks import can_models
from convert.example import example
from convert.originals import can_gat, can_vgae
from kdjax import registry
from kdjax.config import Model
from tests.support.graph_packs import nodes_of

pytestmark = pytest.mark.long


def test_windows_are_graphs():
    graphs, label = can_models.windows()
    assert label.shape == (can_models.GRAPHS,)
    senders, receivers, graph = graphs.senders, graphs.receivers, nodes_of(jax.tree.map(lambda x: x[None], graphs))[0]
    np.testing.assert_array_equal(graph[senders], graph[receivers])
    assert (
        len(np.unique(np.stack([senders, receivers]), axis=1).T) == len(senders) == can_models.GRAPHS * can_models.EDGES
    )
    sizes = np.bincount(graph)
    assert len(sizes) == can_models.GRAPHS
    assert 24 <= sizes.mean() <= 26
    assert all(len(np.unique(graphs.nodes["id"][graph == g])) == sizes[g] for g in range(3))


@pytest.mark.parametrize("case", can_models.CASES)
def test_both_sides_train_the_same_number_of_parameters(case):
    name, options = can_models.CASES[case]
    model = registry.get("models", name)(**options)
    params = jax.eval_shape(model.init, jax.random.key(0), *example(model))["params"]
    module = {"can_gat": can_gat, "can_vgae": can_vgae}[name].build(Model(name, **options))
    assert sum(p.numel() for p in module.parameters()) == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_an_unknown_case_is_refused(capsys):
    with pytest.raises(SystemExit):
        can_models.main(["--cases=gat_b_studnt"])
    assert "no case gat_b_studnt; there are gat_a_student" in capsys.readouterr().err
