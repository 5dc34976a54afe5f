"""LaDeDa and Tiny-LaDeDa: sizes and endpoints, what a logit sees, how they compute, and what they refuse."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import registry
from kdjax.config import ConfigError
from kdjax.models.model import Model
from kdjax.models.vision.ladeda import FIELDS, PARAMETERS, TINY_PARAMETERS, pooled
from tests.support.quick import QUICK

SMALL: dict[str, Any] = {"widths": (4, 6, 8, 10), "depths": (1, 1, 1, 1)}


def build(name="ladeda", **options):
    return registry.get("models", name)(**options)


def shapes(model, size, batch=2):
    image = jax.ShapeDtypeStruct((batch, *size, 3), jnp.float32)
    out, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    return variables, {name: x.shape for name, x in out.items()}


def parameters(variables) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize("field", FIELDS)
def test_every_receptive_field(field):
    model = build(receptive_field=field)
    assert isinstance(model, Model)
    variables, out = shapes(model, (256, 256))
    assert parameters(variables) == PARAMETERS[field]
    assert set(out) == set(model.endpoints)
    assert model.inputs["image"].size == 256
    assert (model.receptive_field, model.stride) == (field, 8)
    side = (256 - field) // 8 + 1
    assert out["patch_logits"] == (2, side, side, 1)
    assert out["layer_4"] == (2, side, side, 2048)
    assert (out["logits"], out["features"]) == ((2, 1), (2, 2048))
    assert shapes(build(receptive_field=field, preprocess="raw"), (field, field + 8))[1]["patch_logits"] == (2, 1, 2, 1)


def test_tiny():
    for size, side in ((256, 126), (224, 110)):
        variables, out = shapes(build("tiny_ladeda"), (size, size))
        assert out["patch_logits"] == (2, side, side, 1)
    assert parameters(variables) == TINY_PARAMETERS
    whole, crops = build("tiny_ladeda"), build("tiny_ladeda", crop=10, stride=8)
    assert set(out) == set(whole.endpoints)
    assert (whole.receptive_field, whole.stride, crops.receptive_field, crops.stride) == (5, 2, 10, 8)
    for size in (256, 224):  # as many crops as LaDeDa9 has patches
        cut, out = shapes(crops, (size, size))
        assert out["patch_logits"] == shapes(build(**SMALL), (size, size))[1]["patch_logits"]
        assert jax.tree.map(lambda x: x.shape, cut) == jax.tree.map(lambda x: x.shape, variables)


def started(name, size, **options):
    """A model whose statistics are not those it starts with, an image, and the gradient of one logit by it."""
    model = build(name, image_size=size, **options)
    image = jnp.asarray(np.random.default_rng(1).normal(size=(1, size, size, 3)), jnp.float32)
    variables = jax.jit(model.init, compiler_options=QUICK)(jax.random.key(0), image)
    slope = jax.grad(lambda image, i, j: model.apply(variables, image)["patch_logits"][0, i, j, 0])
    return model, variables, image, jax.jit(slope, compiler_options=QUICK)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(("ladeda", {"receptive_field": field, **SMALL}) for field in (5, 9, 17)),
        ("tiny_ladeda", {}),
        ("tiny_ladeda", {"crop": 10, "stride": 8}),
    ],
    ids=str,
)
def test_a_logit_sees_its_patch_and_nothing_else(name, options):
    model, _, image, slope = started(name, 34, preprocess="raw", **options)
    for i, j in ((0, 0), (1, 2), (2, 1)):
        seen = np.argwhere(np.abs(slope(image, i, j)[0]).sum(-1))
        corner = np.array([i, j]) * model.stride
        assert (seen.min(axis=0) >= corner).all()
        assert (seen.max(axis=0) < corner + model.receptive_field).all()
        assert len(seen) > 1


def test_pooling():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 31, 31, 1)), jnp.float32)
    largest = np.sort(np.asarray(logits).reshape(2, -1))[:, -97:]  # a tenth of 961, rounded up
    np.testing.assert_allclose(pooled(logits, "topk"), largest.mean(1, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(pooled(logits, "mean"), np.mean(logits, axis=(1, 2)), rtol=1e-4, atol=1e-7)
    few = logits[:, :2, :4]
    np.testing.assert_allclose(
        pooled(few, "topk")[:, 0], np.sort(np.asarray(few).reshape(2, 8))[:, -5:].mean(1), rtol=1e-6
    )
    np.testing.assert_allclose(pooled(few[:, :1], "topk"), pooled(few[:, :1], "mean"), rtol=1e-6)  # four patches


def test_bfloat16_computes_narrow_and_keeps_wide_parameters():
    """Differences of neighbours are taken before that."""
    narrow, variables, image, _ = started("tiny_ladeda", 34, preprocess="npr", dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    image = image * 0.01 + 2  # whose differences have no digit left in bfloat16
    out = jax.jit(narrow.apply, compiler_options=QUICK)(variables, image)
    assert {x.dtype for x in out.values()} == {jnp.dtype("bfloat16")}
    wide = jax.jit(build("tiny_ladeda", image_size=34, preprocess="npr").apply, compiler_options=QUICK)
    expected = wide(variables, image)["layer_1"]
    assert np.abs(np.asarray(out["layer_1"], np.float32) - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ladeda", {"receptive_field": 7}, r"receptive_field: expected one of \(5, 9, 17, 33\), found 7"),
        ("ladeda", {"widths": (4, 4)}, "widths: expected 4 numbers above 0, one per layer"),
        ("ladeda", {"preprocess": "nrp"}, "preprocess: no 'nrp'; did you mean 'npr'"),
        ("ladeda", {"pooling": "max"}, "pooling: no 'max'"),
        ("ladeda", {"image_size": 8}, "image_size: expected at least 9 pixels a side.*, found 8 × 8"),
        ("ladeda", {"image_size": (64, 33)}, "image_size: expected even sides, since npr .*, found 64 × 33"),
        ("ladeda", {"std": (1.0, 0.0, 1.0)}, "std: expected one above 0"),
        ("tiny_ladeda", {"crop": 10}, "crop and stride: expected both or neither, found 10 and 0"),
        ("tiny_ladeda", {"crop": 4, "stride": 2}, "crop: expected at least 5 pixels"),
        ("tiny_ladeda", {"crop": 9, "stride": 8, "preprocess": "npr"}, "crop: expected even sides"),
        ("tiny_ladeda", {"crop": 10, "stride": 8, "image_size": 9}, "image_size: expected at least 10 pixels"),
        ("tiny_ladeda", {"width": 0}, "width: expected at least 1, found 0"),
        ("tiny_ladeda", {"variant": "small"}, "no option 'variant'|has no option 'variant'"),
    ],
)
def test_impossible_models_say_what_to_do(name, options, message):
    with pytest.raises(ConfigError, match=message):
        build(name, **options)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("ladeda", (8, 40), "images for LaDeDa: expected at least 9 pixels a side"),
        ("ladeda", (33, 40), "expected even sides, since npr takes cells of 2 × 2, found 33 × 40: resize or crop"),
        ("tiny_ladeda", (40, 4), "images for Tiny-LaDeDa: expected at least 5 pixels"),
    ],
)
def test_images_that_cannot_be_seen_are_refused(name, size, message):
    with pytest.raises(ConfigError, match=message):
        shapes(build(name), size)
