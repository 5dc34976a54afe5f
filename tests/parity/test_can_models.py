"""Graph models beside the same ones in PyTorch, with random weights: every endpoint, and the gradients of a loss."""

import warnings

import jax
import numpy as np
import pytest
import torch

from convert.originals import can_gat as plain_gat
from convert.originals import can_vgae as plain_vgae
from convert.originals import gat_conv as plain_conv
from convert.originals import node_gat as plain_node
from convert.originals import packs
from kdjax import registry
from kdjax.config import Model
from tests.support.graph_packs import eaten, graph
from tests.support.quick import QUICK
from tests.support.torch_names import to_flax
from tests.support.twins import by_name, close, converted, randomised, same_slopes

SMALL = {"hidden": 6, "heads": 2, "embed_dim": 4, "num_ids": 9, "features": 7, "dropout": 0.0}
GATS = [
    SMALL | {"variant": "a_student", "num_ids": 0},
    SMALL | {"variant": "b_student"},
    SMALL | {"variant": "c_small", "conv": "gatv2", "binary_logit": False},
    {"variant": "b_student"},
]


VGAES = [
    {
        "encoder": (6, 5),
        "encoder_heads": (2, 1),
        "decoder": (6, 4),
        "decoder_heads": (3, 2),
        "latent": 3,
        "neighbour_hidden": 7,
        "num_ids": 9,
        "features": 5,
    },
    {"variant": "b_teacher", "num_ids": 40},
    {"variant": "c_small", "num_ids": 30, "conv": "gatv2"},
]


def test_the_twin_attends_as_pyg_does():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch_geometric import nn as pyg

    draw = np.random.default_rng(0)
    edges = torch.from_numpy(draw.integers(0, 9, (2, 30)))
    x = torch.from_numpy(draw.normal(size=(10, 5)).astype(np.float32))
    for name, theirs in (("gat", pyg.GATConv), ("gatv2", pyg.GATv2Conv)):
        for concat, loops in ((True, True), (False, True), (True, False)):
            original = randomised(theirs(5, 4, 3, concat=concat, add_self_loops=loops))
            twin = plain_conv.CONVS[name](5, 4, 3, concat, loops)
            twin.load_state_dict(original.state_dict())
            close(twin(x, *edges).detach().numpy(), original(x, edges).detach().numpy(), 1e-6, name)


NAMES = {"gat_net": "convs", "linear_proj": "lin", "scoring_fn_source": "att_src", "scoring_fn_target": "att_dst"}


def renamed(module):
    """pytorch-GAT's names become PyG's."""
    return {".".join(NAMES.get(part, part) for part in k.split(".")): x for k, x in module.state_dict().items()}


def compared(plain, name, options):
    model = registry.get("models", name)(**options)
    module = randomised(plain.build(Model(name, **options)))
    (graphs,) = eaten(model)
    found = jax.jit(model.apply, compiler_options=QUICK)(converted(renamed(module), model), graphs)
    expected = plain.outputs(module, graphs)
    assert set(found) == set(expected) == set(model.endpoints)
    for name, y in expected.items():
        close(found[name], y, name=name)


@pytest.mark.parametrize("options", GATS, ids=str)
def test_gat(options):
    compared(plain_gat, "can_gat", options)


@pytest.mark.parametrize("options", VGAES, ids=str)
def test_vgae(options):
    compared(plain_vgae, "can_vgae", options)


@pytest.mark.parametrize("options", [{"variant": "cora"}, {"variant": "cora_pyg"}, {"conv": "gatv2"}], ids=str)
def test_node_gat(options):
    options |= {"features": 6, "hidden": (4, 3), "heads": (2, 3, 2), "num_classes": 5}
    compared(plain_node, "node_gat", options)


def slopes_alike(plain, name, options, read):
    """Gradients to all parameters of the endpoints in `read` against random numbers; those the loss does not know."""
    model = registry.get("models", name)(**options)
    module = randomised(plain.build(Model(name, **options)))
    variables, (graphs,) = converted(module, model), eaten(model)
    rng, out = np.random.default_rng(1), jax.eval_shape(model.apply, variables, graphs)
    weights = {k: rng.normal(size=out[k].shape).astype(np.float32) for k in read}

    def loss(params):
        found = model.apply({**variables, "params": params}, graphs)
        return sum((found[k] * weight).sum() for k, weight in weights.items())

    found = by_name(jax.jit(jax.grad(loss), compiler_options=QUICK)(variables["params"]))
    expected = packs.endpoints(module, graphs)
    sum((expected[k] * torch.from_numpy(weight)).sum() for k, weight in weights.items()).backward()
    slopes = {k: torch.zeros_like(x) if x.grad is None else x.grad for k, x in module.named_parameters()}
    stats = {k: x for k, x in module.state_dict().items() if k not in slopes}
    return same_slopes(found, by_name(to_flax(slopes | stats, variables)["params"]))


@pytest.mark.parametrize("options", GATS[:3], ids=str)
def test_gradients_of_gat(options):
    unknown = slopes_alike(plain_gat, "can_gat", options, ["logits"])
    assert unknown == ({"jk/att/bias"} if options["variant"] == "a_student" else set())


def test_gradients_of_vgae():
    read = ["features", "id_logits", "posterior", "feature_error", "neighbour_error", "id_error", "anomaly_parts"]
    unknown = slopes_alike(plain_vgae, "can_vgae", VGAES[0], read)
    assert all(name.startswith("decoder_layers") and "/att_" in name for name in unknown)  # its nodes are so alike


@pytest.mark.parametrize(("size", "short"), [("teacher", "t"), ("student", "s")])
def test_the_published_vgaes_on_eight_real_graphs(size, short, reference):
    state = torch.load(reference / f"weights/can/vgae_{size}_hcrl_sa_genB.pth", weights_only=True, map_location="cpu")
    golden = np.load(reference / "goldens/can_vgae_first8_graphs.npz")
    model = registry.get("models", "can_vgae")(f"b_{size}")
    variables = converted(state, model)
    graphs = graph(golden["x"][:, 1:], golden["x"][:, 0], *golden["edge_index"])
    found = jax.jit(model.apply, compiler_options=QUICK)(variables, graphs)
    for name, ours in (("cont", "features"), ("mu", "z_mean"), ("logvar", "z_logvar")):
        close(np.asarray(found[ours]), golden[f"{short}_{name}"], 2e-6, name)
    if size == "teacher":
        np.testing.assert_array_equal(found["id_logits"].argmax(-1), golden["t_canid_argmax"])
