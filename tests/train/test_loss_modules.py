"""Losses that learn or remember: their parameters train with the student, their memory travels in the state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.config import ConfigError, Log, Optim, Teacher, Term
from kdjax.losses.contrastive import SupCon
from kdjax.losses.projected import Projected
from kdjax.losses.relations import Seed
from kdjax.train import loop
from kdjax.train.signals import Signals, Stopped
from tests.support import tiny

TEACHER = tiny.model(dim=32)
WEIGHTS = {"t": tiny.weights(TEACHER, 1)}
TEACHERS = {"t": Teacher(model=TEACHER, weights="file")}
VID = {"vid": Term("vid", "features", "t:features", weight=0.5, args={"variance": 2.0})}
SEED = {"seed": Term("tests.train.test_loss_modules:PooledSeed", "features", "t:features", args={"size": 12})}


class PooledSeed(Seed):
    """Of the mean over a map."""

    def __call__(self, student, teacher, *, where=None):
        return super().__call__(student.mean((1, 2)), teacher.mean((1, 2)), where=where)


def learner(terms, **fields):
    return tiny.learner(tiny.stage(teachers=TEACHERS, terms=terms, **fields))


def test_a_losss_parameter_is_trained():
    one = learner(VID)
    state, fixed, _ = one.start({}, WEIGHTS)
    assert state.params["losses"]["vid"]["a"].shape == (32,)
    np.testing.assert_allclose(jax.nn.softplus(state.params["losses"]["vid"]["a"]) + 1e-5, 2.0, rtol=1e-5)
    moved, measures = jax.jit(one.step.train)(state, fixed, one.knobs, tiny.batch(one))
    assert (moved.params["losses"]["vid"]["a"] != state.params["losses"]["vid"]["a"]).all()
    whole = one.whole(moved.params, moved.collections["model"], fixed["frozen"])
    assert whole["params"].keys() == moved.params["model"].keys(), "nothing of a loss is exported"
    assert np.isfinite(measures["loss"][0])


def test_a_losss_memory_fills_with_what_the_teacher_said():
    one = learner(SEED)
    state, fixed, _ = one.start({}, WEIGHTS)
    run = jax.jit(one.step.train)
    for i in range(2):
        batch = tiny.batch(one, seed=i, valid=7 if i else 8)
        state, _ = run(state, fixed, one.knobs, batch)
        memory = state.collections["losses"]["seed"]["memory"]
        assert memory["filled"] == (15 if i else 8), "padding is not remembered"
        image = tiny.build().inputs["image"].view(jnp.asarray(batch["image"].astype(np.float32) / 255))
        seen = tiny.build(dim=32).apply(WEIGHTS["t"], image)["features"].mean((1, 2))
        seen = np.asarray(seen / np.linalg.norm(seen, axis=-1, keepdims=True))[: 7 if i else 8]
        places = np.arange(8 if i else 0, 15 if i else 8) % 12
        np.testing.assert_allclose(np.asarray(memory["queue"])[places], seen, rtol=1e-4, atol=1e-6)


@pytest.mark.long
def test_memory_is_there_again_after_a_restart(tmp_path):
    """Stopped between two steps and started again, it ends in the same bits."""

    class StopsAfter(Signals):
        def stop(self, step):
            return step == 3

    def run(folder, signals):
        one = learner(SEED | VID, epochs=3, save_every=1)
        with signals:
            loop.train(one, folder, {}, WEIGHTS, Log(every=1, tensorboard=False), signals)
        return (folder / "model.safetensors").read_bytes(), (folder / "metrics.jsonl").read_bytes()

    whole = run(tmp_path / "a", Signals())
    with pytest.raises(Stopped):
        run(tmp_path / "b", StopsAfter())
    assert run(tmp_path / "b", Signals()) == whole


def test_a_loss_that_mixes_examples_refuses_micro_batches():
    terms = {"kl": Term("tests.train.test_loss_modules:mixing", "features", "t:features")}
    learner(terms)
    with pytest.raises(ConfigError, match=r"optim\.accumulate=2: the loss of kl compares the examples.*accumulate=1"):
        learner(terms, optim=tiny.with_optim(accumulate=2))


def mixing(student, teacher):
    return jnp.square(student - teacher.mean(0, keepdims=True)).mean((1, 2, 3))


mixing.mixes = True


def test_the_registered_loss_over_the_batch_is_known_to_mix():
    """1.34 on eight examples and 2.24 as two times four: whatever it is split into, it is another loss."""
    from kdjax.losses.graphs import batch_softmax_kl

    rng = np.random.default_rng(0)
    s, t = (jnp.asarray(rng.normal(size=(8, 1)) * 4, jnp.float32) for _ in range(2))
    whole = float(batch_softmax_kl(s, t).sum())
    halves = float(sum(batch_softmax_kl(s[i::2], t[i::2]).sum() for i in range(2)))
    assert abs(whole - halves) > 0.1
    assert batch_softmax_kl.mixes


NEAR = {"student": "student:features", "index": "batch:index"}
CLASSES = {"labels": "batch:class", "known": "batch:class_known"}


def test_examples_that_all_stand_alone_are_refused():
    terms = {"near": Term("tests.train.test_loss_modules:PooledSupCon", reads=NEAR)}
    with pytest.raises(
        ConfigError, match=r"terms\.near compares examples .* no two do: data\.copies=1, and it reads no"
    ):
        tiny.learner(tiny.stage(terms=terms))


@pytest.mark.long
def test_contrastive_learning_trains_a_head_that_is_not_kept():
    """On all examples, of which three have a class that is known."""
    term = Term("tests.train.test_loss_modules:PooledSupCon", reads=NEAR | CLASSES, args={"projection": 5})
    one = tiny.learner(tiny.stage(terms={"near": term}))
    state, fixed, _ = one.start({}, {})
    batch = tiny.batch(one, labelled=3)
    batch["class"][:3] = 1
    moved, measures = jax.jit(one.step.train)(state, fixed, one.knobs, batch)
    assert measures["terms/near"][1] == 8
    assert measures["terms/near"][0] > 0
    for layer, shape in (("hidden", (32, 32)), ("out", (32, 5))):
        before, after = (s.params["losses"]["near"][layer]["kernel"] for s in (state, moved))
        assert before.shape == shape
        assert (before != after).any()
    whole = one.whole(moved.params, moved.collections["model"], fixed["frozen"])
    assert whole["params"].keys() == moved.params["model"].keys()


class PooledSupCon(SupCon):
    """Of the mean over a map."""

    def __call__(self, student, labels=None, index=None, known=None, *, where=None):
        return super().__call__(student.mean((1, 2)), labels, index, known, where=where)


class PooledProjected(Projected):
    """Of the means over maps."""

    def __call__(self, student, teacher, *, where=None):
        return super().__call__(student.mean((1, 2)), teacher.mean((1, 2)), where=where)


@pytest.mark.long
@pytest.mark.parametrize("frozen", [True, False])
def test_a_map_of_the_teacher_trains_or_stays_as_it_was_drawn(frozen):
    """Weight decay, which moves every parameter, does not reach a map that stays."""
    wide = tiny.model(dim=48)
    reads = {"student": "student:features", "teacher": "t:features"}
    args = {"loss": "infonce", "frozen": frozen}
    term = Term("tests.train.test_loss_modules:PooledProjected", reads=reads, args=args)
    optim = Optim("adamw", lr=0.1, weight_decay=0.5)
    teachers = {"t": Teacher(model=wide, weights="file")}
    one = tiny.learner(tiny.stage(teachers=teachers, terms={"near": term}, optim=optim))
    state, fixed, _ = one.start({}, {"t": tiny.weights(wide, 1)})
    batch = tiny.batch(one, valid=6)
    moved, measures = jax.jit(one.step.train)(state, fixed, one.knobs, batch)
    assert measures["terms/near"][1] == 6
    for before, after in zip(*(jax.tree.leaves(maps_of(s)) for s in (state, moved)), strict=True):
        assert before.shape in ((48, 32), (32,))
        assert (before == after).all() == frozen
    assert ("losses" in state.params) != frozen
    with pytest.raises(ConfigError, match=r"optim\.accumulate=2: the loss of near compares the examples"):
        tiny.learner(tiny.stage(teachers=teachers, terms={"near": term}, optim=tiny.with_optim(accumulate=2)))


def maps_of(state):
    return {**state.params.get("losses", {}), **state.collections["losses"]}["near"]
