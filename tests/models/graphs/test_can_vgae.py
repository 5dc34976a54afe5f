"""The VGAE: published sizes, documented endpoints, what it samples, and what its errors mean."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.config import ConfigError
from kdjax.distill.taps import Network
from kdjax.models.graphs.can_errors import node_errors, sent_to
from kdjax.models.graphs.can_vgae import PARAMETERS, VARIANTS, build_can_vgae
from tests.models.graphs.test_can_gat import shapes, started
from tests.models.vision.test_tinyusfm import close, size
from tests.support.graph_packs import eaten, nodes_of, packed, random_graphs
from tests.support.quick import QUICK

SMALL = {
    "encoder": (6, 4),
    "encoder_heads": (2, 1),
    "decoder": (6,),
    "decoder_heads": (2,),
    "latent": 3,
    "num_ids": 9,
    "features": 5,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_published_sizes_and_the_documented_endpoints(variant):
    num_ids, expected = PARAMETERS[variant]
    model = build_can_vgae(variant, num_ids=num_ids)
    variables, out = shapes(model)
    assert size(variables["params"]) == expected
    assert set(out) == set(model.endpoints)
    assert out["features"].shape == (24, 10)
    assert out["neighbour_logits"].shape == (24, num_ids)
    assert out["posterior"].shape == (24, 2 * model.options.latent)
    assert out["anomaly_parts"].shape == (9, 3)


@pytest.mark.long
def test_training_samples_z_and_evaluation_does_not():
    model = build_can_vgae(**SMALL, dropout=0.0)
    variables, inputs = started(model), eaten(model)

    def sample(key):
        return model.apply(variables, *inputs, train=True, rngs={"dropout": key}, mutable=["batch_stats"])[0]

    out = jax.jit(jax.vmap(sample), compiler_options=QUICK)(jax.random.split(jax.random.key(0), 300))
    error = (out["z"] - out["z_mean"]) / jnp.exp(out["z_logvar"] / 2)
    assert abs(error.mean()) < 0.02
    assert 0.98 < error.std() < 1.02
    assert abs((error[:, 0, 0] * error[:, 1, 0]).mean()) < 0.2  # nodes have noise of their own
    out = jax.jit(model.apply, compiler_options=QUICK)(variables, *inputs)
    np.testing.assert_array_equal(out["z"], out["z_mean"])


def test_padding_is_no_part_of_the_statistics():
    """Those of the encoder, which sees nothing sampled; padding nodes are far from the others."""
    model = build_can_vgae(**SMALL, dropout=0.0)
    variables, graphs = started(model), random_graphs(5, 5, 9)
    few, many = packed([graphs]), packed([graphs[:4], graphs[4:]], nodes=50, graphs=7)
    many.nodes["x"][nodes_of(many) == 7] = 100

    @partial(jax.jit, compiler_options=QUICK)
    def encoder_statistics(packs):
        _, changed = Network(model)(variables, {"graphs": packs}, train=True, key=jax.random.key(0))
        return {k: v for k, v in changed["batch_stats"].items() if k.startswith("encoder")}

    statistics, divided = encoder_statistics(few), encoder_statistics(many)
    assert len(statistics) == 2
    jax.tree.map(lambda a, b: close(a, b), divided, statistics)
    alone = jax.tree.map(lambda x: jnp.asarray(x[0]), few)
    keys = {"dropout": jax.random.key(0)}
    # Mapped over nothing.
    run = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]), compiler_options=QUICK)
    _, changed = run(variables, alone, rngs=keys)
    jax.tree.map(lambda a, b: close(a, b), {k: changed["batch_stats"][k] for k in statistics}, statistics)


@pytest.mark.long
def test_extreme_posteriors_stay_finite():
    model = build_can_vgae(**SMALL)
    variables, inputs = started(model), eaten(model)
    variables["params"]["z_logvar"]["bias"] += jnp.array([1e4, -1e4, 0])

    def loss(params):
        given = {**variables, "params": params}
        out, _ = model.apply(given, *inputs, train=True, rngs={"dropout": jax.random.key(0)}, mutable=["batch_stats"])
        return sum(jnp.mean(out[name]) for name in out), out

    slopes, out = jax.jit(jax.grad(loss, has_aux=True), compiler_options=QUICK)(variables["params"])
    assert float(out["z_logvar"][..., 0].min()) == 20.0
    assert float(out["z_logvar"][..., 1].max()) == -20.0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((slopes, out)))


def test_errors_by_hand():
    """In float64 and graph by graph, two nodes of the unknown id being one target."""
    rng = np.random.default_rng(0)
    graphs, k = random_graphs(4, 5, 7), 7
    packs = packed([graphs[:3], graphs[3:]], nodes=30, graphs=3)
    x, ids, senders, receivers = packs.nodes["x"], packs.nodes["id"], packs.senders, packs.receivers
    of = nodes_of(packs)
    features, logits, neighbours = (rng.normal(0, 3, size=(*ids.shape, d)).astype(np.float32) for d in (5, k, k))
    errors = jax.vmap(node_errors)(features, logits, neighbours, packs)
    out = {name: np.asarray(value, np.float64) for name, value in errors.items()}
    softplus = lambda x: np.logaddexp(0, x.astype(np.float64))  # noqa: E731
    for p in range(2):
        for i in range(30):
            reached = {ids[p, b] for a, b in zip(senders[p], receivers[p], strict=True) if a == i}
            own, others = logits[p, i].astype(np.float64), neighbours[p, i]
            binary = [softplus(-others[j]) if j in reached else softplus(others[j]) for j in range(k)]
            square = np.mean((features[p, i].astype(np.float64) - x[p, i]) ** 2)
            np.testing.assert_allclose(out["feature_error"][p, i], square, rtol=1e-5)
            np.testing.assert_allclose(out["neighbour_error"][p, i], np.mean(binary), rtol=1e-5)
            np.testing.assert_allclose(out["id_error"][p, i], np.log(np.exp(own).sum()) - own[ids[p, i]], rtol=1e-5)
        for g in range(3):
            nodes = of[p] == g
            parts = [0.0, 0.0, 0.0]
            if nodes.any():
                wrong = (logits[p, nodes].argmax(-1) != ids[p, nodes]).mean()
                parts = [out["feature_error"][p, nodes].max(), out["neighbour_error"][p, nodes].max(), wrong]
            np.testing.assert_allclose(out["anomaly_parts"][p, g], parts, rtol=1e-6)


def test_several_neighbours_of_one_id_are_one_target():
    sent = sent_to(jnp.array([4, 2, 2, 0]), jnp.array([0, 0, 1, 3]), jnp.array([1, 2, 0, 3]), 5)
    expected = np.zeros((4, 5), bool)
    expected[[0, 1, 3], [2, 4, 0]] = True
    np.testing.assert_array_equal(sent, expected)


def test_impossible_models_say_what_to_do():
    cases = [
        ({"variant": "c_larg"}, "no VGAE variant 'c_larg'; did you mean 'c_large'"),
        (SMALL | {"encoder_heads": (4, 1)}, r"encoder_heads: expected a divisor of each of encoder \(6, 4\), found"),
        (
            SMALL | {"decoder_heads": (), "conv": "gcn", "latent": 0},
            "decoder_heads.*\n.*conv: no 'gcn'.*\n.*latent: exp",
        ),
        (SMALL | {"dropout": 1.5}, "dropout: expected a rate"),
    ]
    for options, message in cases:
        with pytest.raises(ConfigError) as error:
            build_can_vgae(**options)
        assert re.search(message, str(error.value))
