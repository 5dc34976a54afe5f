"""TinyUSFM: published sizes, documented endpoints, options that change how it computes but not what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from kdjax import registry
from kdjax.config import ConfigError
from kdjax.models.vision.tinyusfm import PARAMETERS, VARIANTS
from kdjax.models.vision.vit import Block

NAMES = ("tinyusfm", "tinyusfm_cls", "tinyusfm_seg")
SMALL = {"dim": 24, "heads": 3, "depth": 4, "taps": (0, 1, 2, 3), "neck_dim": 5, "head_dim": 6, "image_size": (32, 48)}


def build(name, **options):
    return registry.get("models", name)(**options)


def shapes(model, batch=1):
    given = [spec.shape(batch) for spec in model.inputs.values()]
    variables = jax.eval_shape(model.init, jax.random.key(0), *given)
    return variables, jax.eval_shape(model.apply, variables, *given)


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def filled(model, seed=0):
    """Variables with every leaf random, none at its initial value; nothing is compiled."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        x, name = rng.normal(size=leaf.shape), path[-1].key
        fan_in = int(np.prod(leaf.shape[:-1]))
        if name == "var":
            x = rng.uniform(0.5, 2, leaf.shape)
        else:
            x = 1 + 0.1 * x if name == "scale" else x / np.sqrt(fan_in) if name == "kernel" else 0.1 * x
        return jnp.asarray(x, jnp.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes(model)[0])


def small(name, **options):
    model = build(name, **SMALL, **options)
    image = jnp.asarray(np.random.default_rng(1).normal(size=(2, 32, 48, 3)), jnp.float32)
    return model, filled(model), image


def run(model, variables, image):
    return jax.jit(model.apply)(variables, image)


def close(found, expected, relative=1e-5):
    np.testing.assert_allclose(found, expected, rtol=0, atol=relative * np.abs(expected).max())


def test_the_published_sizes():
    encoder, whole = PARAMETERS["tiny"]
    variables, _ = shapes(build("tinyusfm"))
    assert size(variables["params"]) == encoder == 5_524_416
    variables, out = shapes(build("tinyusfm_seg"), batch=2)
    assert size(variables["params"]) == whole == 6_179_073
    parts = {name: size(tree) for name, tree in variables["params"].items()}
    assert parts == {"backbone": 5_524_416, "neck": 37_056, "decode_head": 617_601}
    assert out["neck_2"].shape == (2, 14, 14, 48)
    assert out["logits"].shape == (2, 224, 224, 1)
    assert out["tokens"].shape == (2, 197, 192)
    assert out["fused"].shape == (2, 56, 56, 128)
    variables, out = shapes(build("tinyusfm_cls", num_classes=5))
    assert size(variables["params"]) == encoder + 5 * 193
    assert out["logits"].shape == (1, 5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_endpoint_is_there_and_documented(name, variant):
    for scan in (False, True):
        model = build(name, variant=variant, scan=scan)
        _, out = shapes(model)
        assert set(out) == set(model.endpoints)
        assert model.inputs["image"].size == 224


def test_multi_class_and_other_sizes():
    _, out = shapes(build("tinyusfm_seg", num_classes=4, image_size=80))  # 5 patches: the coarsest map has 2
    assert out["logits"].shape == (1, 80, 80, 4)
    assert [out[f"neck_{i}"].shape[1] for i in range(4)] == [20, 10, 5, 2]


def stacked(variables):
    """Variables of separate blocks -> those of scanned ones."""

    def stack(tree):
        if "blocks_0" not in tree:
            return {name: stack(sub) if isinstance(sub, dict) else sub for name, sub in tree.items()}
        blocks = [tree[f"blocks_{i}"] for i in range(SMALL["depth"])]
        rest = {name: sub for name, sub in tree.items() if not name.startswith("blocks_")}
        return rest | {"blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}

    return {name: stack(tree) for name, tree in variables.items()}


@pytest.mark.long
def test_scan_remat_and_the_order_of_examples_change_nothing():
    model, variables, image = small("tinyusfm_seg")
    expected = run(model, variables, image)
    for options, same in [({"remat": True}, variables), ({"scan": True, "remat": True}, stacked(variables))]:
        found = run(build("tinyusfm_seg", **SMALL, **options), same, image)
        for endpoint in expected:
            close(found[endpoint], expected[endpoint])
    swapped = run(model, variables, image[::-1])["logits"]
    close(swapped, expected["logits"][::-1])


@pytest.mark.parametrize("scan", [False, True])
def test_drop_path_leaves_examples_out_whole(scan):
    options = {**SMALL, "image_size": 32, "depth": 2, "taps": (0, 1), "drop_path": 0.9, "scan": scan}
    model = build("tinyusfm", **options)
    variables, image = filled(model), jnp.ones((64, 32, 32, 3))
    train = jax.jit(lambda v, key: model.apply(v, image, train=True, rngs={"dropout": key}))
    out = train(variables, jax.random.key(2))
    # every image is the same one: the first block leaves nothing out, the second keeps each branch by chance 0.1
    close(out["block_0"], out["block_0"][:1].repeat(64, axis=0))
    moved = np.abs(out["block_1"] - out["block_0"]).max(axis=(1, 2, 3)) > 0
    assert 0 < moved.sum() < 30
    np.testing.assert_array_equal(train(variables, jax.random.key(2))["block_1"], out["block_1"])
    assert (train(variables, jax.random.key(3))["block_1"] != out["block_1"]).any()


def test_drop_path_keeps_the_mean():
    block = Block(build("tinyusfm", **SMALL).options, train=True)
    x = jax.random.normal(jax.random.key(0), (4096, 1, 2))
    found = block.apply({}, x, 0.25, method="drop_path", rngs={"dropout": jax.random.key(1)})
    kept = np.asarray(found[:, 0, 0] != 0)
    assert abs(kept.mean() - 0.75) < 0.03
    np.testing.assert_allclose(found[kept], x[kept] / 0.75, rtol=1e-6)
    np.testing.assert_array_equal(found[~kept], 0)


def test_training_drops_whole_channels_and_moves_the_statistics():
    model, variables, image = small("tinyusfm_seg", dropout=0.5)
    keep = lambda module, _: isinstance(module, nn.Dropout)  # noqa: E731
    _, changed = jax.jit(
        lambda v: model.apply(
            v,
            image,
            train=True,
            rngs={"dropout": jax.random.key(0)},
            capture_intermediates=keep,
            mutable=["batch_stats", "intermediates"],
        )
    )(variables)
    (dropped,) = changed["intermediates"]["decode_head"]["Dropout_0"]["__call__"]
    empty = np.asarray((dropped == 0).all(axis=(1, 2)))
    assert 0 < empty.sum() < empty.size
    assert (np.asarray(dropped).mean(axis=(1, 2)) > 0)[~empty].all()
    old, new = (jax.tree.leaves(v["batch_stats"]) for v in (variables, changed))
    assert len(old) == 16
    assert all(np.abs(a - b).min() > 0 for a, b in zip(old, new, strict=True))


@pytest.mark.long
def test_bfloat16_computes_narrow_and_keeps_wide_parameters():
    model, variables, image = small("tinyusfm_seg", dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    found = run(model, variables, image)
    assert {x.dtype for x in found.values()} == {jnp.dtype("bfloat16")}
    expected = np.asarray(run(small("tinyusfm_seg")[0], variables, image)["logits"])
    error = np.abs(np.asarray(found["logits"], np.float32) - expected).max()
    assert 0 < error < 0.05 * np.abs(expected).max()


def test_impossible_models_say_what_to_do():
    cases = [
        ({"image_size": 100}, "image_size: expected a multiple of the patch size 16, found 100"),
        ({"image_size": 16}, "at least two patches"),
        ({"heads": 7}, "heads: expected a divisor of dim 192, found 7"),
        ({"taps": (3, 12, 5, 7)}, "taps: expected block numbers below depth 12 in order"),
        ({"taps": (3, 5)}, r"the segmenter reads 4 blocks, found \(3, 5\)"),
        ({"drop_path": 1.0}, r"drop_path: expected a rate in \[0, 1\)"),
        ({"num_classes": 1}, "at least 2; found 1"),
        ({"image_sise": 64}, "did you mean 'image_size'"),
        ({"variant": "tini"}, "did you mean 'tiny'"),
    ]
    for options, message in cases:
        with pytest.raises(ConfigError, match=message):
            build("tinyusfm_seg", **options)
    model = build("tinyusfm_seg", image_size=64)
    with pytest.raises(ValueError, match=r"built for images of \(64, 64\) pixels and got \(32, 32\)"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert build("tinyusfm", image_size=(32, 64)).inputs["image"].hw == (32, 64)
