"""Node classifiers: sizes, endpoints, and the published GAT on the real Cora."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from kdjax.config import ConfigError
from kdjax.models.graphs.node_gat import PARAMETERS, build_node_gat
from kdjax.models.graphs.node_mlp import build_node_mlp
from tests.models.graphs.test_can_gat import shapes, started
from tests.models.vision.test_tinyusfm import size
from tests.support.graph_packs import eaten, graph
from tests.support.quick import QUICK

BOTH = {"node_gat": build_node_gat, "node_mlp": build_node_mlp}


def test_sizes():
    for variant, expected in PARAMETERS.items():
        variables, out = shapes(build_node_gat(variant))
        assert size(variables["params"]) == expected == 1433 * 64 + 3 * 64 + 64 * 7 + 3 * 7
        assert out["logits"].shape == (24, 7)
    variables, out = shapes(build_node_mlp(hidden=(128, 32), num_classes=3))
    assert size(variables["params"]) == 1434 * 128 + 129 * 32 + 33 * 3
    assert out["logits"].shape == (24, 3)


@pytest.mark.parametrize("name", BOTH)
def test_every_endpoint_is_there_and_documented(name):
    for hidden in ((), (5, 4)):
        model = BOTH[name](features=6, hidden=hidden, **({"heads": (2,) * (len(hidden) + 1)} if "gat" in name else {}))
        _, out = shapes(model)
        assert set(out) == set(model.endpoints)
        assert len(out) == len(hidden) + 1


def test_published_weights_on_cora(reference):
    """The accuracy that their author printed. A node weighs messages by what `source` says of the sender."""
    found = torch.load(reference / "weights/cora_gat/gat_000000.pth", weights_only=True, map_location="cpu")
    state, data = found["state_dict"], np.load(reference / "data/cora/cora.npz")

    def layer(i, source="source", target="target"):
        take = lambda name: jnp.asarray(state[f"gat_net.{i}.{name}"].numpy())  # noqa: E731
        scores = {"att_src": take(f"scoring_fn_{source}"), "att_dst": take(f"scoring_fn_{target}")}
        return {"lin": {"kernel": take("linear_proj.weight").T}, "bias": take("bias"), **scores}

    x = data["features"] / np.maximum(data["features"].sum(axis=1, keepdims=True), 1e-12)
    cora = graph(x, np.zeros(len(x)), *data["edge_index"])
    run = jax.jit(build_node_gat().apply, compiler_options=QUICK)

    def right(*names):
        params = {f"convs_{i}": layer(i, *names) for i in range(2)}
        logits = run({"params": params}, cora)["logits"]
        assert np.isfinite(logits).all()
        return (np.asarray(logits).argmax(axis=-1) == data["labels"])[1708:].sum()

    assert right() == 822 == round(1000 * found["test_acc"])
    assert right("target", "source") != 822


def test_the_mlp_sees_no_edge_and_no_other_node():
    model = build_node_mlp(features=5, hidden=(16,))
    variables, (graphs,) = started(model), eaten(model)
    logits = lambda x: model.apply(variables, graphs._replace(nodes={"x": x}))["logits"].sum(axis=-1)  # noqa: E731
    jacobian = np.abs(jax.jacobian(logits)(graphs.nodes["x"])).sum(axis=-1)
    assert not (jacobian - np.diag(np.diag(jacobian))).any()
    assert np.diag(jacobian)[:-4].all()  # the last are padding


def test_impossible_models_say_what_to_do():
    cases = [
        ("node_gat", {"heads": (8,)}, r"heads: expected one number more than widths in hidden \(8,\), found \(8,\)"),
        ("node_gat", {"conv": "gin", "dropout": 1.0}, "conv: no 'gin'.*\n.*dropout: expected"),
        ("node_gat", {"num_classes": 1}, "num_classes: expected at least 2, found 1"),
        ("node_mlp", {"hidden": (0,), "dropout": -1.0}, "hidden: expected widths.*\n.*dropout: expected"),
        ("node_mlp", {"num_classes": 0}, "num_classes: expected at least 2, found 0"),
        ("node_mlp", {"variant": "core"}, "no node MLP variant 'core'; did you mean 'cora'"),
    ]
    for name, options, message in cases:
        with pytest.raises(ConfigError) as error:
            BOTH[name](**options)
        assert re.search(message, str(error.value))
