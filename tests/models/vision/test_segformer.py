"""SegFormer: documented endpoints, options that change how it computes but not what, and its depthwise convolution."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from kdjax import registry
from kdjax.config import ConfigError
from kdjax.models.layers import depthwise as module
from kdjax.models.layers.depthwise import depthwise
from kdjax.models.vision.segformer import PARAMETERS, VARIANTS, Block
from tests.support.quick import QUICK

SMALL: dict[str, Any] = {
    "dims": (6, 8, 10, 12),
    "depths": (1, 1, 1, 1),
    "heads": (1, 2, 2, 3),
    "reductions": (4, 2, 2, 1),
    "decoder_dim": 7,
    "image_size": 32,
}


def build(**options):
    return registry.get("models", "segformer")(**options)


def shapes(model, size, batch=2):
    image = jax.ShapeDtypeStruct((batch, *size, 3), jnp.float32)
    out, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    return variables, out


def small(**options):
    """A model, variables with every leaf random, none at its initial value, and images."""
    model, rng = build(**SMALL | options), np.random.default_rng(0)

    def fill(path, leaf):
        x, name = rng.normal(size=leaf.shape), path[-1].key
        if name == "var":
            x = rng.uniform(0.5, 2, leaf.shape)
        else:
            fan_in = np.prod(leaf.shape[:-1])
            x = 1 + 0.1 * x if name == "scale" else x / np.sqrt(fan_in) if name == "kernel" else 0.1 * x
        return jnp.asarray(x, jnp.float32)

    variables = jax.tree_util.tree_map_with_path(fill, shapes(model, (32, 48))[0])
    return model, variables, jnp.asarray(rng.normal(size=(2, 32, 48, 3)), jnp.float32)


def close(found, expected, relative=1e-5):
    np.testing.assert_allclose(found, expected, rtol=0, atol=relative * np.abs(expected).max())


@pytest.mark.long
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_has_its_published_size_and_documented_endpoints(variant):
    model = build(variant=variant, num_classes=150)
    variables, out = shapes(model, (97, 130))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == PARAMETERS[variant]
    assert set(out) == set(model.endpoints)
    sides = [(25, 33), (13, 17), (7, 9), (4, 5)]
    for i, dim in enumerate(VARIANTS[variant]["dims"]):
        assert out[f"stage_{i}"].shape == (2, *sides[i], dim)
    assert out["fused"].shape == (2, 25, 33, VARIANTS[variant]["decoder_dim"])
    assert out["low_res_logits"].shape == (2, 25, 33, 150)
    assert out["logits"].shape == (2, 97, 130, 150)
    assert model.inputs["image"].size == 512


@pytest.mark.long
def test_the_encoder_alone_is_that_of_the_whole():
    whole, variables, image = small()
    alone = registry.get("models", "segformer_encoder")(**SMALL)
    part = {"params": {"segformer": variables["params"]["segformer"]}}
    assert jax.tree.structure(jax.eval_shape(alone.init, jax.random.key(0), image)) == jax.tree.structure(part)
    assert alone.endpoints == tuple(name for name in whole.endpoints if name.startswith("stage_"))
    assert alone.inputs == whole.inputs
    found = jax.jit(alone.apply, compiler_options=QUICK)(part, image)
    expected = jax.jit(whole.apply, compiler_options=QUICK)(variables, image)
    assert tuple(sorted(found)) == alone.endpoints
    for name in found:
        close(found[name], expected[name])
    with pytest.raises(ValueError, match="needs images of at least 17 pixels"):
        alone.apply(part, image[:, :16])


def test_channels_of_the_logits():
    for options, channels in [({}, 1), ({"binary_logit": False}, 2), ({"num_classes": 3}, 3)]:
        _, out = shapes(build(**SMALL, **options), (32, 32))
        assert out["logits"].shape[-1] == out["low_res_logits"].shape[-1] == channels


@pytest.fixture(scope="module")
def plain():
    """The small model's variables, its images, and what it says of them."""
    model, variables, image = small()
    run = jax.jit(model.apply, compiler_options=QUICK)
    return variables, image, run(variables, image), run(variables, image[::-1])


def test_the_order_of_examples_changes_nothing(plain):
    _, _, out, reverse = plain
    for name in out:
        close(reverse[name][::-1], out[name])


def test_remat_makes_each_block_again():
    """That it gives the same gradients is seen beside PyTorch."""
    for remat in (True, False):
        model, variables, image = small(remat=remat)
        steps = jax.make_jaxpr(model.apply)(variables, image).eqns
        names = [step.primitive.name for step in steps]
        assert sum(name in ("remat", "remat2", "checkpoint") for name in names) == (4 if remat else 0), set(names)


def test_drop_path_leaves_examples_out_whole_and_keeps_the_mean():
    block = Block(build(**SMALL).options, 0, 0.25)
    x = jax.random.normal(jax.random.key(0), (4096, 1, 2, 2))
    found = block.apply({}, x, method="drop_path", rngs={"dropout": jax.random.key(1)})
    kept = np.asarray(found[:, 0, 0, 0] != 0)
    assert abs(kept.mean() - 0.75) < 0.03
    np.testing.assert_allclose(found[kept], x[kept] / 0.75, rtol=1e-6)
    np.testing.assert_array_equal(found[~kept], 0)


def test_training_grows_the_rate_drops_single_values_and_moves_the_statistics():
    model, variables, image = small(drop_path=0.9, dropout=0.5)
    rates = {}

    def watch(call, args, kwargs, context):
        if isinstance(context.module, Block):
            rates[context.module.name] = context.module.rate
        return call(*args, **kwargs)

    def train(key):
        keep = lambda module, _: isinstance(module, nn.Dropout)  # noqa: E731
        options = {"capture_intermediates": keep, "mutable": ["batch_stats", "intermediates"]}
        with nn.intercept_methods(watch):
            return model.apply(variables, image, train=True, rngs={"dropout": key}, **options)

    train = jax.jit(train, compiler_options=QUICK)
    out, changed = train(jax.random.key(0))
    assert rates == pytest.approx({"block_0_0": 0.0, "block_1_0": 0.3, "block_2_0": 0.6, "block_3_0": 0.9})
    (dropped,) = changed["intermediates"]["decode_head"]["Dropout_0"]["__call__"]
    lost = np.asarray((dropped == 0) & (out["fused"] > 0))
    assert 0.4 < lost.sum() / (out["fused"] > 0).sum() < 0.6
    assert not lost.all(axis=(1, 2)).any()
    old, new = variables["batch_stats"], changed["batch_stats"]
    assert all(np.abs(a - b).min() > 0 for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True))
    np.testing.assert_array_equal(train(jax.random.key(0))[0]["logits"], out["logits"])
    assert (train(jax.random.key(1))[0]["logits"] != out["logits"]).any()


def test_bfloat16_computes_narrow_and_keeps_wide_parameters(plain):
    variables, image, out, _ = plain
    model = build(**SMALL, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes(model, (32, 48))[0])} == {jnp.dtype("float32")}
    found = jax.jit(model.apply, compiler_options=QUICK)(variables, image)
    assert {x.dtype for x in found.values()} == {jnp.dtype("bfloat16")}
    expected = np.asarray(out["logits"])
    error = np.abs(np.asarray(found["logits"], np.float32) - expected).max()
    assert 0 < error < 0.05 * np.abs(expected).max()


def test_impossible_models_say_what_to_do():
    cases = [
        ({"dims": (8, 16, 24)}, r"dims: expected 4 positive numbers, one per stage, found \(8, 16, 24\)"),
        ({"depths": (1, 0, 1, 1)}, "depths: expected 4 positive numbers"),
        ({"heads": (1, 2, 5, 7)}, r"heads: expected divisors of dims \(32, 64, 160, 256\), found \(1, 2, 5, 7\)"),
        ({"image_size": 28}, "image_size: expected at least 29, found 28"),
        ({"drop_path": 1.0, "dropout": -0.1}, r"drop_path: expected a rate in \[0, 1\).*\n.*dropout"),
        ({"num_classes": 1}, "at least 2; found 1"),
        ({"decoder_dims": 64}, "did you mean 'decoder_dim'"),
        ({"variant": "b6"}, "did you mean 'b"),
    ]
    for options, message in cases:
        with pytest.raises(ConfigError, match=message):
            build(**options)
    shapes(build(), (29, 29))
    with pytest.raises(ValueError, match=r"at least 29 pixels a side and got \(64, 28\)"):
        shapes(build(), (64, 28))


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 4), (13, 6), (17, 1)])  # of rows 8 are summed at a time
@pytest.mark.parametrize("sides", [(3, 3), (5, 1)])
def test_depthwise_is_the_convolution_by_definition(size, sides):
    rng, (h, w), (kh, kw) = np.random.default_rng(0), size, sides
    x, gradient = rng.normal(size=(2, 2, h, w, 3))
    kernel = rng.normal(size=(kh, kw, 1, 3))
    expected, of_x, of_kernel = np.zeros_like(x), np.zeros_like(x), np.zeros_like(kernel)
    for r, s, i, j in np.ndindex(h, w, kh, kw):
        y, z = r + i - kh // 2, s + j - kw // 2
        if 0 <= y < h and 0 <= z < w:
            expected[:, r, s] += x[:, y, z] * kernel[i, j]
            of_x[:, y, z] += gradient[:, r, s] * kernel[i, j]
            of_kernel[i, j] += (gradient[:, r, s] * x[:, y, z]).sum(0)
    narrow = [jnp.asarray(a, jnp.float32) for a in (x, kernel, gradient)]
    found, pull = jax.vjp(depthwise, *narrow[:2])
    close(found, expected, 1e-6)
    for slope, wanted in zip(pull(narrow[2]), (of_x, of_kernel), strict=True):
        close(slope, wanted, 1e-6)


def test_depthwise_keeps_the_dtypes():
    x, kernel = jnp.ones((1, 9, 4, 2), jnp.bfloat16), jnp.ones((3, 3, 1, 2))
    y, pull = jax.vjp(depthwise, x, kernel)
    of_x, of_kernel = pull(y)
    assert (y.dtype, of_x.dtype, of_kernel.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    assert module.ROWS_AT_ONCE < 9  # else no test here would sum twice
