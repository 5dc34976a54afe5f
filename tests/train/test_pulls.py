"""One objective pulled back in several ways, each against its formula on the plain gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax.config import ConfigError, Schedule, Teacher, Term
from kdjax.distill.terms import factor
from kdjax.train import knobs
from tests.support import tiny

TEACHER = tiny.model(dim=32)
WEIGHTS = {"t": tiny.weights(TEACHER, 1)}
TERMS = {
    "bce": Term("bce", label="mask", weight=0.6),
    "dice": Term("dice", label="mask", weight=0.4),
    "kl": Term("binary_kl", teacher="t:logits", weight=0.5, args={"temperature": 2.0}),
}


def learner(terms=TERMS, norm=False, **optim):
    stage = tiny.stage(
        model=tiny.model(norm=norm),
        teachers={"t": Teacher(model=TEACHER, weights="file")},
        terms=terms,
        optim=tiny.with_optim(**optim),
    )
    return tiny.learner(stage)


def begun(one):
    return one.start({"": tiny.weights(one.stage.model, 5)}, WEIGHTS)[:2]


def gradients(one, state, fixed, batch):
    """Of the task's terms and of the teacher's, each by itself, at any parameters."""
    batch = one.step.prepare(jax.tree.map(jnp.asarray, batch), one.knobs)
    counts = one.step.objective.counts(batch)
    weights = jnp.asarray([t.term.weight for t in one.terms])

    def loss(params, heard):
        totals, _ = one.step.totals(state, fixed, one.knobs, state.collections, batch, jnp.zeros((), jnp.int32))(params)
        chosen = jnp.asarray([t.hears_teacher == heard for t in one.terms])
        return jnp.where(chosen, weights * totals / counts, 0).sum()

    grad = jax.jit(jax.grad(loss), static_argnums=1)
    return lambda params: (grad(params, False), grad(params, True))


def plus(a, b, factor=1.0):
    return jax.tree.map(lambda x, y: x + factor * y, a, b)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_sharpness_takes_the_gradient_at_the_worst_point_nearby(accumulate):
    one = learner(pull="sharpness", radius=0.1, momentum=0.0, accumulate=accumulate)
    state, fixed = begun(one)
    batch = tiny.batch(one)
    at = gradients(one, state, fixed, batch)
    first = plus(*at(state.params))
    worst = plus(state.params, first, 0.1 / optax.tree.norm(first))
    expected = plus(state.params, plus(*at(worst)), -0.1)
    moved, measures = jax.jit(one.step.train)(state, fixed, one.knobs, batch)
    assert tiny.largest_difference(moved.params, expected) < 2e-4
    plain = plus(state.params, first, -0.1)
    assert tiny.largest_difference(moved.params, plain) > 1e-3, "it is not the plain step"
    np.testing.assert_allclose(measures["grad_norm"][0], optax.tree.norm(first), rtol=1e-4)


def test_sharpness_moves_batch_statistics_once():
    one = learner(pull="sharpness", norm=True)
    plain = learner(norm=True)
    batch, after = tiny.batch(one), []
    for which in (one, plain):
        state, fixed = begun(which)
        after.append(jax.jit(which.step.train)(state, fixed, which.knobs, batch)[0].collections)
    assert tiny.largest_difference(*after) < 1e-6


@pytest.mark.long
def test_separate_momenta_let_the_teacher_last_longer():
    one = learner(pull="separate", momentum=0.8, spread=0.1)
    state, fixed = begun(one)
    run, params = jax.jit(one.step.train), state.params
    task = teacher = jax.tree.map(jnp.zeros_like, params)
    for i in range(3):
        batch = tiny.batch(one, seed=i)
        a, b = gradients(one, state, fixed, batch)(params)
        task, teacher = plus(a, task, 0.7), plus(b, teacher, 0.9)
        params = plus(params, plus(task, teacher), -0.1)
        state, _ = run(state, fixed, one.knobs, batch)
        assert tiny.largest_difference(state.params, params) < 1e-4


def test_balanced_makes_the_teachers_gradient_as_long_as_the_tasks():
    one = learner(pull="balanced", momentum=0.0)
    state, fixed = begun(one)
    batch = tiny.batch(one)
    task, teacher = gradients(one, state, fixed, batch)(state.params)
    scaled = optax.tree.norm(task) / optax.tree.norm(teacher)
    expected = plus(state.params, plus(task, teacher, scaled), -0.1)
    moved, _ = jax.jit(one.step.train)(state, fixed, one.knobs, batch)
    assert tiny.largest_difference(moved.params, expected) < 1e-5


@pytest.mark.parametrize(
    ("optim", "terms", "message"),
    [
        ({"pull": "sam"}, TERMS, "optim.pull: no way 'sam'; did you mean 'sum'"),
        ({"pull": "separate", "name": "adamw"}, TERMS, "keeps momenta of sgd apart, found optim.name='adamw'"),
        ({"pull": "sharpness", "schedule": "plateau"}, TERMS, "does not go with schedule='plateau'"),
        ({"adaptive": True}, TERMS, "optim.adaptive says how pull='sharpness' looks around, found optim.pull='sum'"),
        ({"pull": "balanced"}, {"bce": TERMS["bce"]}, "sets teachers against the rest, and no term reads a teacher"),
    ],
)
def test_a_way_that_cannot_work_is_refused(optim, terms, message):
    with pytest.raises(ConfigError, match=message):
        learner(terms, **optim)


# -- knobs -----------------------------------------------------------------------------------------------------------


def test_a_sweep_is_vmap_over_states_and_knobs():
    """Three students in one program: other rates, weights, temperatures, seeds; each as if it were alone."""
    one = learner(momentum=0.9)
    state, fixed = begun(one)
    several = []
    for i in range(3):
        mine = jax.tree.map(np.array, one.knobs)
        mine["lr"], mine["seed"] = np.float32(0.5 + i), np.uint32(i)
        mine["weights"]["kl"], mine["args"]["kl"]["temperature"] = np.float32(0.2 * i), np.float32(1.0 + i)
        several.append(mine)
    states = jax.tree.map(lambda x: jnp.stack([x] * 3), state)
    sweep = jax.jit(jax.vmap(one.step.train, in_axes=(0, None, 0, None)))
    alone, run = [state] * 3, jax.jit(one.step.train)
    for i in range(2):
        batch = tiny.batch(one, seed=i)
        states, _ = sweep(states, fixed, knobs.stacked(several), batch)
        alone = [run(s, fixed, mine, batch)[0] for s, mine in zip(alone, several, strict=True)]
    for i, expected in enumerate(alone):
        assert tiny.largest_difference(jax.tree.map(lambda x, i=i: x[i], states.params), expected.params) < 1e-4
    assert run._cache_size() == 1, "a knob is never compiled in"
    assert tiny.largest_difference(alone[0].params, alone[1].params) > 1e-3


# -- schedules over a measure ----------------------------------------------------------------------------------------


def test_a_schedule_over_a_measure_follows_what_validation_measured():
    steps = Schedule(shape="steps", start=0.01, points=((0.55, 0.1), (0.65, 0.5)), over="dice")
    ramp = Schedule(start=1.0, end=0.0, begin=0.5, until=0.7, over="dice")
    terms = {
        **TERMS,
        "dice": Term("dice", label="mask", schedule=steps),
        "kl": Term("mse", teacher="t:logits", schedule=ramp),
    }
    one = learner(terms)
    state, fixed = begun(one)
    run, batch = jax.jit(one.step.train), tiny.batch(one)
    dice, kl = ([t.name for t in one.terms].index(name) for name in ("dice", "kl"))
    for measure, share, left in ((None, 0.01, 1.0), (0.5, 0.01, 1.0), (0.6, 0.1, 0.5), (0.9, 0.5, 0.0)):
        now = one.knobs if measure is None else knobs.measured(one.knobs, {"dice": measure})
        weights = one.step.weights(now, jnp.zeros((), jnp.int32))
        np.testing.assert_allclose([weights[dice], weights[kl]], [share, left], rtol=1e-5, atol=1e-6)
        _, measures = run(state, fixed, now, batch)
        parts = [
            w * measures[f"terms/{t.name}"][0] / measures[f"terms/{t.name}"][1]
            for w, t in zip(weights, one.terms, strict=True)
        ]
        np.testing.assert_allclose(measures["loss"][0], sum(parts), rtol=1e-5)
    assert run._cache_size() == 1


def test_a_measure_that_the_task_does_not_have_is_refused():
    terms = {**TERMS, "dice": Term("dice", label="mask", schedule=Schedule(over="auc"))}
    with pytest.raises(ConfigError, match=r"schedule.over='auc': the task 'segmentation' measures dice; name one"):
        learner(terms)


def test_steps_jump_at_their_points_in_any_order():
    schedule = Schedule(shape="steps", start=3.0, points=((2.0, 0.5), (1.0, 1.0)))
    assert [float(factor(schedule, at)) for at in (0.9, 1.0, 1.9, 2.0, 9.0)] == [3.0, 1.0, 1.0, 0.5, 0.5]
