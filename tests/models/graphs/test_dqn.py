"""The Q network, and the fusion of VGAE and GAT that it decides on."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from kdjax.config import ConfigError
from kdjax.models.graphs.can_fusion import STATE, build_can_fusion, joint_state, logit, scores_of
from kdjax.models.graphs.dqn import PARAMETERS, build_dqn
from tests.models.graphs.test_can_gat import SMALL as GAT
from tests.models.graphs.test_can_gat import shapes, started
from tests.models.graphs.test_can_vgae import SMALL as VGAE
from tests.models.vision.test_tinyusfm import close, size
from tests.support.graph_packs import eaten, nodes_of, over_packs, packed, random_graphs
from tests.support.quick import QUICK
from tests.support.torch_names import to_flax
from tests.support.twins import randomised


def fusion(**gat):
    return build_can_fusion(
        {"name": "can_vgae", "options": VGAE}, {"name": "can_gat", "options": GAT | gat}, {"hidden": 6, "layers": 1}
    )


@pytest.mark.parametrize("variant", PARAMETERS)
def test_the_published_sizes(variant):
    model = build_dqn(variant)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 15)))
    assert size(variables["params"]) == PARAMETERS[variant]
    assert {name: spec.shape(3).shape for name, spec in model.inputs.items()} == {"state": (3, 15)}


def test_the_q_network_as_torch_computes_it():
    module, c = [], 15
    for _ in range(2):
        module += [nn.Linear(c, 160), nn.LayerNorm(160), nn.ReLU(), nn.Dropout(0.2)]
        c = 160
    module = randomised(nn.ModuleDict({"net": nn.Sequential(*module, nn.Linear(c, 21))})).eval()
    model, state = build_dqn("small"), np.random.default_rng(0).normal(size=(4, 7, 15)).astype(np.float32)
    abstract = jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(state))
    variables = to_flax({k: v.numpy() for k, v in module.state_dict().items()}, abstract)
    found = model.apply(variables, jnp.asarray(state))
    assert set(found) == set(model.endpoints)
    close(found["q"], module["net"](torch.from_numpy(state)).detach().numpy())


@pytest.mark.parametrize("binary", [True, pytest.param(False, marks=pytest.mark.long)])
def test_the_state_by_hand(binary):
    """Graph by graph in float64, of what both models say alone; 0 without nodes."""
    model = fusion(binary_logit=binary)
    graphs = random_graphs(5, 5, 9)
    packs = packed([graphs[:3], graphs[3:]], nodes=40)
    variables = started(model)
    variables["params"]["vgae"]["z_mean"]["kernel"] *= 10
    apply = lambda model, variables: jax.jit(over_packs(partial(model.apply, variables)), compiler_options=QUICK)(packs)  # noqa: E731
    out = apply(model, variables)
    assert set(out) == set(model.endpoints)
    parts = {part: {k: v[part] for k, v in variables.items() if part in v} for part in ("vgae", "gat")}
    vgae, gat = (apply(getattr(model, part), parts[part]) for part in ("vgae", "gat"))
    graph = nodes_of(packs)
    for p, g in np.ndindex(packs.n_node.shape):
        found = dict(zip(STATE, np.asarray(out["state"][p, g]), strict=True))
        if not packs.n_node[p, g]:
            assert not any(found.values())
            continue
        nodes = graph[p] == g
        of = lambda name: np.asarray(vgae[name][p], np.float64)[nodes]  # noqa: B023, E731
        logits, e = (np.asarray(gat[name][p, g], np.float64) for name in ("logits", "embedding"))
        odds = np.exp(logits if len(logits) == 2 else [0, logits[0]])
        prob = odds / odds.sum()
        z, error = of("z"), of("feature_error").mean()
        expected = [error, of("neighbour_error").mean(), of("id_error").mean()]
        expected += [z.mean(), z.std(ddof=1), z.max(), z.min(), 1 / (1 + error)]
        expected += [*prob, e.mean(), e.std(ddof=1), e.max(), e.min(), 1 + (prob * np.log(prob)).sum() / np.log(2)]
        for name, value in zip(STATE, expected, strict=True):
            np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=2e-6, err_msg=name)
        q = np.asarray(out["q"][p, g])
        alpha = q.argmax() / 20
        anomaly = np.clip(np.dot(expected[:3], [0.4, 0.35, 0.25]), 0, 1)
        score = (1 - alpha) * anomaly + alpha * prob[1]
        np.testing.assert_allclose(out["alpha"][p, g], alpha, rtol=1e-6)
        np.testing.assert_allclose(out["anomaly"][p, g], anomaly, rtol=1e-5)
        np.testing.assert_allclose(out["probability"][p, g], prob[1], rtol=1e-5)
        np.testing.assert_allclose(1 / (1 + np.exp(-out["logits"][p, g, 0])), min(score, 1 - 5e-7), rtol=1e-5)


@pytest.mark.long
def test_training_reaches_the_agent_alone():
    model = fusion()
    variables, inputs = started(model), eaten(model)

    def loss(params, key):
        given = {**variables, "params": params}
        out, changed = model.apply(given, *inputs, train=True, rngs={"dropout": key}, mutable=["batch_stats"])
        return out["q"].sum() + out["logits"].sum() + out["state"].sum(), (out, changed)

    grad = jax.jit(jax.grad(loss, has_aux=True), compiler_options=QUICK)
    slopes, (out, changed) = grad(variables["params"], jax.random.key(0))
    assert not any(leaf.any() for part in ("vgae", "gat") for leaf in jax.tree.leaves(slopes[part]))
    assert all(leaf.any() for leaf in jax.tree.leaves(slopes["agent"]["net_4"]))
    jax.tree.map(
        np.testing.assert_array_equal, changed.get("batch_stats", variables["batch_stats"]), variables["batch_stats"]
    )
    plain = jax.jit(model.apply, compiler_options=QUICK)(variables, *inputs)
    close(out["state"], plain["state"])
    other = grad(variables["params"], jax.random.key(1))[1][0]
    assert not np.array_equal(out["q"], other["q"])


@pytest.mark.long
def test_the_agent_alone():
    model = fusion()
    variables, state = started(model), jax.random.normal(jax.random.key(0), (6, 15))
    alone = {"params": {"agent": variables["params"]["agent"]}}
    found = model.apply(alone, state, method="agent_of")
    np.testing.assert_array_equal(found, model.agent.apply({"params": alone["params"]["agent"]}, state)["q"])
    keys = {"dropout": jax.random.key(0)}
    assert not np.array_equal(model.apply(alone, state, True, method="agent_of", rngs=keys), found)
    whole, states = (
        jax.jit(partial(model.apply, method=method), compiler_options=QUICK)(variables, *eaten(model))
        for method in (None, "state_of")
    )
    close(states, whole["state"])


def test_the_score_is_a_probability_already():
    """A second softmax, which the original takes, would never leave [0.27, 0.73]."""
    state = jnp.zeros((2, 15)).at[:, STATE.index("p_attack")].set(jnp.array([0.0, 1.0])).at[1, :3].set(9.0)
    anomaly, probability = scores_of(state)
    np.testing.assert_array_equal(probability, [0, 1])
    np.testing.assert_array_equal(anomaly, [0, 1])


def test_the_logit_has_the_sign_of_the_decision():
    half = np.float32(0.5)
    near = [np.nextafter(half, np.float32(0)), half, np.nextafter(half, np.float32(1))]
    found = np.asarray(logit(jnp.array([0, 0.25, *near, 0.75, 1])))
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found > 0, [False, False, False, False, True, True, True])
    np.testing.assert_allclose(found[[1, 5]], [-np.log(3), np.log(3)], rtol=1e-5)


@pytest.mark.long
def test_extreme_answers_stay_finite():
    model = fusion()
    (graphs,) = eaten(model)
    vgae, gat = (shapes(part)[1] for part in (model.vgae, model.gat))
    for value in (1e18, -1e18, 0.0):
        far = [{k: jnp.full(v.shape, value) for k, v in out.items()} for out in (vgae, gat)]
        assert np.isfinite(joint_state(*far, graphs)[..., 8:10]).all()


def test_impossible_models_say_what_to_do():
    vgae, gat = {"name": "can_vgae", "options": VGAE}, {"name": "can_gat", "options": GAT}
    cases = [
        (lambda: build_dqn(hidden=0, dropout=1.0), "hidden: expected at least 1, found 0\n  dropout: expected"),
        (lambda: build_dqn("tiny"), "no Q network variant 'tiny'; known: large, small"),
        (
            lambda: build_can_fusion(gat, vgae),
            "vgae: can_gat has no endpoint feature_error, .*\n  gat: can_vgae has no",
        ),
        (lambda: build_can_fusion(vgae), "read the same graphs, found GraphInput.*5.* and GraphInput.*10"),
        (
            lambda: build_can_fusion(vgae, gat | {"options": GAT | {"num_classes": 3}}),
            "two classes, normal and attack, f",
        ),
    ]
    for build, message in cases:
        with pytest.raises(ConfigError) as error:
            build()
        assert re.search(message, str(error.value))
