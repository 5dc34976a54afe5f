import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.config import ConfigError, Lora, Teacher, Term
from kdjax.data.images.dataset import shapes
from kdjax.distill.scope import Scope
from kdjax.distill.taps import Network
from kdjax.distill.teachers import Frozen
from kdjax.models.vision.tinyusfm import build_tinyusfm
from kdjax.train import lora
from kdjax.train.objective import find_terms, taps
from kdjax.train.step import as_floats
from tests.support import tiny

MODEL = tiny.build(depth=2, dropout=0.5)
VARIABLES = tiny.weights(tiny.model(depth=2, dropout=0.5))


def batch(n=3):
    rng = np.random.default_rng(0)
    return {"image": jnp.asarray(rng.random((n, 16, 16, 3)), jnp.float32)}


def example(side, rows):
    return jax.eval_shape(as_floats, shapes(side, rows))


def view():
    image = batch()["image"]
    return (image - jnp.asarray(MODEL.mean)[None, None, None]) / jnp.asarray(MODEL.std)[None, None, None]


def test_a_tap_is_the_layers_own_output():
    """By hand: the block's projection from the weights; and the same layer among the model's endpoints."""
    outputs, stats = Network(MODEL, ("blocks_1/proj", "blocks_1/qkv"))(VARIABLES, batch())
    p = VARIABLES["params"]["blocks_1"]
    x = np.asarray(outputs["block_0"], np.float64)
    qkv = x @ p["qkv"]["kernel"].astype(np.float64) + p["qkv"]["bias"]
    q, k, v = np.split(qkv, 3, -1)
    y = (np.tanh(q) * np.tanh(k) + v) @ p["proj"]["kernel"].astype(np.float64) + p["proj"]["bias"]
    np.testing.assert_allclose(outputs["blocks_1/qkv"], qkv, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(outputs["blocks_1/proj"], y, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(outputs["block_1"], outputs["block_0"] + outputs["blocks_1/proj"])
    assert stats.keys() == {"batch_stats"}
    assert stats["batch_stats"] is VARIABLES["batch_stats"]


def test_a_module_at_the_top_is_read_by_its_path_too():
    top = [path for path in Network(MODEL).paths(VARIABLES, batch()) if "/" not in path]
    outputs, _ = Network(MODEL, tuple(f"/{name}" for name in top))(VARIABLES, batch())
    _, kept = MODEL.apply(VARIABLES, view(), capture_intermediates=True, mutable=["intermediates"])
    assert top
    for name in top:
        np.testing.assert_array_equal(outputs[f"/{name}"], kept["intermediates"][name]["__call__"][0])
    (term,), _ = find_terms({"top": Term("mse", f"/{top[0]}", f"t:/{top[0]}", label="", weight=1.0)})
    assert taps([term], {"t": Teacher("t")}, "student") == taps([term], {"t": Teacher("t")}, "t") == (f"/{top[0]}",)
    with pytest.raises(ConfigError, match=f"has no module '/{top[0]}x'; did you mean '/{top[0]}'"):
        Network(MODEL, (f"/{top[0]}x",)).shapes(VARIABLES, batch())


def test_taps_change_nothing_else():
    plain, _ = Network(MODEL)(VARIABLES, batch())
    tapped, _ = Network(MODEL, ("blocks_0/proj",))(VARIABLES, batch())
    np.testing.assert_array_equal(plain["logits"], MODEL.apply(VARIABLES, view())["logits"])
    assert tapped.keys() == {*plain, "blocks_0/proj"}
    jax.tree.map(np.testing.assert_array_equal, {k: tapped[k] for k in plain}, plain)


def test_training_draws_dropout_and_moves_the_statistics():
    network = Network(MODEL, ("blocks_0/proj",))
    outputs, stats = network(VARIABLES, batch(), train=True, key=jax.random.key(0))
    other, same = network(VARIABLES, batch(), train=True, key=jax.random.key(1))
    assert (outputs["logits"] != other["logits"]).any()
    np.testing.assert_array_equal(outputs["blocks_0/proj"], other["blocks_0/proj"])
    x = np.asarray(outputs["block_1"], np.float64)
    expected = 0.99 * VARIABLES["batch_stats"]["bn"]["mean"] + 0.01 * x.mean((0, 1, 2))
    np.testing.assert_allclose(stats["batch_stats"]["bn"]["mean"], expected, rtol=1e-4, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, stats, same)


def test_a_tap_sees_the_low_rank_pairs():
    config = Lora(rank=2, targets=((r"blocks_0/proj", "all"),))
    pairs = lora.init(jax.random.key(0), VARIABLES["params"], config)
    pairs = jax.tree.map(lambda x: x + 0.1, pairs)
    network = Network(MODEL, ("blocks_0/proj",), functools.partial(lora.active, config))
    outputs, _ = network({**VARIABLES, "lora": pairs}, batch())
    merged = {**VARIABLES, "params": lora.merge(VARIABLES["params"], pairs, config)}
    expected, _ = Network(MODEL, ("blocks_0/proj",))(merged, batch())
    np.testing.assert_allclose(outputs["blocks_0/proj"], expected["blocks_0/proj"], rtol=1e-5, atol=1e-5)
    assert (
        outputs["blocks_0/proj"] != Network(MODEL, ("blocks_0/proj",))(VARIABLES, batch())[0]["blocks_0/proj"]
    ).any()


def test_an_unknown_path_names_the_nearest():
    with pytest.raises(ConfigError, match="Tiny has no module 'blocks_2/proj'; did you mean 'blocks_"):
        Network(MODEL, ("blocks_2/proj",)).shapes(VARIABLES, example(16, 5))
    with pytest.raises(ConfigError, match=r"known: /Dropout_0, /blocks_0, .*/head, blocks_0/proj, blocks_0/qkv"):
        Network(MODEL, ("zzzzzz/y",)).shapes(VARIABLES, example(16, 5))


@pytest.mark.parametrize("options", [{}, {"scan": True}, {"remat": True}])
def test_every_path_that_is_named_can_be_tapped(options):
    """Also below scan and remat."""
    model = build_tinyusfm("nano", image_size=32, depth=2, taps=(0, 1), **options)
    shapes = jax.eval_shape(lambda k: model.init(k, jnp.zeros((1, 32, 32, 3))), jax.random.key(0))
    paths = tuple(Network(model).paths(shapes, example(32, 3)))
    assert len(paths) > 10
    found = Network(model, paths).shapes(shapes, example(32, 3))
    depth = (2,) if options.get("scan") else ()
    one = "blocks/attn/qkv" if depth else "blocks_1/attn/qkv"
    assert found[one].shape == (*depth, 3, 5, 3 * 96)


def test_taps_are_told_by_their_slash_and_their_place():
    terms = {
        "a": Term("mse", student="a/b", teacher="one:x/y"),
        "b": Term("mse", student="logits", teacher="two:x/z"),
        "c": Term("mse", student="a/c", teacher="one:logits", adapter="linear"),
        "d": Term("mse", reads={"student": "student:a/d", "teacher": "one:x/w"}),
    }
    tail = {"one": Teacher("s"), "two": Teacher("s"), "tail": Teacher("s", method="m", reads={"x": "student:e/f"})}
    terms, faults = find_terms(terms)
    assert not faults
    assert taps(terms, tail, "student") == ("a/b", "a/c", "a/d", "e/f")
    assert taps(terms, tail, "one") == ("x/w", "x/y")
    assert taps(terms, tail, "two") == ("x/z",)


def test_a_teacher_gives_its_endpoints_and_what_is_read_and_no_gradient():
    source = Frozen(Network(MODEL, ("blocks_0/proj",)))

    def total(variables, image):
        given = {"image": image}
        read = source(source.feed(Scope()), given, variables)
        assert set(read) == {*MODEL.endpoints, "blocks_0/proj"}
        return read["blocks_0/proj"].sum() + read["logits"].sum()

    grads = jax.grad(total, (0, 1))(VARIABLES, batch()["image"])
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(grads))
