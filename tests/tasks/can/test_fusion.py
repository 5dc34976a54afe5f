"""What an action earns, the simpler ways to fuse, and the table in which they stand beside the agent."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score

from kdjax.config import ConfigError, Data
from kdjax.tasks import task as finished
from kdjax.tasks.can import fusing
from kdjax.tasks.can.fusion import NEEDED, Agent, Fusion
from tests.tasks.test_detection import Sets

TASK = Fusion.of(Data("can_traffic"))


def earned(alpha: float, anomaly: float, probability: float, attack: bool) -> float:
    """DQN-Fusion's reward for one graph."""
    score = (1 - alpha) * anomaly + alpha * probability
    agreement = 1 - abs(anomaly - probability)
    sure = [2 * abs(x - 0.5) for x in (anomaly, probability, score)]
    balance = 0.3 * (1 - 2 * abs(alpha - 0.5))
    alarm = score > 0.5
    if alarm == attack:
        return 3 + agreement + 0.5 * sure[2] + 0.3 * max(sure[:2]) + balance
    return -3 - (1 - agreement) - 1.5 * (score if alarm else 1 - score) + balance


def test_the_reward_is_the_originals():
    rng = np.random.default_rng(0)
    alpha = rng.integers(0, 21, 200) / 20
    anomaly, probability, label = rng.random(200), rng.random(200), rng.integers(0, 2, 200)
    expected = [earned(*told) for told in zip(alpha, anomaly, probability, label == 1, strict=True)]
    given = (jnp.asarray(x, jnp.float32) for x in (alpha, anomaly, probability))
    np.testing.assert_allclose(TASK.reward(*given, jnp.asarray(label)), expected, rtol=1e-5, atol=1e-5)


def test_the_decision_is_that_of_the_fused_score():
    """The original trains on "alpha > 0.5" as the decision, and judges by the score."""
    for attack, sign in ((0, 1), (1, -1)):  # nothing says attack, however much the classifier counts
        for alpha in (0.0, 0.4, 0.6, 1.0):
            told = (jnp.array([x]) for x in (alpha, 0.1, 0.2))
            assert sign * float(TASK.reward(*told, jnp.array([attack]))[0]) > 2


def test_it_pays_to_hear_the_one_who_is_right():
    alphas = jnp.arange(21) / 20
    for anomaly, probability, sign in ((0.1, 0.95, 1), (0.95, 0.1, -1)):
        told = (jnp.full(21, x) for x in (anomaly, probability))
        best = int(TASK.reward(alphas, *told, jnp.ones(21, int)).argmax())
        assert sign * (best - 10) > 0


# -- simpler ways ----------------------------------------------------------------------------------------------------


def seen(n: int, seed: int, good: str = "probability", strength: float = 2.0) -> fusing.Seen:
    """One of both scores knows something, the other is noise; a state of both and of more noise."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    knows = 1 / (1 + np.exp(-strength * (2 * label - 1) - rng.normal(size=n)))
    noise = rng.random(n)
    anomaly, probability = (noise, knows) if good == "probability" else (knows, noise)
    state = np.stack([anomaly, probability, rng.normal(3, 9, n)], axis=1)
    return fusing.Seen(*(x.astype(np.float32) for x in (state, anomaly, probability)), label)


@functools.cache
def fitted(good: str) -> dict[str, fusing.Scorer]:
    return fusing.baselines(seen(400, 0, good), seen(200, 1, good))


@pytest.mark.parametrize("good", ["anomaly", "probability"])
def test_every_way_finds_what_there_is_to_find(good):
    assert list(fitted(good)) == ["weighted average", "logistic regression", "small MLP", "bandit"]
    fresh = seen(500, 2, good)
    for title, score in fitted(good).items():
        found = score(fresh)
        assert found.shape == (500,)
        best = roc_auc_score(fresh.label, getattr(fresh, good))
        assert best > 0.97
        assert roc_auc_score(fresh.label, found) > (0.9 if title == "bandit" else best - 0.02), title
        limit = 0.0 if title in ("logistic regression", "small MLP") else 0.5
        assert f1_score(fresh.label, found > limit) > 0.85, title


@pytest.mark.parametrize(("good", "end"), [("anomaly", 0), ("probability", 1)])
def test_the_weighted_average_hears_the_one_who_knows(good, end):
    fresh = seen(50, 2, good)
    found = fitted(good)["weighted average"](fresh)
    alpha = (found - fresh.anomaly) / (fresh.probability - fresh.anomaly)
    assert np.median(alpha) == pytest.approx(end, abs=0.21)
    np.testing.assert_allclose(alpha, np.median(alpha), atol=1e-3)


def test_the_logistic_regression_is_the_usual_one():
    train, fresh = seen(400, 0), seen(50, 1)
    found = fitted("probability")["logistic regression"](fresh)
    middle, spread = train.state.mean(axis=0), train.state.std(axis=0)
    usual = LogisticRegression(C=1 / (2e-4 * 400), tol=1e-8).fit((train.state - middle) / spread, train.label)
    expected = usual.decision_function((fresh.state - middle) / spread)
    np.testing.assert_allclose(found, expected, atol=0.01 * np.abs(expected).max())


def test_the_bandit_is_linucb():
    """Li et al. 2010, algorithm 1, with whole inverses and a graph at a time."""
    train, fresh = seen(400, 0), seen(40, 1)
    middle, spread = train.state.mean(axis=0), train.state.std(axis=0)
    wide = lambda s: np.concatenate([(s.state - middle) / spread, np.ones((len(s.state), 1))], axis=1)  # noqa: E731
    a, b = [np.eye(4) for _ in range(21)], [np.zeros(4) for _ in range(21)]
    for x, anomaly, probability, label in zip(wide(train), train.anomaly, train.probability, train.label, strict=True):
        hopes = [x @ np.linalg.inv(A) @ s + 0.5 * np.sqrt(x @ np.linalg.inv(A) @ x) for A, s in zip(a, b, strict=True)]
        k = int(np.argmax(np.round(hopes, 9)))
        a[k] += np.outer(x, x)
        b[k] += earned(k / 20, float(anomaly), float(probability), label == 1) * x
    hopes = wide(fresh) @ np.stack([np.linalg.solve(A, s) for A, s in zip(a, b, strict=True)]).T
    alpha = hopes.argmax(axis=1) / 20
    expected = (1 - alpha) * fresh.anomaly + alpha * fresh.probability
    assert len(set(alpha)) > 1
    np.testing.assert_allclose(fitted("probability")["bandit"](fresh), expected, rtol=1e-4, atol=1e-5)


def test_the_options_are_the_agents():
    assert Fusion.of(Data("can_traffic"), gamma=0.5).agent == Agent(gamma=0.5)
    with pytest.raises(ConfigError, match="no option 'gama'; did you mean 'gamma'"):
        Fusion.of(Data("can_traffic"), gama=0.5)


# -- the table -------------------------------------------------------------------------------------------------------


def outputs() -> dict:
    rng = np.random.default_rng(0)
    told = {k: rng.random((2, 4)) for k in ("anomaly", "probability", "alpha")}
    told |= {
        "state": rng.normal(size=(2, 4, 3)),
        "q": rng.normal(size=(2, 4, 21)),
        "logits": rng.normal(size=(2, 4, 1)),
    }
    return {k: jnp.asarray(v, jnp.float32) for k, v in told.items()}


def test_what_it_predicts_is_all_that_the_table_needs():
    out = outputs()
    found = TASK.predict(out, {})
    for name in ("anomaly", "probability", "alpha", "state"):
        np.testing.assert_array_equal(found[name], out[name])
    np.testing.assert_array_equal(found["score"], out["logits"][..., 0])
    TASK.check(out)
    for name in NEEDED:
        with pytest.raises(ConfigError, match=f"this one has no {name}$"):
            TASK.check({k: v for k, v in out.items() if k != name})


@pytest.mark.long
def test_the_agent_stands_beside_the_simpler_ways():
    dataset, made = Sets(), {}
    for split in ("train", "val", "test"):
        label = np.maximum(dataset.labels(split), 0)
        of = seen(len(label), 5)
        probability = np.clip(0.15 + 0.7 * label, 0, 1)
        score = np.log(probability / (1 - probability))
        made[split] = {"score": score, "anomaly": of.anomaly, "probability": probability.astype(np.float32)}
        made[split] |= {"alpha": np.ones(len(label), np.float32), "state": of.state}
    result, table = TASK.test(made.__getitem__, dataset, {"threshold": 0.0})
    assert result["metrics"]["f1"]["mean"] == 1.0
    assert len(table) == 10
    beside = {row["title"]: row for row in result["beside"]}
    assert list(beside) == ["weighted average", "logistic regression", "small MLP", "bandit"]
    assert all(set(row) == {"title", "metrics", "per_class", "per_image", "threshold"} for row in beside.values())
    assert beside["weighted average"]["metrics"]["f1"]["mean"] == 1.0
    row = {"title": "agent", "role": "other", **result}
    (section,) = TASK.pictures([finished.Tested(row, dataset, made["test"])]).values()
    assert "weight of the classifier over what both models say" in section
