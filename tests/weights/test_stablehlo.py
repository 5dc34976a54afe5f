"""One file for any number of examples, and for sizes that are told by names."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from kdjax import registry
from kdjax.weights import stablehlo
from tests.models.graphs.test_can_gat import started
from tests.models.graphs.test_graph_models import CASES
from tests.support.graph_packs import over_packs, packed, random_graphs
from tests.support.quick import QUICK

RANDOM = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def pooled(variables, x, senders, receivers, graph, valid):
    """Sums over edges and then over graphs, of which the last array tells the number."""

    def one(x, senders, receivers, graph, valid):
        found = jax.ops.segment_sum((x @ variables["w"])[senders], receivers, x.shape[0])
        return jax.ops.segment_sum(found, graph, valid.shape[0])

    return {"pooled": jax.vmap(one)(x, senders, receivers, graph, valid)}


def test_named_sizes_may_be_any(tmp_path):
    variables, path = {"w": floats(3, 5)}, tmp_path / "f"
    edges = (("e",), "int32")
    shapes = [(("n", 3), "float32"), edges, edges, (("n",), "int32"), (("g",), "bool")]
    stablehlo.save(path, pooled, variables, shapes)
    loaded = stablehlo.load(path)

    def given(b: int, n: int, e: int, g: int, others: int = 0) -> list:
        drawn = [(n, e), (n, e + others), (g + 1, n)]
        return [floats(b, n, 3), *(RANDOM.integers(0, k, (b, m), np.int32) for k, m in drawn), np.ones((b, g), np.bool)]

    for sizes in ((1, 2, 3, 1), (2, 7, 9, 4), (5, 3, 30, 2)):
        arrays = given(*sizes)
        found, expected = loaded(*arrays)["pooled"], pooled(variables, *arrays)["pooled"]
        assert found.shape == (sizes[0], sizes[3], 5)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"inconsistency .* specification 'e'"):
        loaded(*given(2, 3, 4, 1, others=1))


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_a_model_of_graphs_takes_any_number_of_nodes_edges_and_graphs(case, tmp_path):
    name, options = CASES[case]
    model = registry.get("models", name)(**options)
    batches = [packed([random_graphs(count, 5, 9, seed)], nodes) for count, seed, nodes in ((3, 0, 0), (5, 1, 70))]
    variables = started(model)

    def apply(variables, *arrays):
        packs = jax.tree.unflatten(jax.tree.structure(batches[0]), arrays)
        return over_packs(partial(model.apply, variables))(packs)

    sizes = {name: ((size,), "int32") for name, size in {"node": "n", "edge": "e", "graph": "g"}.items()}
    nodes = {"x": (("n", 5), "float32"), "id": sizes["node"]}
    described = batches[0]._replace(
        nodes=nodes, senders=sizes["edge"], receivers=sizes["edge"], n_node=sizes["graph"], n_edge=sizes["graph"]
    )
    shapes = jax.tree.leaves(described, is_leaf=lambda x: type(x) is tuple)
    stablehlo.save(tmp_path / "f", apply, variables, shapes)
    loaded = stablehlo.load(tmp_path / "f")
    for batch in batches:
        found, expected = (
            loaded(*jax.tree.leaves(batch)),
            jax.jit(apply, compiler_options=QUICK)(variables, *jax.tree.leaves(batch)),
        )
        assert found.keys() == expected.keys()
        for endpoint, x in expected.items():
            np.testing.assert_allclose(found[endpoint], x, rtol=0, atol=1e-5 * np.abs(x).max(), err_msg=endpoint)


def test_a_function_may_ask_for_its_batch(tmp_path):
    def function(v, x):
        return x + jnp.stack([v] * len(x))

    weights, x = floats(2), floats(4, 2)
    stablehlo.save(tmp_path / "f", function, weights, [((2,), "float32")])
    np.testing.assert_array_equal(stablehlo.load(tmp_path / "f")(x), x + weights)


def test_it_runs_on_other_platforms(tmp_path):
    stablehlo.save(tmp_path / "f", lambda v, x: x * v[None], floats(2), [((2,), "float32")])
    assert export.deserialize(bytearray((tmp_path / "f").read_bytes())).platforms == stablehlo.PLATFORMS
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
