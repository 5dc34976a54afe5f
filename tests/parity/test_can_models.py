"""Graph models beside the same ones in PyTorch, with random weights: every endpoint, and the gradients of a loss."""

import warnings

import jax
import numpy as np
import pytest
import torch

from convert.originals import can_gat as plain_gat
from convert.originals import gat_conv as plain_conv
from convert.originals import packs
from kdjax import registry
from kdjax.config import Model
from tests.models.graph_packs import eaten
from tests.parity.torch_names import to_flax
from tests.parity.twins import by_name, close, converted, randomised, same_slopes
from tests.quick import QUICK

SMALL = {"hidden": 6, "heads": 2, "embed_dim": 4, "num_ids": 9, "features": 7, "dropout": 0.0}
GATS = [
    SMALL | {"variant": "a_student", "num_ids": 0},
    SMALL | {"variant": "b_student"},
    SMALL | {"variant": "c_small", "conv": "gatv2", "binary_logit": False},
    {"variant": "b_student"},
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


def compared(plain, name, options):
    model = registry.get("models", name)(**options)
    module = randomised(plain.build(Model(name, **options)))
    inputs = eaten(model)
    found = jax.jit(model.apply, compiler_options=QUICK)(converted(module, model), *inputs)
    expected = plain.outputs(module, *inputs)
    assert set(found) == set(expected) == set(model.endpoints)
    for name, y in expected.items():
        close(found[name], y, name=name)


@pytest.mark.parametrize("options", GATS, ids=str)
def test_gat(options):
    compared(plain_gat, "can_gat", options)


@pytest.mark.parametrize("options", GATS[:3], ids=str)
def test_gradients_of_gat(options):
    """Of the logits against random numbers, in training without dropout."""
    model = registry.get("models", "can_gat")(**options)
    module = randomised(plain_gat.build(Model("can_gat", **options)))
    variables, inputs = converted(module, model), eaten(model)
    weight = np.random.default_rng(1).normal(size=(*inputs[-1].shape, 1)).astype(np.float32)

    def loss(params):
        return (model.apply({"params": params}, *inputs, train=True)["logits"] * weight).sum()

    found = by_name(jax.jit(jax.grad(loss), compiler_options=QUICK)(variables["params"]))
    module.train()
    for p, pack in enumerate(zip(*inputs, strict=True)):
        (module.endpoints(*map(packs.whole, pack))["logits"] * torch.from_numpy(weight[p])).sum().backward()
    slopes = {name: x.grad.numpy() for name, x in module.named_parameters()}
    same_slopes(found, by_name(to_flax(slopes, variables)["params"]))
