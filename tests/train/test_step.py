import functools
from dataclasses import fields, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax.config import ConfigError, Lora, Model, Schedule, Teacher, Term
from kdjax.train import optim
from kdjax.train.objective import Objective
from kdjax.train.setup import initial_shapes
from kdjax.train.step import as_floats, eval_params
from tests.support import tiny

TEACHERS = {  # sizes, widths and normalisations of their own
    "large": tiny.model(size=32, patch=8, dim=12, depth=2, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)),
    "other": tiny.model(size=8, patch=2, dim=32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
}
TAUGHT = {k: Teacher(model=m, weights="file") for k, m in TEACHERS.items()}
WEIGHTS = {k: tiny.weights(m, i) for i, (k, m) in enumerate(TEACHERS.items())}
TERMS = {
    "bce": Term("bce", label="mask", weight=0.5),
    "dice": Term("dice", label="mask", weight=0.3),
    "kl": Term("binary_kl", teacher="large:logits", weight=0.7, args={"temperature": 2.0}),
    "features": Term("mse", student="features", teacher="large:block_1", adapter="conv_bn_relu", weight=0.2),
    "tap": Term(
        "l1", student="blocks_0/proj", teacher="other:features", weight=0.4, schedule=Schedule(begin=0.0, until=4.0)
    ),
}
PLAIN = {k: TERMS[k] for k in ("bce", "dice", "kl", "tap")}


def start(learner, teachers=None, init=None):
    state, fixed, _ = learner.start({"": init} if init else {}, teachers or {})
    return state, fixed


def full(**changes):
    """A learner with labels, two teachers, an adapter and taps, and where it starts."""
    learner = tiny.learner(tiny.stage(**{"teachers": TAUGHT, "terms": TERMS, **changes}))
    return learner, *start(learner, WEIGHTS, tiny.weights(learner.stage.model, seed=5))


@functools.cache
def compiled_full():
    learner, state, fixed = full()
    return learner, jax.jit(learner.step.train), state, fixed


def without_norm(**changes):
    return full(model=tiny.model(norm=False), terms=PLAIN, **changes)


# -- a step, written out plainly -------------------------------------------------------------------------------------


def normalised(image, mean, std):
    return (image - np.asarray(mean, np.float32)[None, None, None]) / np.asarray(std, np.float32)[None, None, None]


def resized(x, side, antialias):
    return jax.image.resize(x, (len(x), side, side, x.shape[-1]), "bilinear", antialias=antialias)


def plain_terms(params, collections, batch):
    """The mean of every term over the examples that it may read, from the formulas."""
    image, labelled = batch["image"].astype(np.float32) / 255, batch["mask_known"] & batch["valid"]
    given = tiny.build()
    out, kept = given.apply(
        {"params": params["model"], **collections["model"]},
        normalised(image, given.mean, given.std),
        train=True,
        mutable=["batch_stats", "intermediates"],
        capture_intermediates=True,
    )
    tap = kept["intermediates"]["blocks_0"]["proj"]["__call__"][0]
    large, other = (tiny.build(**TEACHERS[k].options) for k in ("large", "other"))
    taught = large.apply(WEIGHTS["large"], normalised(resized(image, 32, True), large.mean, large.std))
    seen = other.apply(WEIGHTS["other"], normalised(resized(image, 8, True), other.mean, other.std))

    z, t = out["logits"][..., 0], batch["mask"].astype(np.float32)
    p = 1 / (1 + jnp.exp(-z))
    bce = -(t * jnp.log(p) + (1 - t) * jnp.log(1 - p)).mean((1, 2))
    dice = 1 - (2 * (p * t).sum((1, 2)) + 1e-5) / ((p * p).sum((1, 2)) + t.sum((1, 2)) + 1e-5)
    a, b = 1 / (1 + jnp.exp(-z / 2)), 1 / (1 + jnp.exp(-resized(taught["logits"], 16, False)[..., 0] / 2))
    kl = 4 * (b * jnp.log(b / a) + (1 - b) * jnp.log((1 - b) / (1 - a))).mean((1, 2))
    own = params["adapters"]["features"]
    x = out["features"] @ own["conv"]["kernel"]
    x = (x - x.mean((0, 1, 2), keepdims=True)) / jnp.sqrt(x.var((0, 1, 2), keepdims=True) + 1e-5)
    x = jnp.maximum(x * own["bn"]["scale"][None, None, None] + own["bn"]["bias"][None, None, None], 0)
    features = jnp.square(x - taught["block_1"]).mean((1, 2, 3))
    l1 = jnp.abs(tap - seen["features"]).mean((1, 2, 3))
    return {
        "bce": bce[labelled].mean(),
        "dice": dice[labelled].mean(),
        "kl": kl.mean(),
        "features": features.mean(),
        "tap": l1.mean(),
    }, kept["batch_stats"]


def test_a_step_is_the_plain_computation():
    learner, step, state, fixed = compiled_full()
    params, collections, momentum = state.params, state.collections, jax.tree.map(jnp.zeros_like, state.params)
    for i in range(2):
        batch = tiny.batch(learner, seed=i, labelled=5)
        ramp = i / learner.steps_per_epoch / 4
        weights = {"bce": 0.5, "dice": 0.3, "kl": 0.7, "features": 0.2, "tap": 0.4 * ramp}

        def objective(params, collections=collections, batch=batch, weights=weights):
            terms, new = plain_terms(params, collections, batch)
            return sum(weights[k] * terms[k] for k in terms), (terms, new)

        (loss, (terms, new)), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
        state, measures = step(state, fixed, learner.knobs, batch)
        for name, value in terms.items():
            total, count = measures[f"terms/{name}"]
            assert count == (5 if name in ("bce", "dice") else 8)
            np.testing.assert_allclose(total / count, value, rtol=1e-5)
        np.testing.assert_allclose(measures["loss"][0], loss, rtol=1e-5)
        np.testing.assert_allclose(measures["grad_norm"][0], optax.tree.norm(grads), rtol=1e-5)
        np.testing.assert_allclose(measures["lr"][0], 0.1)
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, grads)
        params = jax.tree.map(lambda p, m: p - 0.1 * m, params, momentum)
        collections = {"model": {"batch_stats": new}}
        assert tiny.largest_difference(state.params, params) < 1e-5
        assert tiny.largest_difference(state.collections["model"]["batch_stats"], new) < 1e-5
        assert state.step == i + 1


# -- what must make no difference ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labelled", "valid"),
    [pytest.param(8, 8, marks=pytest.mark.long), (3, 8), pytest.param(5, 6, marks=pytest.mark.long), (0, 7)],
)
def test_micro_batches_add_up_exactly(labelled, valid):
    steps = {}
    for accumulate in (1, 4):
        learner, state, fixed = without_norm(optim=tiny.with_optim(accumulate=accumulate))
        batch = tiny.batch(learner, labelled=labelled, valid=valid)
        steps[accumulate] = jitted(accumulate, learner)(state, fixed, learner.knobs, batch)
    (one, seen_one), (four, seen_four) = steps[1], steps[4]
    assert tiny.largest_difference(four.params, one.params) < 1e-6
    for name in seen_one:
        np.testing.assert_allclose(seen_four[name], seen_one[name], rtol=2e-6, err_msg=name)


_jitted: dict = {}


def jitted(key, learner):
    """One compilation for the parameters of a test."""
    return _jitted.setdefault(key, jax.jit(learner.step.train))


def test_micro_batches_draw_their_own_dropout():
    drawn = {}
    for accumulate in (1, 2):
        learner = tiny.learner(
            tiny.stage(model=tiny.model(norm=False, dropout=0.5), optim=tiny.with_optim(accumulate=accumulate))
        )
        batch = tiny.batch(learner)
        twice = {k: np.concatenate([v[:4], v[:4]]) for k, v in batch.items()}  # interleaved: the halves are alike
        state, fixed = start(learner)
        drawn[accumulate] = jax.jit(learner.step.train)(state, fixed, learner.knobs, twice)[1]["loss"][0]
    assert drawn[1] != drawn[2]


def test_padding_does_no_harm_whatever_is_in_it():
    """NaN in its image, no class in its mask, and as many rows as one likes."""
    learner, state, fixed = without_norm()
    step, batch = jitted(1, learner), tiny.batch(learner, labelled=8, valid=5)
    batch["image"] = batch["image"].astype(np.float32)
    batch["image"] /= 255
    expected, measures = step(state, fixed, learner.knobs, batch)
    bad = {k: v.copy() for k, v in batch.items()}
    bad["image"][5:], bad["mask"][5:], bad["class"][5:] = np.nan, 255, -1
    found, same = step(state, fixed, learner.knobs, bad)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found.params))
    assert tiny.largest_difference(found.params, expected.params) == 0
    assert jax.tree.map(float, same) == jax.tree.map(float, measures)


def test_an_unlabelled_mask_is_not_read():
    learner, step, state, fixed = compiled_full()
    batch = tiny.batch(learner, labelled=3)
    expected, _ = step(state, fixed, learner.knobs, batch)
    for strange in (1 - batch["mask"][3:], np.full_like(batch["mask"][3:], 255)):
        found, _ = step(state, fixed, learner.knobs, {**batch, "mask": np.concatenate([batch["mask"][:3], strange])})
        assert tiny.largest_difference(found.params, expected.params) == 0
    other, _ = step(state, fixed, learner.knobs, {**batch, "mask": 1 - batch["mask"]})
    assert tiny.largest_difference(other.params, expected.params) > 1e-3


def test_a_mask_that_is_no_class_shows():
    learner, step, state, fixed = compiled_full()
    batch = tiny.batch(learner)
    batch["mask"][0, 0, 0] = 255
    _, measures = step(state, fixed, learner.knobs, batch)
    assert np.isnan(measures["terms/bce"][0])


# -- what it measures ------------------------------------------------------------------------------------------------


def test_gradient_norms_are_those_of_each_term_alone():
    learner, state, fixed = full()
    state = state.replace(step=jnp.asarray(3, jnp.int32))
    batch = tiny.batch(learner, labelled=5)
    norms = jax.jit(learner.step.grad_norms)(state, fixed, learner.knobs, batch)
    ramp = 3 / learner.steps_per_epoch / 4
    weights = {"bce": 0.5, "dice": 0.3, "kl": 0.7, "features": 0.2, "tap": 0.4 * ramp}

    def one(name, params):
        return weights[name] * plain_terms(params, state.collections, batch)[0][name]

    grads = jax.jit(lambda params: {k: jax.grad(functools.partial(one, k))(params) for k in weights})(state.params)
    assert norms.keys() == {f"grad_norm/{k}" for k in weights}
    for name, g in grads.items():
        norm = np.sqrt(sum(np.square(np.asarray(x, np.float64)).sum() for x in jax.tree.leaves(g)))
        np.testing.assert_allclose(norms[f"grad_norm/{name}"][0], norm, rtol=1e-5, err_msg=name)


def test_gradient_norms_are_of_the_step_that_follows():
    """One term with dropout and augmentation: its norm is the norm of the step's gradient."""
    terms = {"bce": Term("bce", label="mask", weight=0.6), "dice": Term("dice", label="mask", weight=0.0)}
    data = replace_data(augment={"gamma": 1.0})
    learner = tiny.learner(tiny.stage(model=tiny.model(dropout=0.3), data=data, terms=terms))
    state, fixed = start(learner)
    batch = tiny.batch(learner)
    norms = jax.jit(learner.step.grad_norms)(state, fixed, learner.knobs, batch)
    _, measures = jax.jit(learner.step.train)(state, fixed, learner.knobs, batch)
    np.testing.assert_allclose(norms["grad_norm/bce"][0], measures["grad_norm"][0], rtol=1e-5)


def replace_data(**changes):
    options = {"image_size": 16, "batch_size": 8, "size": 32, "train": 16, "val": 8, "test": 8, **changes}
    return type(tiny.DATA)("ultrasound", **options)


def test_the_measured_rate_is_that_of_the_step():
    learner = tiny.learner(tiny.stage(optim=tiny.with_optim(schedule="warmup_cosine", warmup=1.0)))
    state, fixed = start(learner)
    step, batch = jax.jit(learner.step.train), tiny.batch(learner)
    for i in range(4):
        state, measures = step(state, fixed, learner.knobs, batch)
        np.testing.assert_allclose(measures["lr"][0], learner.step.rate(i))


# -- what it keeps and leaves ----------------------------------------------------------------------------------------


def test_averaged_parameters_are_what_is_evaluated():
    learner = tiny.learner(tiny.stage(optim=tiny.with_optim(ema=0.8)))
    state, fixed = start(learner)
    step, expected = jax.jit(learner.step.train), state.params
    for i in range(3):
        state, _ = step(state, fixed, learner.knobs, tiny.batch(learner, seed=i))
        decay = (0.1, 2 / 11, 3 / 12)[i]  # it warms up
        expected = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * p, expected, state.params)
    assert tiny.largest_difference(eval_params(state), expected) < 1e-6
    assert tiny.largest_difference(eval_params(state), state.params) > 1e-3
    assert eval_params(state.replace(ema={})) is state.params


def test_lora_trains_the_pairs_and_what_is_chosen_and_nothing_else():
    trainable = ((r"model/head/.*", True), (r"model/.*", False), (r".*", True))
    stage = tiny.stage(
        lora=Lora(rank=2, targets=((r"blocks_0/qkv", "q_v"), (r"blocks_0/proj", "all"))),
        optim=replace(tiny.SGD, trainable=trainable),
        teachers=TAUGHT,
        terms=TERMS,
    )
    learner = tiny.learner(stage)
    init = tiny.weights(stage.model, seed=9)
    state, fixed = start(learner, WEIGHTS, init)
    assert state.params["model"].keys() == {"head"}
    assert state.params["lora"].keys() == {"blocks_0"}
    assert fixed["frozen"].keys() == {"model"}
    moving, step = state, jax.jit(learner.step.train, donate_argnums=0)
    first = jax.tree.map(np.array, state.params)
    for i in range(2):
        moving, _ = step(moving, fixed, learner.knobs, tiny.batch(learner, seed=i))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params)), "the state is given away"
    for path, was, now in zip(
        jax.tree.leaves_with_path(first), jax.tree.leaves(first), jax.tree.leaves(moving.params), strict=True
    ):
        assert (np.asarray(now) != was).any(), path[0]
    frozen = {k: v for k, v in init["params"].items() if k != "head"}
    assert tiny.largest_difference(fixed["frozen"]["model"], frozen) == 0
    for name, given in WEIGHTS.items():
        assert tiny.largest_difference(fixed["teachers"][name], given) == 0, "teachers are neither changed nor donated"

    whole = learner.whole(moving.params, moving.collections["model"], fixed["frozen"])
    assert whole["params"].keys() == init["params"].keys(), "no adapter, no pair is left in what is exported"
    for name in ("embed", "bn"):
        assert tiny.largest_difference(whole["params"][name], init["params"][name]) == 0
    pair = moving.params["lora"]["blocks_0"]["proj"]
    kernel = init["params"]["blocks_0"]["proj"]["kernel"] + np.asarray(pair["a"]) @ np.asarray(pair["b"])
    np.testing.assert_allclose(whole["params"]["blocks_0"]["proj"]["kernel"], kernel, rtol=1e-5, atol=1e-6)


def test_the_state_holds_nothing_of_a_teacher():
    _, _, state, fixed = compiled_full()
    params = sum(x.size for x in jax.tree.leaves(state.params))
    stats = sum(x.size for x in jax.tree.leaves(state.collections))
    assert sum(x.size for x in jax.tree.leaves(state)) - 2 * params - stats <= 2, (
        "parameters and momentum, and counters"
    )
    assert sum(x.size for x in jax.tree.leaves(fixed)) == sum(x.size for x in jax.tree.leaves(WEIGHTS))


def test_bfloat16_computes_so_and_keeps_float32():
    taught = {k: replace(t, dtype="bfloat16") for k, t in TAUGHT.items()}
    learner, state, fixed = full(dtype="bfloat16", teachers=taught)
    outputs = learner.student.shapes(
        initial_shapes(learner.model), jax.eval_shape(as_floats, learner.dataset.shapes(2))
    )
    assert outputs["logits"].dtype == jnp.bfloat16
    batch = tiny.batch(learner)
    step = jax.jit(learner.step.train)
    assert "bf16" in step.lower(state, fixed, learner.knobs, batch).as_text()
    found, measures = step(state, fixed, learner.knobs, batch)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((found.params, found.collections, fixed)))
    _, step, state, fixed = compiled_full()
    expected, exact = step(state, fixed, learner.knobs, batch)
    for name in exact:
        assert measures[name][0].dtype == jnp.float32
        np.testing.assert_allclose(measures[name][0], exact[name][0], rtol=0.03, err_msg=name)
    moved = lambda new: jax.tree.map(lambda a, b: a - b, new.params, state.params)  # noqa: E731
    apart = optax.tree.norm(jax.tree.map(lambda a, b: a - b, moved(found), moved(expected)))
    assert apart / optax.tree.norm(moved(expected)) < 0.05


def test_every_use_and_step_and_seed_has_a_key_of_its_own():
    learner, _, state, fixed = compiled_full()
    keys, batch = [], tiny.batch(learner)

    class Spied(Objective):
        def totals(self, params, collections, teachers, knobs, batch, key):
            keys.append(key)
            return jnp.zeros(len(self.terms)), collections

    def transform(key, batch):
        keys.append(key)
        return batch

    objective = Spied(**{f.name: getattr(learner.step.objective, f.name) for f in fields(Objective)})
    step = replace(learner.step, objective=objective, transform=transform)
    for seed in range(2):
        knobs = {**learner.knobs, "seed": np.uint32(seed)}
        step.prepare(batch, knobs)
        for at in range(3):
            now = state.replace(step=jnp.asarray(at, jnp.int32))
            for part in range(3):
                step.totals(now, fixed, knobs, state.collections, batch, jnp.asarray(part))(state.params)
    assert len(keys) == 2 * (1 + 3 * 3)
    assert len({tuple(jax.random.key_data(k).tolist()) for k in keys}) == len(keys)


def test_the_step_is_the_same_each_time_it_is_made():
    stage = tiny.stage(model=tiny.model(dropout=0.4), data=replace_data(augment={"gamma": 1.0}))
    found = []
    for seed in (0, 0, 1):
        learner = tiny.learner(stage, seed=seed)
        state, fixed = start(learner)
        found.append(jax.jit(learner.step.train)(state, fixed, learner.knobs, tiny.batch(learner))[0].params)
    assert tiny.largest_difference(found[0], found[1]) == 0
    assert tiny.largest_difference(found[0], found[2]) > 1e-3


def test_nothing_to_train_is_refused():
    with pytest.raises(ConfigError, match=r"stages\.student: optim\.trainable leaves nothing to train"):
        tiny.learner(tiny.stage(optim=tiny.with_optim(trainable=((r".*", False),))))


def test_a_model_without_the_tasks_logits_is_refused():
    with pytest.raises(ConfigError, match=r"needs 'logits' \[b, h, w, 1\], the model gives .*; set num_classes=2"):
        tiny.learner(tiny.stage(model=tiny.model(classes=3)))


def test_plateau_is_told_the_loss():
    stage = tiny.stage(optim=tiny.with_optim(lr=1e-12, momentum=0.0, schedule="plateau", patience=1, factor=0.5))
    learner = tiny.learner(stage)
    state, fixed = start(learner)
    step, batch = jax.jit(learner.step.train), tiny.batch(learner)
    rates = []
    for _ in range(4 * learner.steps_per_epoch):  # nothing improves at such a rate
        state, measures = step(state, fixed, learner.knobs, batch)
        rates.append(float(measures["lr"][0]) / 1e-12)
    assert rates[0] == pytest.approx(1)
    assert float(optim.plateau_scale(state.opt_state)) <= 0.5


@pytest.mark.parametrize("depth", [2, 3, 12])
def test_what_a_scan_stacks_is_no_batch_however_many_layers(depth):
    """Not even where there are as many layers as examples in the shapes that are looked at."""
    model = Model("tinyusfm_seg", variant="nano", image_size=32, depth=depth, taps=(0,) * 4, scan=True)
    terms = {"size": Term("value", student="backbone/blocks/mlp/fc1", weight=1e-3)}
    with pytest.raises(ConfigError, match=r"'student:backbone/blocks/mlp/fc1' gives .*is not the batch; .*scan=False"):
        tiny.learner(tiny.stage(model=model, terms=terms))
