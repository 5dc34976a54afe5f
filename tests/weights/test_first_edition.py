"""Files of weights that the first edition wrote: they load, and give what they gave."""

from pathlib import Path

import jax
import jax.numpy as jnp
import jraph
import numpy as np
import pytest

import kdjax
from kdjax.models.layers.resize import resize
from kdjax.weights import safetensors
from tests.support.quick import QUICK

FIXTURES = Path(__file__).parents[1] / "fixtures"


def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / name) as file:
        return dict(file)


def graphs_of_the_first_edition(recorded) -> jraph.GraphsTuple:
    """Two packs, whose padding nodes were of a graph after the last."""
    graph, count = recorded["graph"], recorded["valid"].shape[1] + 1
    return jraph.GraphsTuple(
        nodes={"x": recorded["x"], "id": recorded["id"]},
        edges=None,
        senders=recorded["senders"],
        receivers=recorded["receivers"],
        n_node=np.stack([np.bincount(row, minlength=count) for row in graph]).astype(np.int32),
        n_edge=np.stack(
            [np.bincount(row[edge], minlength=count) for row, edge in zip(graph, recorded["senders"], strict=True)]
        ).astype(np.int32),
        globals=None,
    )


@pytest.mark.parametrize("name", ["can_gat", "can_vgae", "node_gat", "can_fusion"])
def test_graph_models_of_the_first_edition(name):
    path, recorded = FIXTURES / f"{name}.safetensors", arrays("outputs_graphs.npz")
    described = safetensors.model_in(safetensors.load(path)[1])
    assert described is not None
    model = kdjax.build(described.name, **described.options)
    run = jax.jit(lambda variables, graphs: kdjax.apply(model, variables, graphs), compiler_options=QUICK)
    outputs = run(kdjax.load(model, path), graphs_of_the_first_edition(recorded))
    expected = {key.split("/")[1]: recorded[key] for key in recorded if key.startswith(f"{name}/")}
    assert set(outputs) == set(expected) == set(model.endpoints)
    nodes, graphs = recorded["graph"] < recorded["valid"].shape[1], recorded["valid"]
    for endpoint, value in expected.items():
        if value.shape[:2] == nodes.shape:
            ours, theirs = np.asarray(outputs[endpoint])[nodes], value[nodes]
        else:
            ours, theirs = np.asarray(outputs[endpoint])[:, :-1][graphs], value[graphs]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6 * np.abs(theirs).max(), err_msg=endpoint)


@pytest.mark.long
@pytest.mark.parametrize("name", ["tinyusfm_seg", "vit", "segformer", "sam_seg"])
def test_image_models_of_the_first_edition(name):
    path, recorded = FIXTURES / f"{name}.safetensors", arrays("outputs_images.npz")
    described = safetensors.model_in(safetensors.load(path)[1])
    assert described is not None
    model = kdjax.build(described.name, **described.options)
    variables = jax.tree.map(jnp.asarray, kdjax.load(model, path))
    run = jax.jit(lambda variables, image: kdjax.apply(model, variables, image), compiler_options=QUICK)
    image = resize(
        jnp.asarray(recorded["image"] / np.float32(255)), model.inputs["image"].hw
    )  # as it did: no antialias
    outputs = run(variables, image)
    expected = {key.split("/")[1]: recorded[key] for key in recorded if key.startswith(f"{name}/")}
    assert set(outputs) == set(expected) == set(model.endpoints)
    for endpoint, value in expected.items():
        np.testing.assert_allclose(outputs[endpoint], value, rtol=0, atol=2e-6 * np.abs(value).max(), err_msg=endpoint)
