"""The model of image and caption: its parts, what it does where one is absent, what chance does, what it refuses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax import registry
from kdjax.config import ConfigError, Data, Model, Stage
from kdjax.distill.taps import Network
from kdjax.experiment.resolve import resolved
from kdjax.losses.labels import ce
from kdjax.losses.penalties import value
from kdjax.models.fusion.image_text import FUSIONS
from kdjax.models.fusion.options import Options
from kdjax.models.model import Model as Protocol
from kdjax.train.setup import initial_shapes, only, together
from kdjax.weights import safetensors
from tests.support.quick import QUICK

IMAGE = {"name": "convnet", "options": {"widths": (4,), "depths": (1,), "image_size": 8}}
TEXT = {"name": "tests.support.tiny_text:build", "options": {"vocab_size": 7, "length": 5}}
LABELS = {"modality": 2, "location": 5}
FUSED = {"labels": LABELS, "image": IMAGE, "text": TEXT, "dim": 8, "heads": 2}
THERE = np.array([[True, True], [True, False], [False, True], [False, False]])


def build(**options):
    return registry.build("models", "image_text", {**FUSED, **options})


def batch(seed=0, rows=4):
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.random((rows, 8, 8, 3), np.float32)),
        "image_there": jnp.asarray(THERE[:, 0]),
        "input_ids": jnp.asarray(rng.integers(0, 7, (rows, 5)), jnp.int32),
        "attention_mask": jnp.asarray(np.arange(5) < rng.integers(2, 6, (rows, 1)), jnp.int32),
        "text_there": jnp.asarray(THERE[:, 1]),
    }


def random(model, seed=1):
    """Variables without a zero among them."""
    rng = np.random.default_rng(seed)
    drawn = jax.tree.map(lambda x: rng.normal(0, 0.6, x.shape).astype(np.float32), initial_shapes(model))
    return {**drawn, "batch_stats": jax.tree.map(np.abs, drawn["batch_stats"])} if "batch_stats" in drawn else drawn


def run(model, variables, of=None):
    apply = jax.jit(lambda v, b: Network(model)(v, b)[0], compiler_options=QUICK)
    return jax.tree.map(np.asarray, apply(variables, of or batch()))


def some(*names):
    """Every fusion, of which only these are not for the long run."""
    return pytest.mark.parametrize(
        "fusion", [pytest.param(f, marks=() if f in names else pytest.mark.long) for f in FUSIONS]
    )


@some("film", "shomr")
def test_what_each_fusion_returns(fusion):
    model = build(fusion=fusion, dtype="bfloat16")
    assert isinstance(model, Protocol)
    assert list(model.inputs) == ["image", "image_there", "input_ids", "attention_mask", "text_there"]
    variables = initial_shapes(model)
    own = {"image", "text", "proj_vis", "proj_txt", "fusion", "head_modality", "head_location"}
    assert set(variables["params"]) == own
    out = Network(model).shapes(variables, batch())
    assert set(out) == set(model.endpoints)
    widths = {"logits_modality": (2,), "logits_location": (5,), "image_features": (4,), "text_features": (6,)}
    widths |= {name: (8,) for name in ("image_embedding", "text_embedding", "fused")} | {"shares": (2,), "energy": ()}
    for name, x in out.items():
        assert x.shape == (4, *widths[name]), name
        assert x.dtype == (jnp.float32 if name in ("shares", "energy") else jnp.bfloat16), name
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    weighing = {"simple", "transformer_concat", "cross_attention", "gated", "energy_aware_adaptive", "shomr"}
    assert ("shares" in out, "energy" in out) == (fusion in weighing, fusion in ("energy_aware_adaptive", "shomr"))


@some("simple")
def test_what_is_absent_is_not_read(fusion):
    """Other pixels where there is no image, other words where there is no caption: nothing changes but the parts."""
    model = build(fusion=fusion)
    variables, other = random(model), batch(seed=1)
    out = run(model, variables)
    mixed = {**batch(), "image": jnp.where(THERE[:, 0, None, None, None], batch()["image"], other["image"])}
    mixed["input_ids"] = jnp.where(THERE[:, 1, None], mixed["input_ids"], other["input_ids"])
    again = run(model, variables, mixed)
    for name in set(out) - {"image_features", "text_features"}:
        np.testing.assert_array_equal(out[name], again[name], err_msg=name)
    assert np.any(out["image_features"][2] != again["image_features"][2])
    for i, name in enumerate(("image", "text")):
        kernel, bias = (variables["params"][("proj_vis", "proj_txt")[i]][k] for k in ("kernel", "bias"))
        embedding = np.where(THERE[:, i, None], out[f"{name}_features"] @ kernel + bias, 0)
        np.testing.assert_allclose(out[f"{name}_embedding"], embedding, rtol=1e-5, atol=1e-6)
    assert not out["fused"][3].any()
    assert out["fused"][:3].any(1).all()
    for label in LABELS:
        head = variables["params"][f"head_{label}"]
        np.testing.assert_allclose(
            out[f"logits_{label}"], out["fused"] @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-5
        )
    if "shares" in out:
        np.testing.assert_allclose(out["shares"][1:], [[1, 0], [0, 1], [0, 0]], atol=1e-6)
        np.testing.assert_allclose(out["shares"][0].sum(), 1, rtol=1e-6)
        assert out["shares"].min() >= 0
    if fusion == "energy_aware_adaptive":
        np.testing.assert_allclose(out["energy"][1:], [3.2, 4.1, 0], rtol=1e-6)
        assert 3.2 <= out["energy"][0] <= 9.8


@pytest.mark.parametrize("name", ["image", "text"])
def test_one_part_alone_needs_no_fusion(name):
    model = build(**{"image": None, "text": None, name: FUSED[name]})
    projection, fields = {"image": ("proj_vis", ["image"]), "text": ("proj_txt", ["input_ids", "attention_mask"])}[name]
    assert set(initial_shapes(model)["params"]) == {name, projection, "head_modality", "head_location"}
    assert list(model.inputs) == [*fields, f"{name}_there"]
    out = run(model, random(model))
    assert set(out) == set(model.endpoints)
    np.testing.assert_array_equal(out["fused"], out[f"{name}_embedding"])
    there = THERE[:, ["image", "text"].index(name)]
    np.testing.assert_array_equal(out["fused"].any(1), there)


def test_without_labels_it_is_features():
    model = build(labels=None)
    assert not [name for name in model.endpoints if name.startswith("logits")]
    assert "fused" in model.endpoints


def test_options_left_open_are_told_by_the_data():
    text = {**TEXT, "options": {"vocab_size": None}}
    stage = Stage(
        task="classification",
        epochs=1,
        data=Data("any"),
        model=Model("image_text", **{**FUSED, "labels": None, "text": text}),
    )
    options = resolved(stage, {"labels": LABELS, "vocab_size": 99}).model.options
    assert options["labels"] == LABELS
    assert options["text"]["options"] == {"vocab_size": 99}
    assert registry.build("models", "image_text", options).text.vocab_size == 99
    with pytest.raises(ConfigError, match="the data do not tell labels"):
        resolved(stage, {"vocab_size": 99})


def test_parts_start_from_weights_of_their_own():
    """As `Stage.parts` does it, each file under the name of its submodule."""
    model = build()
    mine = random(model)
    part = {
        name: random(registry.build("models", FUSED[name]["name"], FUSED[name]["options"]), 7) for name in ("text",)
    }
    image = random(registry.build("models", "convnet", {**IMAGE["options"], "num_classes": 3}), 8)
    part["image"] = {**image, "params": {k: v for k, v in image["params"].items() if k != "head"}}
    given = safetensors.overlay(only(mine, part), together(part))
    for name in part:
        jax.tree.map(np.testing.assert_array_equal, given["params"][name], part[name]["params"])
    jax.tree.map(np.testing.assert_array_equal, given["batch_stats"]["image"], image["batch_stats"])


@pytest.mark.long
def test_modules_are_read_by_their_paths():
    model = build()
    out = Network(model, taps=("/proj_vis", "text/dense")).shapes(initial_shapes(model), batch())
    assert out["/proj_vis"].shape == (4, 8)
    assert out["text/dense"].shape == (4, 5, 6)


def fusion_of(name, rows, **options):
    """(module, its variables, image, text, there), each example the same."""
    module = FUSIONS[name](Options(fusion=name, dim=8, heads=2, dropout=0.0, **options))
    rng = np.random.default_rng(2)
    image, text = (jnp.tile(rng.normal(size=(1, 8)).astype(np.float32), (rows, 1)) for _ in range(2))
    there = jnp.ones((rows, 2), bool)
    shapes = jax.eval_shape(partial(module.init, train=False), jax.random.key(0), image, text, there)
    return module, jax.tree.map(lambda x: rng.normal(0, 0.6, x.shape).astype(np.float32), shapes), image, text, there


def at_evaluation(module, variables, *inputs):
    return jax.jit(partial(module.apply, train=False), compiler_options=QUICK)(variables, *inputs)


def in_training(module, variables, image, text, there, keys):
    """Of each key and example, what of the fused tells one outcome of chance from another."""
    once = lambda key: module.apply(variables, image, text, there, True, rngs={"dropout": key})["fused"]  # noqa: E731
    return np.asarray(jax.jit(jax.vmap(once), compiler_options=QUICK)(keys)).sum(-1)


@pytest.mark.parametrize("examples", [pytest.param(False, marks=pytest.mark.long), True])
def test_modality_dropout_leaves_either_out_in_training_alone(examples):
    module, variables, image, text, there = fusion_of(
        "modality_dropout", 3, drop_image=0.2, drop_text=0.4, drop_examples=examples
    )
    found = in_training(module, variables, image, text, there, jax.random.split(jax.random.key(0), 2000))
    drop = {(i, t): (0.2 if i else 0.8) * (0.4 if t else 0.6) for i in (0, 1) for t in (0, 1)}
    for (i, t), chance in drop.items():
        plain = at_evaluation(module, variables, image * (1 - i), text * (1 - t), there)["fused"].sum(-1)
        share = np.isclose(found, plain, atol=1e-4).mean()
        assert abs(share - chance) < 4 * (chance * (1 - chance) / 2000) ** 0.5
    assert np.isclose(found, found[:, :1], atol=1e-4).all() == (not examples)


@pytest.mark.long
def test_routes_are_taken_as_often_as_they_are_probable():
    rows = 2000
    module, variables, image, text, there = fusion_of("energy_aware_adaptive", rows)
    expected = at_evaluation(module, variables, image, text, there)
    found = in_training(module, variables, image, text, there, jax.random.split(jax.random.key(0), 1))[0]
    image_alone, text_alone = (np.isclose(found, float(x[0].sum()), atol=1e-4).mean() for x in (image, text))
    both = 1 - image_alone - text_alone
    costs = 3.2 * image_alone + 4.1 * text_alone + 9.8 * both
    np.testing.assert_allclose(costs, float(expected["energy"][0]), rtol=0.05)
    np.testing.assert_allclose(found.mean(), float(expected["fused"][0].sum()), atol=0.2)
    assert min(image_alone, text_alone, both) > 0.01


@pytest.mark.long
def test_a_route_by_chance_at_evaluation_too_by_name():
    plain, variables, image, text, there = fusion_of("energy_aware_adaptive", 64)
    module = fusion_of("energy_aware_adaptive", 64, sample_at_evaluation=True)[0]
    one, again = (at_evaluation(module, variables, image, text, there) for _ in range(2))
    mean = at_evaluation(plain, variables, image, text, there)
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert len(np.unique(np.asarray(one["fused"]).round(4), axis=0)) == 3
    assert np.ptp(mean["fused"], axis=0).max() < 1e-5
    np.testing.assert_array_equal(one["energy"], mean["energy"])
    np.testing.assert_allclose(value(one["energy"]), mean["energy"], rtol=1e-6)


@pytest.mark.long
def test_a_term_on_energy_lowers_it_in_training():
    """Beside the labels, whichever route these would rather take."""
    model, given, tx = build(fusion="energy_aware_adaptive"), batch(rows=4), optax.adam(0.02)
    given |= {"image_there": jnp.ones(4, bool), "text_there": jnp.ones(4, bool)}
    answers = {"modality": jnp.array([0, 1, 0, 1]), "location": jnp.array([0, 1, 2, 4])}

    def loss(params, rest, key, weight):
        out = Network(model)({"params": params, **rest}, given, train=True, key=key)[0]
        told = sum(ce(out[f"logits_{name}"], right).mean() for name, right in answers.items())
        return told + weight * value(out["energy"]).mean(), out["energy"].mean()

    @partial(jax.jit, compiler_options=QUICK)
    def step(params, rest, moments, key, weight):
        (_, energy), slope = jax.value_and_grad(loss, has_aux=True)(params, rest, key, weight)
        change, moments = tx.update(slope, moments)
        return optax.apply_updates(params, change), moments, energy

    spent = {}
    for weight in (0.0, 1.0):
        rest = random(model)
        params = rest.pop("params")
        moments = tx.init(params)
        for key in jax.random.split(jax.random.key(0), 60):
            params, moments, spent[weight] = step(params, rest, moments, key, weight)
    assert 3.2 <= spent[1.0] < 4.2 < spent[0.0]


def test_impossible_models_say_what_to_do():
    for options, messages in [
        ({"fusion": "fim"}, ["fusion: no 'fim'; did you mean 'film'"]),
        ({"dim": 9}, ["heads: expected a divisor of dim 9, found 2"]),
        ({"fusion": "shomr", "heads": 0}, ["heads: expected a divisor of dim 8, found 0"]),
        ({"fusion": "concat_mlp", "layers": 0, "hidden": 0}, ["layers: expected at least 1", "hidden: expected at"]),
        ({"image": None, "text": None}, ["expected an image part, a text part or both, found neither"]),
        ({"text": IMAGE}, ["text: expected a model of text, found convnet, of image"]),
        (
            {"image": TEXT},
            ["image: expected a model of images, found tests.support.tiny_text:build, of input_ids"],
        ),
        ({"text": {"name": "vti", "options": {}}}, ["text: no models entry 'vti'; did you mean 'vit'"]),
        ({"text": {"options": {}}}, ['text: expected {"name": MODEL, "options": {...}}, found']),
        ({"labels": {"modality": 1}}, ["labels.modality: expected at least 2 classes, found 1"]),
        ({"labels": {"modality": "two"}}, ["labels.modality: expected int"]),
        ({"dropout": 1.0, "drop_text": -0.1}, ["dropout: expected a rate in [0, 1)", "drop_text: expected"]),
        ({"threshold": 1.5}, ["threshold: expected a confidence in [0, 1], found 1.5"]),
        ({"costs": (1.0, 2.0)}, ["costs: expected three of at least 0"]),
        ({"fusoin": "film"}, ["image_text has no option 'fusoin'; did you mean 'fusion'"]),
        ({"fusion": "fim", "image": None, "text": IMAGE}, ["did you mean 'film'", "expected a model of text"]),
    ]:
        with pytest.raises(ConfigError) as error:
            build(**options)
        for message in messages:
            assert message in str(error.value)


def test_attention_alone_wants_heads_that_divide():
    assert build(fusion="film", dim=9).options.dim == 9
