"""Ways to fuse an anomaly score with a classifier's probability: what an agent earns, and what it has to beat."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.optimize import minimize

from kdjax.report.metrics import detection

ACTIONS = 21
HIDDEN = 32


@dataclass(frozen=True)
class Seen:
    """What is known of each graph: a row of numbers, the anomaly and the probability in [0, 1], the label."""

    state: Float[np.ndarray, "n s"]
    anomaly: Float[np.ndarray, " n"]
    probability: Float[np.ndarray, " n"]
    label: Int[np.ndarray, " n"]


Scorer = Callable[[Seen], np.ndarray]


def fused(alpha: Any, anomaly: Any, probability: Any) -> Any:
    """The weight `alpha` of the probability."""
    return (1 - alpha) * anomaly + alpha * probability


def reward(
    alpha: Float[Array, "*#b"], anomaly: Float[Array, "*#b"], probability: Float[Array, "*#b"], label: Array
) -> Float[Array, "*_"]:
    """What the weight `alpha` of the probability earns: DQN-Fusion's reward.

    ±3 for the decision at 0.5; where it is right, how far both agree, half the confidence of the fused score and 0.3 of
    the larger one of the two; where it is wrong, less for disagreement and for confidence; and a little for weights
    that hear both. A confidence is the distance from 0.5, doubled.
    """
    score = fused(alpha, anomaly, probability)
    agreement = 1 - jnp.abs(anomaly - probability)
    confidence = 2 * jnp.abs(score - 0.5)
    surest = 2 * jnp.maximum(jnp.abs(anomaly - 0.5), jnp.abs(probability - 0.5))
    right = 3 + agreement + 0.5 * confidence + 0.3 * surest
    wrong = -3 - (1 - agreement) - 1.5 * jnp.where(label == 1, 1 - score, score)
    return jnp.where((score > 0.5) == (label == 1), right, wrong) + 0.3 * (1 - 2 * jnp.abs(alpha - 0.5))


def baselines(train: Seen, val: Seen) -> dict[str, Scorer]:
    """Ways that need no reinforcement learning, fitted on the training data."""
    return {
        "weighted average": _weighted(val),
        "logistic regression": _network(train, 0),
        "small MLP": _network(train, HIDDEN),
        "bandit": _bandit(train),
    }


def _weighted(val: Seen) -> Scorer:
    """One weight for all graphs: that of the best F1 on validation data, of equally good ones the best AUC."""

    def quality(alpha: float) -> tuple[float, float]:
        scores = fused(alpha, val.anomaly, val.probability)
        if len(np.unique(val.label)) < 2:
            return 0.0, 0.0
        limit = detection.calibrate(scores, val.label)
        measures = detection.measure(scores, val.label, limit)
        return measures["f1"], measures["auc"]

    best = max(np.linspace(0, 1, ACTIONS), key=quality)
    return lambda seen: fused(best, seen.anomaly, seen.probability)


def _network(train: Seen, hidden: int) -> Scorer:
    """The log odds by a network of one hidden layer, or none, with a little weight decay; L-BFGS from a fixed start."""
    middle, spread = train.state.mean(axis=0), train.state.std(axis=0) + 1e-6
    rng, width = np.random.default_rng(0), train.state.shape[1]
    sizes = [(width, hidden), (hidden,), (hidden, 1), (1,)] if hidden else [(width, 1), (1,)]
    flat = np.concatenate([rng.normal(0, 0.3, s).ravel() if len(s) == 2 else np.zeros(s) for s in sizes])
    ends = np.cumsum([int(np.prod(s)) for s in sizes])[:-1]

    def scores(flat: Array, x: Array) -> Array:
        parts = [p.reshape(s) for p, s in zip(jnp.split(flat, ends), sizes, strict=True)]
        for weight, bias in zip(parts[:-2:2], parts[1:-2:2], strict=True):
            x = jnp.tanh(x @ weight + bias[None])
        return (x @ parts[-2] + parts[-1][None])[:, 0]

    @jax.jit
    @jax.value_and_grad
    def loss(flat: Array, x: Array, label: Array) -> Array:
        z = scores(flat, x)
        return jnp.mean(jax.nn.softplus(z) - label * z) + 1e-4 * jnp.sum(flat**2)

    scaled = lambda seen: ((seen.state - middle) / spread).astype(np.float32)  # noqa: E731
    given = scaled(train), (train.label == 1).astype(np.float32)
    objective = lambda flat: tuple(np.asarray(v, np.float64) for v in loss(jnp.asarray(flat, jnp.float32), *given))  # noqa: E731
    solution = minimize(objective, flat, jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
    return lambda seen: np.asarray(jax.jit(partial(scores, jnp.asarray(solution, jnp.float32)))(scaled(seen)))


def _bandit(train: Seen, optimism: float = 0.5) -> Scorer:
    """LinUCB (Li et al. 2010, arXiv 1003.0146): a linear guess of each action's reward, tried where it may be more."""
    middle, spread = train.state.mean(axis=0), train.state.std(axis=0) + 1e-6

    def context(seen: Seen) -> np.ndarray:
        return np.concatenate([(seen.state - middle) / spread, np.ones((len(seen.state), 1))], axis=1)

    x, alphas = context(train), np.linspace(0, 1, ACTIONS)
    earned = np.asarray(
        reward(
            jnp.asarray(alphas)[None, :],
            jnp.asarray(train.anomaly)[:, None],
            jnp.asarray(train.probability)[:, None],
            jnp.asarray(train.label)[:, None],
        )
    )
    inverse = np.tile(np.eye(x.shape[1]), (ACTIONS, 1, 1))
    sums = np.zeros((ACTIONS, x.shape[1]))
    guess = np.zeros_like(sums)
    for vector, gains in zip(x, earned, strict=True):
        spent = inverse @ vector
        action = np.argmax(guess @ vector + optimism * np.sqrt(np.maximum(spent @ vector, 0.0)))
        v = spent[action]
        inverse[action] -= np.outer(v, v) / (1.0 + vector @ v)  # Sherman and Morrison 1950
        sums[action] += gains[action] * vector
        guess[action] = inverse[action] @ sums[action]
    return lambda seen: fused(alphas[(context(seen) @ guess.T).argmax(axis=1)], seen.anomaly, seen.probability)
