"""The convnet: its sizes, its endpoints, how it computes, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import registry
from kdjax.config import ConfigError
from kdjax.models.model import Model
from kdjax.models.vision.convnet import PARAMETERS, VARIANTS

SMALL = {"widths": (4, 6), "depths": (1, 2), "image_size": 10}


def build(**options):
    return registry.get("models", "convnet")(**options)


def shapes(model, batch=2):
    image = jax.ShapeDtypeStruct((batch, model.options.image_size, model.options.image_size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return variables, jax.eval_shape(model.apply, variables, image)


def started(**options):
    model = build(**SMALL, **options)
    image = jnp.asarray(np.random.default_rng(1).normal(size=(5, 10, 10, 3)), jnp.float32)
    return model, jax.jit(model.init)(jax.random.key(0), image), image


@pytest.mark.parametrize("variant", VARIANTS)
def test_sizes_and_endpoints(variant):
    model = build(variant=variant)
    assert isinstance(model, Model)
    variables, out = shapes(model)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == PARAMETERS[variant]
    assert set(out) == set(model.endpoints)
    assert set(model.inputs) == {"image"}
    assert model.inputs["image"].size == 32
    widths = VARIANTS[variant]["widths"]
    assert out["logits"].shape == (2, 10)
    assert out["features"].shape == (2, widths[-1])
    assert [out[f"stage_{i}"].shape[1:] for i in range(3)] == [(32 >> i, 32 >> i, w) for i, w in enumerate(widths)]


def test_without_classes_there_are_features_alone():
    model = build(num_classes=0, **SMALL)
    variables, out = shapes(model)
    assert set(out) == set(model.endpoints) == {"features", "stage_0", "stage_1"}
    assert "head" not in variables["params"]


def test_odd_sides_are_halved_upwards():
    _, out = shapes(build(widths=(4, 6, 8), depths=(1, 1, 1), image_size=11))
    assert [out[f"stage_{i}"].shape[1] for i in range(3)] == [11, 6, 3]


def test_evaluation_reads_each_example_alone_and_training_moves_the_statistics():
    model, variables, image = started(dropout=0.5)
    out = jax.jit(model.apply)(variables, image)
    np.testing.assert_allclose(
        jax.jit(model.apply)(variables, image[::-1])["logits"], out["logits"][::-1], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(out["features"], out["stage_1"].mean((1, 2)), rtol=1e-5)
    train = jax.jit(
        lambda key: model.apply(variables, image, train=True, rngs={"dropout": key}, mutable=["batch_stats"])
    )
    (first, changed), (second, _) = train(jax.random.key(0)), train(jax.random.key(1))
    np.testing.assert_array_equal(first["features"], second["features"])
    assert (first["logits"] != second["logits"]).any()
    old, new = (jax.tree.leaves(tree) for tree in (variables["batch_stats"], changed["batch_stats"]))
    assert all((a != b).any() for a, b in zip(old, new, strict=True))


def test_bfloat16_computes_narrow_and_keeps_wide_parameters():
    model, variables, image = started(dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    out = jax.jit(model.apply)(variables, image)
    assert {x.dtype for x in out.values()} == {jnp.dtype("bfloat16")}
    wide = jax.jit(build(**SMALL).apply)(variables, image)["logits"]
    assert np.abs(np.asarray(out["logits"], np.float32) - wide).max() < 0.05 * np.abs(wide).max()


def test_impossible_models_say_what_to_do():
    for options, message in [
        ({"depths": (1, 1)}, r"depths: expected one for each of the widths \(32, 64, 128\), found \(1, 1\)"),
        ({"widths": (0, 64, 128)}, "widths and depths: expected at least 1"),
        ({"image_size": 3}, "image_size: expected at least 4 for 3 stages, found 3"),
        ({"mean": (0.5,)}, "mean: expected one of each of 3 channels"),
        ({"std": (0.5, 0.0, 1.0)}, "std: expected one above 0"),
        ({"dropout": 1.0}, r"dropout: expected a rate in \[0, 1\)"),
        ({"num_classes": 1}, "num_classes: expected at least 2, or 0 for features alone, found 1"),
        ({"width": (3,)}, "no option 'width'; did you mean 'widths'"),
        ({"variant": "smal"}, "did you mean 'small'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            build(**options)
