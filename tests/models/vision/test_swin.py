"""Swin-V2: published sizes, documented endpoints, options that change how it computes but not what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import registry
from kdjax.config import ConfigError
from kdjax.models.vision.swin import PARAMETERS, VARIANTS, Block, positions
from tests.models.vision.test_tinyusfm import close, filled, run, shapes, size
from tests.support.quick import QUICK

SMALL = {"dim": 8, "depths": (1, 2), "heads": (1, 2), "window": 4, "image_size": (32, 64), "num_classes": 3}


def build(**options):
    return registry.get("models", "swinv2")(**options)


def small(**options):
    model = build(**SMALL | options)
    return model, filled(model), jnp.asarray(np.random.default_rng(1).normal(size=(3, 32, 64, 3)), jnp.float32)


def whole(**options):
    model = build(**options)
    variables, out = shapes(model)
    assert set(out) == set(model.endpoints)
    return size(variables["params"]), {name: x.shape[1:] for name, x in out.items()}


@pytest.mark.long
def test_tiny_as_published():
    parameters, out = whole()
    assert parameters == PARAMETERS["tiny"]
    maps = {f"stage_{i}": (64 // 2**i, 64 // 2**i, 96 * 2**i) for i in range(4)}
    assert out == maps | {"features": (768,), "logits": (1000,)}


@pytest.mark.long
@pytest.mark.parametrize(("variant", "window"), [("tiny", 16), ("small", 8), ("base", 24), ("large", 12)])
def test_windows_and_sizes_as_published(variant, window):
    options = {"image_size": 16 * window, "window": window, "pretrained_windows": (12, 12, 12, 6)}
    parameters, out = whole(variant=variant, **options)
    assert parameters == PARAMETERS[variant]
    assert out["stage_3"] == (window // 2, window // 2, VARIANTS[variant]["dim"] * 8)
    assert "logits" not in whole(variant=variant, num_classes=0, **options)[1]


def test_positions_are_spaced_by_logarithms_of_those_in_training():
    """To base 8, of 1 and up to eight times how much of the window of training they are."""
    found = positions((3, 24), (2, 12))
    assert found.shape == (5, 47, 2)
    np.testing.assert_allclose(
        found[:, 0, 0], [-np.log(17) / np.log(8), -np.log(9) / np.log(8), 0, *-found[1::-1, 0, 0]]
    )
    np.testing.assert_allclose(
        found[3, :, 1], [np.sign(n) * np.log(1 + 8 * abs(n) / 11) / np.log(8) for n in range(-23, 24)]
    )
    np.testing.assert_array_equal(positions((1, 1), (1, 1)), np.zeros((1, 1, 2)))


def test_impossible_models_say_what_to_do():
    cases = [
        (
            {"image_size": 224},
            "window: expected a divisor of every map that it does not cover, found 8, and stage 1 has a map of "
            r"\(28, 28\), stage 2 has a map of \(14, 14\): build it for an image_size of which 8 x 32 = 256 is",
        ),
        ({"image_size": 258}, "image_size: expected a multiple of the patch size 4, found 258"),
        ({"heads": (3, 6, 12, 25)}, r"divisors of the stages' widths \(96, 192, 384, 768\), found \(3, 6, 12, 25\)"),
        ({"depths": (2, 2, 6)}, r"heads: expected a positive number per stage, 3 as in depths, found \(3, 6, 12, 24\)"),
        ({"depths": (2, 0, 6, 2)}, "depths: expected a positive number per stage"),
        ({"depths": (), "heads": ()}, "depths: expected a positive number per stage"),
        ({"pretrained_windows": (12,)}, r"pretrained_windows: expected a number per stage or none, found \(12,\)"),
        ({"drop_path": 1.0}, r"drop_path: expected a rate in \[0, 1\)"),
        ({"activation": "mish"}, "activation: no 'mish'"),
        ({"window": 0}, "window: expected from 1"),
        ({"num_classes": -1}, "num_classes: expected at least 0"),
        ({"variant": "huge"}, "no Swin-V2 variant 'huge'"),
    ]
    for options, message in cases:
        with pytest.raises(ConfigError, match=message):
            build(**options)
    assert build(image_size=224, pad_windows=True).options.windows(1).padding == (4, 4)
    with pytest.raises(ConfigError, match=r"Swin-V2 was built for images of \(256, 256\) pixels and got \(32, 32\)"):
        jax.eval_shape(build().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


@pytest.mark.long
def test_remat_and_the_order_of_examples_change_nothing():
    model, variables, image = small()
    expected = run(model, variables, image)
    found = run(build(**SMALL, remat=True), variables, image)
    for name in expected:
        close(found[name], expected[name])
    close(run(model, variables, image[::-1])["logits"], expected["logits"][::-1])


@pytest.mark.long
def test_bfloat16_computes_narrow_and_keeps_wide_parameters():
    model, variables, image = small(dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    found = run(model, variables, image)
    assert {x.dtype for x in found.values()} == {jnp.dtype("bfloat16")}
    expected = np.asarray(run(small()[0], variables, image)["features"])
    error = np.abs(np.asarray(found["features"], np.float32) - expected).max()
    assert 0 < error < 0.05 * np.abs(expected).max()


@pytest.mark.long
def test_a_fresh_block_does_nothing_and_drop_path_leaves_examples_out_whole():
    block = Block(build(**SMALL).options, 1, True, 0.0)
    x = jax.random.normal(jax.random.key(0), (2, 4, 8, 16))
    y, _ = jax.jit(block.init_with_output, compiler_options=QUICK)(jax.random.key(1), x)
    np.testing.assert_array_equal(y, x)
    often = Block(build(**SMALL).options, 1, True, 0.25)
    branch = jnp.ones((4096, 1, 1, 1))
    found = often.apply({}, branch, method="drop_path", rngs={"dropout": jax.random.key(2)})
    assert abs(float((found == 0).mean()) - 0.25) < 0.03
    assert {float(x) for x in np.unique(np.asarray(found))} == {0.0, float(np.float32(1 / 0.75))}


@pytest.mark.long
def test_drop_path_grows_with_depth_and_is_training_alone():
    model, variables, image = small(drop_path=0.5)
    still = run(model, variables, image)
    close(run(small(drop_path=0.0)[0], variables, image)["logits"], still["logits"])
    train = jax.jit(lambda key: model.apply(variables, image, train=True, rngs={"dropout": key}))
    first, second = train(jax.random.key(0)), train(jax.random.key(1))
    close(first["stage_0"], still["stage_0"])  # the first block is never left out
    assert (first["logits"] != second["logits"]).any()
