"""Teachers of every kind, in whole steps: what they give, and where gradients go."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax.config import ConfigError, Model, Teacher, Term
from kdjax.distill.teachers import build_model
from kdjax.train.setup import initialiser
from tests.support import tiny

DECODER = tiny.model(dim=16)
SAM = Model(
    "sam_seg", variant="vit_t", image_size=32, patch_size=8, window=2, depth=1, global_blocks=(0,), decoder_depth=1
)


def start(learner, teachers=None, init=None):
    return learner.start({"": init} if init else {}, teachers or {})[:2]


def step(learner):
    return jax.jit(learner.step.train)


# -- a tail ----------------------------------------------------------------------------------------------------------

TAIL = {
    "whole": Teacher(model=SAM, weights="file"),
    "tail": Teacher(model=SAM, weights="file", method="decode", reads={"embeddings": "adapters:feature"}),
}
THROUGH = {
    "bce": Term("bce", label="mask", weight=0.0),
    "dice": Term("dice", label="mask", weight=0.0),
    "feature": Term("mse", "features", "whole:image_embeddings", adapter="linear", weight=0.0001),
    "mask": Term("binary_kl", reads={"student": "tail:logits", "teacher": "whole:logits"}),
}


@functools.cache
def tailed():
    learner = tiny.learner(tiny.stage(teachers=TAIL, terms=THROUGH, model=tiny.model(norm=False)))
    sam = initialiser(build_model(SAM))(jax.random.key(3))
    return learner, *start(learner, {"whole": sam, "tail": sam}, tiny.weights(learner.stage.model, 5)), sam


@pytest.mark.long
def test_sams_decoder_runs_on_a_students_embedding():
    """The masks of both embeddings through the frozen decoder, by hand, and their divergence."""
    learner, state, fixed, sam = tailed()
    batch = tiny.batch(learner)
    _, measures = step(learner)(state, fixed, learner.knobs, batch)
    student, teacher = tiny.build(norm=False), learner.teachers["tail"].model
    image = batch["image"].astype(np.float32) / 255
    views = [model.inputs["image"].view(jnp.asarray(image)) for model in (student, teacher)]
    features = student.apply({"params": state.params["model"]}, views[0])["features"]
    mine = features @ state.params["adapters"]["feature"]["proj"]["kernel"]
    mine = mine + state.params["adapters"]["feature"]["proj"]["bias"][None, None, None]
    seen = teacher.apply(sam, views[1])
    z = teacher.apply(sam, mine, method="decode")["logits"]
    p, q = (jax.nn.sigmoid(x.astype(jnp.float32) / 4.0) for x in (seen["logits"], z))
    kl = 16 * (p * jnp.log(p / q) + (1 - p) * jnp.log((1 - p) / (1 - q))).mean()
    total, count = measures["terms/mask"]
    np.testing.assert_allclose(total / count, kl, rtol=1e-3)


@pytest.mark.long
def test_gradients_flow_through_a_tail_but_not_into_it():
    learner, state, fixed, sam = tailed()
    batch = tiny.batch(learner)
    moved, _ = step(learner)(state, fixed, learner.knobs, batch)
    for part in ("embed", "blocks_0"):  # what lies before the student's embedding
        assert tiny.largest_difference(moved.params["model"][part], state.params["model"][part]) > 0
    assert tiny.largest_difference(moved.params["model"]["head"], state.params["model"]["head"]) == 0

    seen = learner.step.prepare(jax.tree.map(jnp.asarray, batch), learner.knobs)

    def objective(teachers):
        key = jax.random.key(0)
        return learner.step.objective.totals(state.params, state.collections, teachers, learner.knobs, seen, key)[
            0
        ].sum()

    grads = jax.jit(jax.grad(objective))({"whole": sam, "tail": sam})
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        ({"method": "decoder"}, "sam_seg has no method 'decoder'"),
        ({"reads": {"embedding": "adapters:feature"}}, "decode takes embeddings, found 'embedding'"),
        ({"reads": {"embeddings": "tail:logits"}}, "tail reads tail: a source cannot be fed by itself"),
        ({"reads": {"embeddings": "adapters:features"}}, "'adapters' has no 'features'; did you mean 'feature'"),
    ],
)
def test_a_tail_that_cannot_work_says_so(tail, message):
    given = {"model": SAM, "weights": "f", "method": "decode", "reads": {"embeddings": "adapters:feature"}, **tail}
    with pytest.raises(ConfigError, match=message):
        tiny.learner(tiny.stage(teachers={**TAIL, "tail": Teacher(**given)}, terms=THROUGH))


# -- the student's own average ---------------------------------------------------------------------------------------


def test_the_students_average_is_its_teacher():
    """Mean teacher, by hand: after some steps the consistency term is that of the averaged weights."""
    terms = {"same": Term("mse", "logits", "mean:logits", weight=0.5)}
    teachers = {"mean": Teacher(average=True)}
    stage = tiny.stage(teachers=teachers, terms=terms, optim=tiny.with_optim(ema=0.6), model=tiny.model(norm=False))
    learner = tiny.learner(stage)
    state, fixed = start(learner)
    run, average = step(learner), state.params
    for i in range(4):
        batch = tiny.batch(learner, seed=i, labelled=4)
        image = tiny.build().inputs["image"].view(jnp.asarray(batch["image"].astype(np.float32) / 255))
        now, mean = (
            tiny.build(norm=False).apply({"params": p["model"]}, image)["logits"] for p in (state.params, average)
        )
        state, measures = run(state, fixed, learner.knobs, batch)
        total, count = measures["terms/same"]
        assert count == 8, "unlabelled examples count"
        np.testing.assert_allclose(total / count, jnp.square(now - mean).mean(), rtol=1e-4, atol=1e-9)
        decay = min(0.6, (1 + i) / (10 + i))
        average = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, average, state.params)
    assert total > 0
    assert not learner.teachers, "it has no variables of its own to load"


# -- a peer ----------------------------------------------------------------------------------------------------------


def test_peers_learn_from_each_other_in_one_step():
    """Deep mutual learning: each part's gradient is that of its own terms, the other part being constant."""
    part = {"name": "tests.support.tiny:build", "options": {"norm": False}}
    terms = {
        "bce": Term("bce", "a.logits", label="mask"),
        "dice": Term("bce", "b.logits", label="mask"),
        "a_of_b": Term("binary_kl", "a.logits", "b:logits", weight=0.7),
        "b_of_a": Term("binary_kl", "b.logits", "a:logits", weight=0.3),
    }
    teachers = {"a": Teacher(part="a"), "b": Teacher(part="b")}
    learner = tiny.learner(tiny.stage(model=Model("peers", a=part, b=part), teachers=teachers, terms=terms))
    state, fixed = start(learner)
    batch = tiny.batch(learner)
    image = tiny.build().inputs["image"].view(jnp.asarray(batch["image"].astype(np.float32) / 255))
    mask = jnp.asarray(batch["mask"], jnp.float32)

    def objective(params, other, weight):
        z, t = (tiny.build(norm=False).apply({"params": p}, image)["logits"][..., 0] for p in (params, other))
        p, q = jax.nn.sigmoid(t / 4), jax.nn.sigmoid(z / 4)
        kl = 16 * (p * jnp.log(p / q) + (1 - p) * jnp.log((1 - p) / (1 - q))).mean()
        return optax.losses.sigmoid_binary_cross_entropy(z, mask).mean() + weight * kl

    moved, _ = step(learner)(state, fixed, learner.knobs, batch)
    a, b = (state.params["model"][name] for name in "ab")
    for name, mine, other, weight in (("a", a, b, 0.7), ("b", b, a, 0.3)):
        grads = jax.jit(jax.grad(objective), static_argnums=2)(mine, other, weight)
        expected = jax.tree.map(lambda p, g: p - 0.1 * g, mine, grads)
        assert tiny.largest_difference(moved.params["model"][name], expected) < 1e-5


def test_a_part_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"the student has no part 'c': none of its endpoints begins with 'c\.'"):
        tiny.learner(tiny.stage(teachers={"c": Teacher(part="c")}, terms={"x": Term("mse", "logits", "c:logits")}))


# -- several reads ---------------------------------------------------------------------------------------------------


def test_two_reads_at_once_teacher_and_label():
    """Decoupled distillation reads a teacher and a label; where the label is missing the example does not count."""
    dkd = Term("dkd", reads={"student": "student:features", "teacher": "t:features", "labels": "batch:class"})
    bad = tiny.stage(terms={"dkd": Term("dkd", reads={"student": "student:features", "label": "batch:class"})})
    with pytest.raises(ConfigError, match="the loss 'dkd' reads no 'label'; did you mean 'labels'"):
        tiny.learner(bad)
    flat = {"loss": "tests.train.test_sources:pooled_dkd", "reads": dkd.reads}
    learner = tiny.learner(
        tiny.stage(
            model=tiny.model(dim=16, norm=False),
            teachers={"t": Teacher(model=DECODER, weights="f")},
            terms={"dkd": Term(**flat), "bce": Term("bce", label="mask", weight=0.0)},
        )
    )
    state, fixed = start(learner, {"t": tiny.weights(DECODER, 1)})
    batch = tiny.batch(learner, labelled=5)
    _, measures = step(learner)(state, fixed, learner.knobs, batch)
    assert measures["terms/dkd"][1] == 5
    strange = {**batch, "class": np.where(batch["class_known"], batch["class"], 99)}
    _, same = step(learner)(state, fixed, learner.knobs, strange)
    np.testing.assert_array_equal(same["terms/dkd"][0], measures["terms/dkd"][0])


def pooled_dkd(student, teacher, labels):
    from kdjax.losses.logits import dkd

    return dkd(student.mean((1, 2)), teacher.mean((1, 2)), labels)


def several(layers, labels):
    return sum(x.reshape(len(x), -1).mean(-1) for x in layers) + 0.0 * labels


def test_an_argument_may_read_several_layers():
    reads = {"layers": ("student:block_0", "student:block_1"), "labels": "batch:class"}
    term = Term("tests.train.test_sources:several", reads=reads)
    learner = tiny.learner(tiny.stage(model=tiny.model(depth=2), terms={"sum": term}))
    state, fixed = start(learner)
    batch = tiny.batch(learner)
    image = tiny.build().inputs["image"].view(jnp.asarray(batch["image"].astype(np.float32) / 255))
    out, _ = tiny.build(depth=2).apply(
        {"params": state.params["model"], **state.collections["model"]}, image, train=True, mutable=["batch_stats"]
    )
    _, measures = step(learner)(state, fixed, learner.knobs, batch)
    expected = (out["block_0"].mean((1, 2, 3)) + out["block_1"].mean((1, 2, 3))).sum()
    np.testing.assert_allclose(measures["terms/sum"][0], expected, rtol=1e-4)
