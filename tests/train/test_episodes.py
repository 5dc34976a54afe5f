"""An agent that plays batches as episodes: it finds what pays, remembers in a ring, and goes on where it was."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax.config import ConfigError, Log, Optim, Task
from kdjax.tasks.can.fusion import Agent, Fusion
from kdjax.train import loop
from kdjax.train.episodes import EpisodeStep
from kdjax.train.setup import initial
from kdjax.train.signals import Signals, Stopped
from kdjax.train.step import State
from kdjax.weights import safetensors
from tests.support import tiny, tiny_graphs
from tests.train.test_loop import StopsAfter, records

KINDS, ACTIONS = 3, 5
RATE = 1e-2
KNOBS = {"lr": np.float32(1), "seed": np.uint32(0)}
RIGHT = np.array([0, 3, 4])  # the action that each kind of state asks for


@dataclass(frozen=True)
class Game(Fusion):
    """One action is right for each state, which the anomaly tells the judge; the rest earns nothing."""

    def reward(self, alpha: Any, anomaly: Any, probability: Any, label: Any) -> Any:
        kind = jnp.round(anomaly * (KINDS - 1)).astype(int)
        return (jnp.round(alpha * (ACTIONS - 1)) == jnp.asarray(RIGHT)[kind]).astype(jnp.float32)


class Told(tiny_graphs.Actor):
    """The anomaly is the kind of the state."""

    def __call__(self, *given, train=False):
        out = super().__call__(*given, train=train)
        return {**out, "anomaly": out["state"].argmax(axis=-1) / (KINDS - 1)}


@functools.cache
def started(model: Told) -> dict:
    return jax.jit(functools.partial(initial, model))(jax.random.key(0))["params"]


def made(dropout: float = 0.0, **plan) -> tuple[EpisodeStep, State, dict]:
    agent = tiny_graphs.build_actor(KINDS, ACTIONS, dropout).agent
    model = Told(agent, KINDS)
    variables = started(model)
    params = {"model": {"agent": variables["agent"]}}
    game = Game(Agent(**{"replay": 64, "batch_size": 16, "acts": 4, "target_every": 5, **plan}))
    step = EpisodeStep(model, optax.with_extra_args_support(optax.scale_by_adam()), lambda update: RATE, game)
    none: dict = {}
    state = State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        collections={"model": none, **step.collections(params)},
        opt_state=step.tx.init(params),
        slow=none,
        ema=none,
    )
    return step, state, {"frozen": {"model": {"eyes": variables["eyes"]}}, "teachers": none}


def states(seed: int, n: int = 32) -> np.ndarray:
    return np.eye(KINDS, dtype=np.float32)[np.random.default_rng(seed).integers(0, KINDS, n)]


def test_it_finds_the_right_action_and_explores_less_and_less():
    step, state, fixed = made(gamma=0.0, explore=0.5, explore_decay=0.8, explore_end=0.02)
    train, earned = jax.jit(step.train), []
    for i in range(25):
        state, measures = train(state, fixed, KNOBS, tiny_graphs.single_nodes(states(i)))
        total, count = measures["reward"]
        assert count == 32
        assert float(measures["explore"][0]) == pytest.approx(max(0.5 * 0.8**i, 0.02))
        earned.append(float(total / count))
    assert np.mean(earned[:3]) < 0.6
    assert np.mean(earned[-5:]) > 0.95
    q = np.asarray(step.q(state.params, jnp.eye(KINDS)))
    assert q.argmax(axis=1).tolist() == RIGHT.tolist()
    np.testing.assert_allclose(q.max(axis=1), 1.0, atol=0.2)
    assert int(state.step) == 25


@pytest.mark.parametrize("explore", [0.0, 1.0])
def test_an_action_is_the_best_one_or_drawn(explore):
    """Without a learning rate the network stays; then what it did is what it says, or anything."""
    step, state, fixed = made(explore=explore, explore_end=explore, explore_decay=1.0)
    step = EpisodeStep(step.model, step.tx, lambda update: 0.0, step.task)
    state, _ = jax.jit(step.train)(state, fixed, KNOBS, tiny_graphs.single_nodes(states(3, 64)))
    replay = {k: np.asarray(v) for k, v in state.collections["replay"].items()}
    best = np.asarray(step.q(state.params, jnp.asarray(replay["state"]))).argmax(axis=1)
    if explore:
        counts = np.bincount(replay["action"].astype(int), minlength=ACTIONS)
        assert (counts > 5).all(), counts
        assert 0 < (replay["action"] == best).mean() < 0.5
    else:
        np.testing.assert_array_equal(replay["action"], best)
    kind = replay["state"].argmax(axis=1)
    np.testing.assert_array_equal(replay["reward"], replay["action"] == RIGHT[kind])


def test_the_memory_is_a_ring():
    """20 places, episodes of 16: the second begins to write over the first."""
    step, state, fixed = made(replay=20)
    train, rng = jax.jit(step.train), np.random.default_rng(0)
    kept: dict = {k: np.zeros(v.shape, np.float32) for k, v in state.collections["replay"].items()}
    written = 0
    for _ in range(3):
        seen, known = rng.random((18, KINDS)).astype(np.float32), rng.random(18) < 0.7
        state, _ = train(state, fixed, KNOBS, tiny_graphs.single_nodes(seen, known=known))
        for i in range(16):  # two are left over: an update acts on four
            at = written % 20
            kept["state"][at], kept["next"][at] = seen[i], seen[(i + 1) % 16]
            kept["last"][at], kept["counts"][at] = i == 15, known[i]
            written += 1
        assert int(state.collections["filled"]) == written
        for name in ("state", "next", "last", "counts"):
            np.testing.assert_allclose(state.collections["replay"][name], kept[name], rtol=1e-6, err_msg=name)


# -- the loss --------------------------------------------------------------------------------------------------------


def network(params: dict, x: np.ndarray) -> np.ndarray:
    """The agent in numpy: linear, norm over the channels, ReLU, linear."""
    p = jax.tree.map(lambda v: np.asarray(v, np.float64), params["model"]["agent"])
    x = x @ p["net_0"]["kernel"] + p["net_0"]["bias"]
    x = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    x = np.maximum(x * p["net_1"]["scale"] + p["net_1"]["bias"], 0)
    return x @ p["net_4"]["kernel"] + p["net_4"]["bias"]


def transitions(n: int = 40) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    told = {"state": rng.normal(size=(n, KINDS)), "next": rng.normal(size=(n, KINDS))}
    told |= {"action": rng.integers(0, ACTIONS, n), "reward": rng.normal(0, 3, n)}
    told |= {"last": rng.random(n) < 0.3, "counts": rng.random(n) < 0.8}
    return {k: v.astype(np.float32) for k, v in told.items()}


def moved(params: dict, seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(x + rng.normal(0, 0.5, x.shape), jnp.float32), params)


def test_the_target_is_double_q():
    """The network chooses the next action, the older copy says what it is worth; the last of an episode has no next."""
    step, state, _ = made(gamma=0.8)
    online, older, some = moved(state.params, 1), moved(state.params, 2), transitions()
    each, single = [], []
    for i in range(len(some["state"])):
        now, after, before = (
            network(p, some[k][i : i + 1].astype(np.float64))[0]
            for p, k in ((online, "state"), (online, "next"), (older, "next"))
        )
        for values, best in ((each, after.argmax()), (single, before.argmax())):
            target = some["reward"][i] + 0.8 * (1 - some["last"][i]) * before[best]
            apart = abs(now[int(some["action"][i])] - target)
            values.append(some["counts"][i] * (apart**2 / 2 if apart < 1 else apart - 0.5))
    known = some["counts"].sum()
    assert 0 < known < len(each)
    assert not np.isclose(np.sum(each), np.sum(single), rtol=1e-2), "plain Q-learning would be another number"
    given = {k: jnp.asarray(v) for k, v in some.items()}
    loss = jax.jit(step.loss)
    assert float(loss(online, older, given, jax.random.key(0))) == pytest.approx(np.sum(each) / known, rel=1e-5)
    wild = {k: jnp.where(given["counts"] > 0, v, 99.0) if k == "reward" else v for k, v in given.items()}
    assert float(loss(online, older, wild, jax.random.key(0))) == pytest.approx(np.sum(each) / known, rel=1e-5)


def test_the_gradient_is_that_of_the_promise_alone():
    step, state, _ = made(gamma=0.8)
    online, older, some = moved(state.params, 1), moved(state.params, 2), transitions()
    after = network(online, some["next"].astype(np.float64)).argmax(axis=1)
    worth = network(older, some["next"].astype(np.float64))[np.arange(len(after)), after]
    target = jnp.asarray(some["reward"] + 0.8 * (1 - some["last"]) * worth, jnp.float32)

    def plain(params):
        q = step.q(params, jnp.asarray(some["state"]))[jnp.arange(len(after)), some["action"].astype(int)]
        each = jnp.where(jnp.abs(q - target) < 1, (q - target) ** 2 / 2, jnp.abs(q - target) - 0.5)
        return (each * some["counts"]).sum() / some["counts"].sum()

    given = {k: jnp.asarray(v) for k, v in some.items()}
    found = jax.jit(jax.grad(step.loss))(online, older, given, jax.random.key(0))
    assert tiny.largest_difference(found, jax.jit(jax.grad(plain))(online)) < 1e-4
    both = jax.jit(jax.grad(step.loss, argnums=1))(online, older, given, jax.random.key(0))
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(both))


def test_it_learns_with_dropout_and_acts_without():
    step, state, _ = made(dropout=0.5)
    given = {k: jnp.asarray(v) for k, v in transitions().items()}
    one, two = (float(step.loss(state.params, state.params, given, jax.random.key(i))) for i in (0, 1))
    assert one != two
    np.testing.assert_allclose(
        step.q(state.params, given["state"]), network(state.params, np.asarray(given["state"], np.float64)), atol=1e-5
    )


def test_the_target_is_copied_at_every_fifth_update():
    step, state, fixed = made()
    train, copied = jax.jit(step.train), state.params
    for update in range(1, 12):
        state, _ = train(state, fixed, KNOBS, tiny_graphs.single_nodes(states(update, 4)))
        copied = state.params if update % 5 == 0 else copied
        assert tiny.largest_difference(state.collections["target"], copied) == 0
        assert (tiny.largest_difference(state.params, copied) > 1e-3) == (update % 5 != 0)


# -- as a stage ------------------------------------------------------------------------------------------------------

GAME = Task("fusion", replay=50, batch_size=8, acts=4, target_every=3)
EYES = ((r"model/agent/.*", True), (r".*", False))
MODEL = "tests.support.tiny_graphs:build_actor"


def learner(**fields):
    optim = Optim("adamw", lr=1e-2, schedule="constant", clip=1.0, trainable=EYES)
    given = {"task": GAME, "model": tiny_graphs.Model(MODEL), "optim": optim, **fields}
    return tiny_graphs.learner(tiny_graphs.stage(grad_norms_every=0, **given))


def train(folder, signals=None) -> tuple[dict, Any]:
    one = learner()
    with signals or Signals() as signals:
        return loop.train(one, folder, {}, {}, Log(every=1, tensorboard=False), signals), one


UNTIMED = {"seconds": 0, "wait": 0, "rate": 0}


@pytest.mark.long
def test_killed_it_ends_in_the_same_bits_and_the_eyes_stay(tmp_path):
    whole, one = train(tmp_path / "whole")
    with pytest.raises(Stopped):
        train(tmp_path / "cut", StopsAfter(one.steps_per_epoch + 2))
    again, _ = train(tmp_path / "cut")
    assert again | UNTIMED == whole | UNTIMED
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    told = records(tmp_path / "whole", "train")
    assert {"loss", "reward", "explore", "lr"} <= told[0].keys()
    left, _ = safetensors.load(tmp_path / "whole" / "model.safetensors")
    state, fixed, _ = one.start({}, {})
    assert tiny.largest_difference(left["params"]["eyes"], fixed["frozen"]["model"]["eyes"]) == 0
    assert tiny.largest_difference(left["params"]["agent"], state.params["model"]["agent"]) > 1e-3
    assert whole["trained_parameters"] < whole["parameters"]


def test_an_option_that_no_agent_has_is_refused():
    with pytest.raises(ConfigError, match="no option 'replays'; did you mean 'replay'"):
        learner(task=Task("fusion", replays=50))
