"""The hybrid: its parts, what is made of their features, what is set into them, and what it refuses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import registry
from kdjax.config import ConfigError, Lora
from kdjax.models.layers.cbam import Cbam
from kdjax.models.layers.token_learner import TokenLearner
from kdjax.models.model import Model
from kdjax.train import lora

NET = {"name": "convnet", "options": {"widths": (4, 6), "depths": (1, 1), "image_size": 8}}
VIT = {
    "name": "vit",
    "options": {
        "variant": "vit_ti16",
        "dim": 8,
        "depth": 1,
        "heads": 2,
        "taps": (0,),
        "image_size": 12,
        "patch_size": 6,
    },
}
COSINE = {"convolutional": NET, "transformer": VIT, "num_classes": 3, "dim": 10, "head": "cosine", "centres": 2}
IMAGE = np.random.default_rng(0).random((4, 12, 12, 3), np.float32)


def build(**options):
    return registry.build("models", "hybrid", options)


def shapes(model):
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(IMAGE))
    return variables, jax.eval_shape(model.apply, variables, jnp.asarray(IMAGE))


def random(model):
    """Variables without a zero among them."""
    rng = np.random.default_rng(1)
    drawn = lambda x: jnp.asarray(rng.normal(0.3, 0.4, x.shape), jnp.float32)  # noqa: E731
    variables = jax.tree.map(drawn, shapes(model)[0])
    return {**variables, "batch_stats": jax.tree.map(lambda x: jnp.abs(x) + 0.2, variables.get("batch_stats", {}))}


@pytest.fixture(scope="module")
def made():
    """(model, variables, its outputs) with attention and other styles."""
    model = build(**COSINE, attention="cbam", mix_style="stage_0")
    variables = random(model)
    return model, variables, jax.jit(model.apply)(variables, jnp.asarray(IMAGE))


def fused(outputs, params):
    """(gates, features) of the parts' features, in float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    affine = lambda x, layer: x @ layer["kernel"] + layer["bias"]  # noqa: E731
    x = np.concatenate([outputs["convolutional.features"], outputs["transformer.features"]], -1).astype(np.float64)
    hidden = np.maximum(affine(x, p["dynamic_head"]["fc1"]), 0)
    gates = 1 / (1 + np.exp(-affine(hidden, p["dynamic_head"]["fc2"])))
    return gates, np.maximum(affine(x * gates, p["fusion_fc"]), 0)


def test_what_is_made_of_the_parts_features(made):
    model, variables, out = made
    assert isinstance(model, Model)
    assert set(out) == set(model.endpoints)
    params = jax.tree.map(np.asarray, variables["params"])
    assert params["dynamic_head"]["fc1"]["kernel"].shape == (14, 64)
    gates, x = fused(out, params)
    np.testing.assert_allclose(out["gates"], gates, rtol=1e-5)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = x * params["norm"]["scale"] + params["norm"]["bias"]
    np.testing.assert_allclose(out["features"], x, rtol=1e-4, atol=1e-5)
    unit = lambda a: a / np.linalg.norm(a, axis=-1, keepdims=True)  # noqa: E731
    cosines = np.einsum("bd,kcd->bkc", unit(x), unit(params["head"]["centres"])).max(-1)
    np.testing.assert_allclose(out["cosines"], cosines, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out["logits"], 64 * np.asarray(out["cosines"]), rtol=1e-6)


def test_each_part_sees_its_own_view_and_answers_as_it_would_alone(made):
    model, variables, out = made
    inside = lambda part: {k: v[part] for k, v in variables.items() if part in v}  # noqa: E731
    net, vit = model.models
    assert (model.inputs["image"].hw, net.inputs["image"].hw, vit.inputs["image"].hw) == ((12, 12), (8, 8), (12, 12))
    alone = jax.jit(vit.apply)(inside("transformer"), vit.inputs["image"].view(jnp.asarray(IMAGE)))
    for name, value in alone.items():
        np.testing.assert_allclose(out[f"transformer.{name}"], value, rtol=1e-5, atol=1e-5)
    alone = jax.jit(net.apply)(inside("convolutional"), net.inputs["image"].view(jnp.asarray(IMAGE)))
    np.testing.assert_allclose(out["convolutional.stage_0"], alone["stage_0"], rtol=1e-5, atol=1e-5)
    weighed = Cbam(jnp.float32).apply({"params": variables["params"]["cbam"]}, alone["stage_1"])
    np.testing.assert_allclose(out["convolutional.stage_1"], weighed, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out["convolutional.features"], weighed.mean((1, 2)), rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_other_styles_in_training_alone_and_for_all_that_follows(made):
    model, variables, _ = made
    train = jax.jit(
        lambda key: model.apply(
            variables, jnp.asarray(IMAGE), train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )[0]
    )
    several = [train(jax.random.key(i)) for i in range(5)]
    for name, most in (("convolutional.stage_0", 5), ("convolutional.stage_1", 5), ("transformer.features", 1)):
        kinds = {np.asarray(out[name]).tobytes() for out in several}
        assert 1 < len(kinds) <= most if most > 1 else len(kinds) == 1, name
    standard = lambda x: (x - x.mean((1, 2), keepdims=True)) / (x.std((1, 2), keepdims=True) + 1e-9)  # noqa: E731
    maps = [standard(np.asarray(out["convolutional.stage_0"], np.float64)) for out in several]
    np.testing.assert_allclose(maps, [maps[0]] * 5, atol=2e-2)  # another style, the same content


@pytest.mark.long
@pytest.mark.parametrize(("transformer", "read"), [(VIT, "tokens"), (NET, "stage_1")])
def test_learned_tokens_take_the_place_of_tokens_and_of_the_last_map(transformer, read):
    model, plain = build(transformer=transformer, token_learner=3, dim=5), build(transformer=transformer, dim=5)
    variables = random(model)
    learner = {"params": variables["params"]["token_learner"]}
    rest = {**variables, "params": {k: v for k, v in variables["params"].items() if k != "token_learner"}}
    learned = TokenLearner(3).apply(learner, jax.jit(plain.apply)(rest, jnp.asarray(IMAGE))[f"transformer.{read}"])
    out = jax.jit(model.apply)(variables, jnp.asarray(IMAGE))
    np.testing.assert_allclose(out["transformer.features"], learned.mean(1), rtol=1e-4, atol=1e-5)
    if read != "tokens":
        np.testing.assert_allclose(out[f"transformer.{read}"], learned[:, None], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("part", ["convolutional", "transformer"])
def test_either_part_alone(part):
    model = build(**{part: {"convolutional": NET, "transformer": VIT}[part]})
    variables, out = shapes(model)
    assert set(out) == set(model.endpoints)
    assert not {"logits", "cosines"} & set(out)
    assert out["features"].shape == (4, 1024)
    assert set(variables["params"]) == {part, "dynamic_head", "fusion_fc", "norm"}
    width = {"convolutional": 6, "transformer": 8}[part]
    assert out["gates"].shape == (4, width)
    own = {k: v for k, v in variables["params"].items() if k != part}
    expected = 2 * width * 64 + 64 + width + (width + 1) * 1024 + 2 * 1024
    assert sum(leaf.size for leaf in jax.tree.leaves(own)) == expected


@pytest.mark.long
def test_the_originals_order_of_linear_relu_and_batch_norm():
    model = build(**{**COSINE, "head": "linear", "centres": 1}, norm="batch")
    variables = jax.tree.map(np.asarray, random(model))
    out = jax.tree.map(np.asarray, jax.jit(model.apply)(variables, jnp.asarray(IMAGE)))
    params, remembered = variables["params"]["norm"], variables["batch_stats"]["norm"]
    x = (fused(out, variables["params"])[1] - remembered["mean"]) / np.sqrt(remembered["var"] + 1e-5)
    np.testing.assert_allclose(out["features"], x * params["scale"] + params["bias"], rtol=1e-4, atol=1e-5)
    head = variables["params"]["head"]
    np.testing.assert_allclose(out["logits"], out["features"] @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-5)


def test_bfloat16_reaches_the_parts_and_cosines_stay_wide():
    variables, out = shapes(build(**COSINE, dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    narrow = {name for name, value in out.items() if value.dtype == jnp.bfloat16}
    assert set(out) - narrow == {"cosines", "logits"}


def test_impossible_models_say_what_to_do():
    for options, message in [
        ({}, "expected a convolutional part, a transformer part or both, found neither"),
        ({"transformer": {}}, "found neither"),
        ({"transformer": {"name": "vti", "options": {}}}, "transformer: no models entry 'vti'; did you mean 'vit'"),
        ({"transformer": {"options": {}}}, 'transformer: expected {"name": MODEL, "options": {...}}, found'),
        (
            {"transformer": {"name": "vit", "options": {"deep": 3}}},
            "transformer: ViT has no option 'deep'; did you mean",
        ),
        (
            {"transformer": {"name": "sam", "options": {}}},
            "expected a model that returns 'features', found sam, of low",
        ),
        ({"transformer": {"name": "dqn", "options": {}}}, "transformer: expected a model of images, found dqn"),
        ({"transformer": VIT, "attention": "cbam"}, "attention: expected a convolutional part that returns maps"),
        ({"convolutional": NET, "token_learner": 8}, "token_learner: expected a transformer part that returns tokens"),
        ({"transformer": VIT, "token_learner": -1}, "token_learner: expected from 0 to"),
        ({"transformer": VIT, "attention": "cbma"}, "attention: no 'cbma'; did you mean 'cbam'"),
        ({"convolutional": NET, "mix_style": "stage_2"}, "has no map 'stage_2'; did you mean 'stage_1'"),
        ({"convolutional": NET, "norm": "bath"}, "norm: no 'bath'; did you mean 'batch'"),
        ({"convolutional": NET, "head": "cosin"}, "head: no 'cosin'; did you mean 'cosine'"),
        ({"convolutional": NET, "head": "cosine", "centres": 0}, "centres: expected at least 1, found 0"),
        ({"convolutional": NET, "centres": 2}, "a linear head has one of each class; try head='cosine'"),
        ({"convolutional": NET, "scale": 0.0}, "scale: expected a positive number"),
        ({"convolutional": NET, "num_classes": 1}, "num_classes: expected at least 2, or 0"),
        ({"convolutional": NET, "token_lerner": 8}, "hybrid has no option 'token_lerner'"),
    ]:
        with pytest.raises(ConfigError) as error:
            build(**options)
        assert message in str(error.value)


@pytest.mark.long
def test_convnext_and_swin_take_all_that_is_set_into_them_and_learned_beside_them():
    parts = {"convolutional": ("convnextv2", "atto"), "transformer": ("swinv2", "tiny")}
    given = {part: {"name": name, "options": {"variant": variant}} for part, (name, variant) in parts.items()}
    model = build(**given, num_classes=20, attention="cbam", mix_style="stage_0", token_learner=8, head="cosine")
    image = jax.ShapeDtypeStruct((2, *model.inputs["image"].hw, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    params = variables["params"]
    places = dict(model.inside)
    assert places["attention"] == ("convolutional", "stages_3")
    assert places["mix_style"] == ("convolutional", "stages_0")
    assert places["token_learner"] == ("transformer", "layers_3")
    low_rank = Lora(rank=8, scale=16 / 8, targets=((r".*/(qkv|proj|fc\d)", "all"),))
    factors = Lora(kind="ia3", targets=((r".*/attn/qkv", "k_v"), (r".*/mlp/fc1", "all")))
    for adapters, count in ((low_rank, 78), (factors, 36)):
        collection = jax.eval_shape(partial(lora.init, lora=adapters), jax.random.key(0), params)
        assert len(lora.matched(params, adapters)) == count
        with lora.active(adapters):
            out = jax.eval_shape(model.apply, {**variables, "lora": collection}, image)
        assert out["transformer.stage_3"].shape == (2, 1, 8, 768)
        merged = jax.eval_shape(partial(lora.merge, lora=adapters), params, collection)
        assert jax.tree.structure(merged) == jax.tree.structure(params)
