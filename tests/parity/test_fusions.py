"""The nine fusions beside PyTorch, with the same weights: values and slopes, where image or text may be absent."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from kdjax.models.fusion.image_text import FUSIONS, of_those_there
from kdjax.models.fusion.options import Options
from tests.support import torch_fusions
from tests.support.quick import QUICK
from tests.support.torch_names import to_flax
from tests.support.twins import by_name, close, randomised, same_slopes

DIM = 8
BATCH = 24
ROUTED = ("energy_aware_adaptive", "shomr")
THERE = np.array([[True, True], [True, True], [True, False], [False, True], [True, True], [False, False]] * 4)


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 2, shape).astype(np.float32)


def prepared(name, **options):
    """Our fusion, PyTorch's, and the weights of both."""
    ours = FUSIONS[name](Options(fusion=name, dim=DIM, heads=torch_fusions.HEADS, dropout=0.0, **options))
    theirs = randomised(torch_fusions.FUSIONS[name](DIM)).train()  # where nothing is dropped
    shapes = (jax.ShapeDtypeStruct((2, DIM), jnp.float32),) * 2
    there = jax.ShapeDtypeStruct((2, 2), jnp.bool_)
    empty = jax.eval_shape(partial(ours.init, train=False), jax.random.key(0), *shapes, there)
    return ours, theirs, to_flax(torch_fusions.renamed(theirs.state_dict()), empty)


def embeddings():
    """Zeros where there is nothing, as the model has them."""
    return [np.where(THERE[:, i, None], drawn(BATCH, DIM, seed=i), np.float32(0)) for i in range(2)]


def towards(outputs, weights):
    """One number that hangs on every one of them."""
    return sum((outputs[k] * weights[k]).sum() for k in outputs)


def compared(ours, theirs, variables, train, rngs=None):
    """Values and slopes of both; what chance chose is read from the shares. Returns our outputs."""
    image, text = embeddings()

    def run(params, image, text):
        there = jnp.asarray(THERE)
        out = of_those_there(ours.apply({"params": params}, image, text, there, train, rngs=rngs), there)
        return towards(out, weights), out

    weights = {"fused": drawn(BATCH, DIM, seed=5), "shares": drawn(BATCH, 2, seed=6), "energy": drawn(BATCH, seed=7)}
    graded = jax.jit(jax.value_and_grad(run, (0, 1, 2), has_aux=True), compiler_options=QUICK)
    (_, found), slopes = graded(variables["params"], image, text)
    route = None
    if rngs:
        only = np.isclose(found["shares"], 1, atol=1e-6) & THERE.all(1, keepdims=True)
        route = torch.from_numpy(np.where(only.any(1), only.argmax(1), 2))
        route[~THERE.all(1)] = torch.from_numpy(THERE.argmax(1))[~THERE.all(1)]
    given = [torch.from_numpy(x).requires_grad_() for x in (image, text)]
    expected = theirs(*given, torch.from_numpy(THERE), route)
    there = torch.from_numpy(THERE)
    expected["fused"] = expected["fused"] * there.any(1, keepdim=True)
    if "shares" in expected:
        kept = expected["shares"] * there
        expected["shares"] = kept / kept.sum(1, keepdim=True).clamp(min=1e-9)
    assert found.keys() == expected.keys() == set(ours.endpoints)
    for name, value in expected.items():
        close(np.asarray(found[name]), value.detach().numpy(), name=name)
    towards(expected, {k: torch.from_numpy(x) for k, x in weights.items()}).backward()
    named = {k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in theirs.named_parameters()}
    wanted = by_name(to_flax(torch_fusions.renamed(named), variables))
    idle = same_slopes(by_name({"params": slopes[0]}), wanted)
    assert all(name.endswith("/k/bias") for name in idle), idle  # softmax does not see what all keys have in common
    for slope, x in zip(slopes[1:], given, strict=True):
        close(np.where(THERE.any(1, keepdims=True), slope, 0), x.grad.numpy(), 1e-4)
    return found


long = lambda *names: [pytest.param(name, marks=pytest.mark.long) for name in names]  # noqa: E731


@pytest.mark.parametrize(
    "name", ["concat_mlp", "gated", "modality_dropout", "film", *long("simple", "cross_attention", *ROUTED)]
)
def test_values_and_slopes(name):
    found = compared(*prepared(name), train=name not in (*ROUTED, "modality_dropout"))
    if name == "shomr":
        soft = np.isclose(found["energy"], 9.8, atol=1e-6)[THERE.all(1)]
        assert 0 < soft.sum() < len(soft)


@pytest.mark.long
@pytest.mark.parametrize("name", ROUTED)
def test_routes_by_chance_teach_the_router(name):
    """The value is that of the route taken, the slope that of the probabilities."""
    found = compared(*prepared(name), train=True, rngs={"dropout": jax.random.key(3)})
    taken = found["shares"][THERE.all(1)]
    assert 0 < np.isclose(taken, 1, atol=1e-6).any(1).sum() < len(taken)


def test_every_fusion_has_its_counterpart():
    assert FUSIONS.keys() == torch_fusions.FUSIONS.keys()
    assert FUSIONS["transformer_concat"] is FUSIONS["simple"]
