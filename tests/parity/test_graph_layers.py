"""Graph attention, the LSTM and masked BatchNorm beside PyTorch Geometric and PyTorch: values and all gradients."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from kdjax.models.graphs.gat_conv import GATConv, GATv2Conv
from kdjax.models.graphs.jumping import Lstm, LstmJumping
from kdjax.models.layers.batch_norm import BatchNorm
from tests.support.graph_packs import packed, random_graphs
from tests.support.quick import QUICK
from tests.support.torch_names import to_flax
from tests.support.twins import by_name, close, randomised

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # PyG compiles scripts, which PyTorch calls deprecated
    from torch_geometric import nn as pyg

C, D = 7, 5
WITHOUT = {"self_loops": "add_self_loops", "slope": "negative_slope"}


def pair(ours, theirs, **options):
    module = theirs(C, D, **{WITHOUT.get(k, k): v for k, v in options.items()})
    return ours(D, **options), randomised(module)


def graphs():
    """x, senders and receivers of a pack with padding."""
    pack = jax.tree.map(lambda x: x[0], packed([random_graphs(7, C)], nodes=60, edges=90))
    return pack.nodes["x"], pack.senders, pack.receivers


def compared(model, module, inputs, run, flat=()):
    """Values, and the gradients of their product with random numbers, to the inputs and all parameters.

    Those of the parameters in `flat` are 0 but for rounding.
    """
    x, *rest = (jnp.asarray(i) for i in inputs)
    abstract = jax.eval_shape(model.init, jax.random.key(0), x, *rest)
    variables = to_flax({name: p.detach().numpy() for name, p in module.state_dict().items()}, abstract)
    given = torch.from_numpy(np.array(x)).requires_grad_()
    expected = run(given)
    weight = np.random.default_rng(5).normal(size=expected.shape).astype(np.float32)
    (expected * torch.from_numpy(weight)).sum().backward()

    def loss(params, x):
        out = model.apply({"params": params}, x, *rest)
        return (out * weight).sum(), out

    (slopes, slope), found = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True), compiler_options=QUICK)(
        variables["params"], x
    )
    close(np.asarray(found), expected.detach().numpy(), name="values")
    close(np.asarray(slope), given.grad.numpy(), name="inputs")
    wanted = to_flax({name: p.grad.numpy() for name, p in module.named_parameters()}, abstract)["params"]
    largest = max(np.abs(slope).max() for slope in by_name(wanted).values())
    for name, found in by_name(slopes).items():
        if name in flat:
            assert np.abs(found).max() < 1e-6 * largest, name
        else:
            close(found, by_name(wanted)[name], name=name)


OPTIONS = [
    {"heads": 3},
    {"heads": 1, "concat": False},
    {"heads": 4, "concat": False, "slope": 0.1},
    {"heads": 2, "self_loops": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("ours", "theirs"), [(GATConv, pyg.GATConv), (GATv2Conv, pyg.GATv2Conv)])
def test_attention(ours, theirs, options):
    model, module = pair(ours, theirs, **options)
    x, senders, receivers = graphs()
    edges = torch.from_numpy(np.stack([senders, receivers]).astype(np.int64))
    compared(model, module, (x, senders, receivers), lambda x: module(x, edges))


def test_shared_weights():
    model, module = GATv2Conv(D, 2, share_weights=True), randomised(pyg.GATv2Conv(C, D, 2, share_weights=True))
    x, senders, receivers = map(jnp.asarray, graphs())
    abstract = jax.eval_shape(model.init, jax.random.key(0), x, senders, receivers)
    state = {k: v.detach().numpy() for k, v in module.state_dict().items() if not k.startswith("lin_r")}
    found = model.apply(to_flax(state, abstract), x, senders, receivers)
    edges = torch.from_numpy(np.stack([senders, receivers]).astype(np.int64))
    close(np.asarray(found), module(torch.from_numpy(np.array(x)), edges).detach().numpy())


@pytest.mark.parametrize("count", [2, 5])
def test_jumping(count):
    rng = np.random.default_rng(0)
    layers = rng.normal(size=(count, 6, 8)).astype(np.float32)
    module = randomised(pyg.JumpingKnowledge("lstm", channels=8, num_layers=count))

    class Stacked(LstmJumping):
        def __call__(self, layers):
            return super().__call__(list(layers))

    compared(Stacked(), module, (layers,), lambda layers: module(list(layers)), flat=("att/bias",))


def test_lstm():
    """Beside torch's own, of more steps than a network has layers; the initial values lie where torch's do."""
    x = np.random.default_rng(0).normal(size=(4, 3, 6)).astype(np.float32)
    module = randomised(torch.nn.LSTM(6, 5, bidirectional=True))
    compared(Lstm(5), _Named(module), (x,), lambda x: module(x)[0])
    for name, p in Lstm(400).init(jax.random.key(0), jnp.asarray(x))["params"].items():
        assert 0.045 < np.abs(p).max() <= 0.05, name


class _Named:
    """`weight_ih_l0` is a leaf of the root here."""

    def __init__(self, module):
        self.state_dict, self.named_parameters = module.state_dict, module.named_parameters


@pytest.mark.parametrize("mask", [None, "some"])
def test_batch_norm(mask):
    """In training, of what counts alone; then the running statistics in evaluation."""
    rng = np.random.default_rng(0)
    x = rng.normal(2, 3, size=(3, 11, 4)).astype(np.float32)
    counts = rng.random((3, 11)) < 0.6 if mask else np.ones((3, 11), bool)
    x[~counts] += 1000
    module, model = randomised(torch.nn.BatchNorm1d(4)), BatchNorm("float32")
    abstract = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.asarray(x), False))
    variables = to_flax({name: p.detach().numpy().copy() for name, p in module.state_dict().items()}, abstract)
    given = torch.from_numpy(x[counts]).requires_grad_()
    expected = module.train()(given)
    weight = rng.normal(size=expected.shape).astype(np.float32)
    (expected * torch.from_numpy(weight)).sum().backward()

    def loss(x):
        counting = jnp.asarray(counts) if mask else None
        out, changed = model.apply(variables, x, True, counting, mutable=["batch_stats"])
        return (out[counts] * weight).sum(), (out, changed)

    slope, (found, changed) = jax.grad(loss, has_aux=True)(jnp.asarray(x))
    close(np.asarray(found[counts]), expected.detach().numpy())
    close(np.asarray(slope[counts]), given.grad.numpy())
    assert not np.any(np.asarray(slope)[~counts])
    close(np.asarray(changed["batch_stats"]["mean"]), module.running_mean.numpy())
    close(np.asarray(changed["batch_stats"]["var"]), module.running_var.numpy())
    found = model.apply({**variables, **changed}, jnp.asarray(x), False)
    close(np.asarray(found[counts]), module.eval()(given).detach().numpy())
