"""Whole steps beside a float64 NumPy model with BatchNorm, whose gradients are differences of its loss."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.config import ConfigError, Experiment, Log, Model, Optim, Teacher, Term
from kdjax.experiment.checks import validate
from kdjax.models.inputs import ImageInput
from kdjax.train import loop
from kdjax.train.signals import Signals, Stopped
from kdjax.train.step import eval_params
from tests.support import tiny

TERMS = {"bce": Term("bce", label="mask"), "dice": Term("dice", label="mask", weight=0.0)}
ADAMW = dict(lr=0.02, b2=0.95, eps=1e-3, weight_decay=0.1, schedule="constant")


class Pixels(nn.Module):
    """Each pixel by itself: 3 -> 4, BatchNorm, tanh, 4 -> 1."""

    @property
    def inputs(self):
        return {"image": ImageInput(16, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))}

    @property
    def endpoints(self):
        return ("logits",)

    @nn.compact
    def __call__(self, image, train=False):
        x = nn.Dense(4, use_bias=False, name="hidden")(image)
        x = jnp.tanh(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="bn")(x))
        return {"logits": nn.Dense(1, name="head")(x)}


def build(**options):
    return Pixels()


MODEL = Model("tests.train.test_plain_steps:build")


def learner(optim, **fields):
    return tiny.learner(tiny.stage(model=MODEL, terms=TERMS, optim=optim, **fields))


def begun(one):
    variables = tiny.weights(MODEL, 3)
    variables["params"] = jax.tree.map(lambda x: 3 * x, variables["params"])
    return one.start({"": variables}, {})[:2]


# -- the same in NumPy: parameters are a flat dict of float64 arrays -------------------------------------------------

Params = dict[str, np.ndarray]


def flat(tree) -> Params:
    model = tree["model"]
    return {f"{m}/{k}": np.asarray(v, np.float64) for m in sorted(model) for k, v in sorted(model[m].items())}


def forward(p: Params, batch) -> tuple[float, np.ndarray, np.ndarray]:
    """The mean cross-entropy, and the mean and the variance of what is normalised."""
    x = batch["image"].astype(np.float64).reshape(-1, 3) / 255 @ p["hidden/kernel"]
    mean, variance = x.mean(0), x.var(0)
    x = np.tanh((x - mean) / np.sqrt(variance + 1e-5) * p["bn/scale"] + p["bn/bias"])
    z = (x @ p["head/kernel"] + p["head/bias"])[:, 0]
    return np.mean(np.logaddexp(0, z) - z * batch["mask"].reshape(-1)), mean, variance


def gradient(p: Params, batch) -> Params:
    grads = {k: np.zeros_like(v) for k, v in p.items()}
    for name, values in p.items():
        for at in np.ndindex(values.shape):
            ends = []
            for sign in (1, -1):
                moved = {**p, name: values.copy()}
                moved[name][at] += sign * 1e-5
                ends.append(forward(moved, batch)[0])
            grads[name][at] = (ends[0] - ends[1]) / 2e-5
    return grads


def norm(tree: Params) -> float:
    return np.sqrt(sum(np.square(v).sum() for v in tree.values()))


def worst(p: Params, grads: Params, radius: float, adaptive: bool) -> Params:
    size = {k: np.abs(v) if adaptive else np.ones_like(v) for k, v in p.items()}
    length = norm({k: size[k] * grads[k] for k in p})
    return {k: p[k] + radius * size[k] ** 2 * grads[k] / length for k in p}


class AdamW:
    def __init__(self):
        self.m, self.v, self.t = {}, {}, 0

    def __call__(self, p: Params, grads: Params) -> Params:
        self.t, after = self.t + 1, {}
        for k, g in grads.items():
            self.m[k] = 0.9 * self.m.get(k, 0) + 0.1 * g
            self.v[k] = 0.95 * self.v.get(k, 0) + 0.05 * g**2
            m, v = self.m[k] / (1 - 0.9**self.t), self.v[k] / (1 - 0.95**self.t)
            after[k] = p[k] - 0.02 * (m / (np.sqrt(v) + 1e-3) + (0.1 * p[k] if k.endswith("kernel") else 0))
        return after


def centred(grads: Params) -> Params:
    return {k: g - g.mean(0) if k.endswith("kernel") else g for k, g in grads.items()}


def trained(steps: int, one, look: Callable[[Params, Params], Params], centre=False, k=0, share=0.5, decay=0.0):
    """What `one` and the NumPy model become, compared after each step."""
    state, fixed = begun(one)
    run, p, adamw = jax.jit(one.step.train), flat(state.params), AdamW()
    slow, mean, variance = p, *(np.asarray(state.collections["model"]["batch_stats"]["bn"][x]) for x in ("mean", "var"))
    average = p
    for i in range(steps):
        batch = tiny.batch(one, seed=i)
        _, new_mean, new_variance = forward(p, batch)
        mean, variance = 0.9 * mean + 0.1 * new_mean, 0.9 * variance + 0.1 * new_variance
        grads = gradient(look(p, gradient(p, batch)), batch)
        p = adamw(p, centred(grads) if centre else grads)
        if k and (i + 1) % k == 0:
            slow = p = {n: slow[n] + share * (p[n] - slow[n]) for n in p}
        rate = min(decay, (1 + i) / (10 + i))
        average = {n: rate * average[n] + (1 - rate) * p[n] for n in p}
        state, _ = run(state, fixed, one.knobs, batch)
        assert tiny.largest_difference(flat(state.params), p) < 2e-5
        evaluated = average if decay else slow if k else p
        assert tiny.largest_difference(flat(eval_params(state)), evaluated) < 2e-5
        statistics = state.collections["model"]["batch_stats"]["bn"]
        assert tiny.largest_difference(statistics, {"mean": mean, "var": variance}) < 1e-5
    return state, p


def here(p, grads):
    return p


@pytest.mark.long
@pytest.mark.parametrize("adaptive", [False, True])
def test_sharpness_over_adamw(adaptive):
    """Two passes, of which the first alone moves the statistics of BatchNorm, those of the parameters as they are."""
    one = learner(Optim("adamw", pull="sharpness", radius=0.3, adaptive=adaptive, **ADAMW))
    _, p = trained(4, one, lambda p, grads: worst(p, grads, 0.3, adaptive))
    plain, _ = trained(4, learner(Optim("adamw", **ADAMW)), here)
    assert tiny.largest_difference(flat(plain.params), p) > 1e-3, "it is another step than the plain one"


@pytest.mark.long
@pytest.mark.parametrize("decay", [0.0, 0.6])
def test_lookahead_keeps_its_k(decay):
    """The slow parameters move after every third step and not before; averages are of those that are trained."""
    one = learner(Optim("adamw", lookahead=3, slow=0.4, ema=decay, **ADAMW), epochs=4)
    trained(8, one, here, k=3, share=0.4, decay=decay)


@pytest.mark.long
def test_all_of_it_together():
    one = learner(
        Optim("adamw", pull="sharpness", radius=0.3, adaptive=True, lookahead=2, centralise=True, accumulate=1, **ADAMW)
    )
    trained(4, one, lambda p, grads: worst(p, grads, 0.3, True), centre=True, k=2)


@pytest.mark.long
def test_lookahead_is_gone_on_with_in_the_same_bits(tmp_path):
    """Stopped in the middle of its k steps; what is left is the slow parameters."""

    class StopsAfter(Signals):
        def stop(self, step):
            return step == 4

    one = learner(Optim("adamw", lookahead=3, **ADAMW), epochs=3, save_every=1)

    def run(folder, signals):
        with signals:
            loop.train(one, folder, {}, {}, Log(every=1, tensorboard=False), signals)
        return (folder / "model.safetensors").read_bytes(), (folder / "metrics.jsonl").read_bytes()

    whole = run(tmp_path / "a", Signals())
    with pytest.raises(Stopped):
        run(tmp_path / "b", StopsAfter())
    assert run(tmp_path / "b", Signals()) == whole


def test_an_average_as_teacher_needs_one():
    """The slow parameters are none."""
    stage = tiny.stage(
        teachers={"mean": Teacher(average=True)},
        terms={"kl": Term("binary_kl", teacher="mean:logits")},
        optim=tiny.with_optim(lookahead=2, slow=0.0),
    )
    with pytest.raises(ConfigError, match=r"optim.slow: expected a share in \(0, 1\], found 0.0") as error:
        validate(Experiment(name="x", stages={"student": stage}))
    assert "which optim.ema=0 switches off" in str(error.value)
