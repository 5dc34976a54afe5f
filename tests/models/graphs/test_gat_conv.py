"""Graph attention against the paper's formula in float64, at its extremes, and with dropout."""

import jax
import jax.numpy as jnp
import jraph
import numpy as np
import pytest

from kdjax.models.graphs.gat_conv import CONVS, propagate
from kdjax.models.graphs.pooling import graph_max, graph_mean, graph_of_node
from tests.support.graph_packs import graph, packed, random_graphs
from tests.support.quick import QUICK

C, D, H = 5, 3, 2


def layer(name, **options):
    conv = CONVS[name](D, H, **options)
    pack = jax.tree.map(lambda x: jnp.asarray(x[0]), packed([random_graphs(4, C)], nodes=30, edges=60))
    inputs = [pack.nodes["x"], pack.senders, pack.receivers]
    params = conv.init(jax.random.key(0), *inputs)["params"]
    params["bias"] = jax.random.normal(jax.random.key(1), params["bias"].shape)
    return conv, params, inputs


def by_the_paper(name, params, x, senders, receivers, loops):
    """[n, h, d], node by node: softmax over its neighbours (and itself) of their scores."""
    w = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    x, leaky = np.asarray(x, np.float64), lambda s: np.where(s > 0, s, 0.2 * s)
    if name == "gat":
        values = (x @ w["lin"]["kernel"]).reshape(-1, H, D)
        score = lambda j, i: leaky((values[j] * w["att_src"][0] + values[i] * w["att_dst"][0]).sum(-1))  # noqa: E731
    else:
        values, target = ((x @ w[k]["kernel"] + w[k]["bias"]).reshape(-1, H, D) for k in ("lin_l", "lin_r"))
        score = lambda j, i: (leaky(values[j] + target[i]) * w["att"][0]).sum(-1)  # noqa: E731
    out = np.zeros_like(values)
    for i in range(len(x)):
        edges = zip(np.asarray(senders), np.asarray(receivers), strict=True)
        near = [a for a, b in edges if b == i and not (loops and a == i)] + [i] * loops
        if near:
            weights = np.exp([score(j, i) for j in near])
            out[i] = (weights[:, :, None] * values[near]).sum(0) / weights.sum(0)[:, None]
    return out


@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("concat", [True, False])
@pytest.mark.parametrize("name", CONVS)
def test_the_formula(name, concat, loops):
    conv, params, (x, senders, receivers) = layer(name, concat=concat, self_loops=loops)
    found = jax.jit(conv.apply, compiler_options=QUICK)({"params": params}, x, senders, receivers)
    expected = by_the_paper(name, params, x, senders, receivers, loops)
    expected = (expected.reshape(len(expected), -1) if concat else expected.mean(1)) + np.asarray(params["bias"])
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("name", CONVS)
def test_extremes_stay_finite(name, loops):
    """Scores of ±1e6, nodes that nothing reaches, padding: values and gradients."""
    conv, params, (x, senders, receivers) = layer(name, self_loops=loops)

    def loss(params, x):
        out = conv.apply({"params": params}, x, senders, receivers)
        return jnp.square(out).sum(), out

    grad = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True), compiler_options=QUICK)
    for scale in (0.0, 1e6):
        (slopes, slope), out = grad(params, x * scale)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((slopes, slope, out)))


def test_far_apart_scores_do_not_disturb_other_nodes():
    """The softmax is safe node by node: one with scores near -1e4 weighs them as one with scores near 0 does."""
    values = jax.random.normal(jax.random.key(0), (6, 2))
    senders, receivers = jnp.array([0, 1, 2, 3]), jnp.array([4, 4, 5, 5])
    links = jnp.array([[1.0], [2.0], [1.0 - 1e4], [2.0 - 1e4]])
    found = propagate(values, links, None, senders, receivers)
    weight = 1 / (1 + np.exp(-1.0))
    np.testing.assert_allclose(found[4], weight * values[1] + (1 - weight) * values[0], rtol=1e-5)
    np.testing.assert_allclose(found[5], weight * values[3] + (1 - weight) * values[2], rtol=1e-3)
    assert not found[:4].any()


@pytest.mark.parametrize("name", CONVS)
def test_dropout_keeps_the_mean(name):
    """Attention is dropped after the softmax, edges and own loops alike."""
    conv, params, inputs = layer(name, dropout=0.5)
    plain = conv.apply({"params": params}, *inputs)

    def sample(key):
        return conv.apply({"params": params}, *inputs, train=True, rngs={"dropout": key})

    many = jax.jit(jax.vmap(sample))(jax.random.split(jax.random.key(0), 4000))
    error = (many.mean(axis=0) - plain) / (many.std(axis=0) / 4000**0.5 + 1e-6)
    assert np.abs(error).max() < 5
    lone = np.asarray(many)[:, int(inputs[0].any(axis=-1).sum()) - 1] - params["bias"][None]
    kept = np.abs(lone).max(axis=-1) > 0  # the last node of the last graph has its own loop alone, for each head
    assert 0.7 < kept.mean() < 0.8


def test_pooling_by_hand():
    x = jnp.arange(12.0).reshape(6, 2) - 20
    padded = jraph.pad_with_graphs(jraph.batch_np([graph(x[:2], [0] * 2, [], []), graph(x[:0], [], [], [])]), 6, 1, 3)
    np.testing.assert_array_equal(graph_of_node(padded), [0, 0, 2, 2, 2, 2])
    np.testing.assert_array_equal(graph_mean(x, padded), [[-19, -18], [0, 0], [-13, -12]])
    np.testing.assert_array_equal(graph_max(x, padded), [[-18, -17], [0, 0], [-10, -9]])
