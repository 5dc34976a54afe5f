"""Plain ViTs: published sizes, documented endpoints, options that change how they compute but not what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import registry
from kdjax.config import ConfigError
from kdjax.models.inputs import IMAGENET_MEAN
from kdjax.models.vision.vit import PARAMETERS, POOLS, VARIANTS
from tests.models.vision.test_tinyusfm import close, filled, run, shapes, size, stacked

SMALL = {"dim": 24, "heads": 3, "depth": 4, "taps": (1, 3), "image_size": (32, 48), "num_classes": 5}


def build(**options):
    return registry.get("models", "vit")(**options)


def small(**options):
    model = build(**SMALL | options)
    return model, filled(model), jnp.asarray(np.random.default_rng(1).normal(size=(2, 32, 48, 3)), jnp.float32)


LATER = {"dinov2_s14", "dinov2_b14", "dinov2_l14", "dinov2_b14_reg4", "dinov2_l14_reg4"}


@pytest.mark.parametrize(
    "variant", [pytest.param(name, marks=pytest.mark.long if name in LATER else ()) for name in VARIANTS]
)
def test_the_published_sizes(variant):
    dino = variant.startswith("dinov2")
    model = build(variant=variant, num_classes=0 if dino else 1000)
    variables, out = shapes(model)
    assert size(variables["params"]) == PARAMETERS[variant]
    assert dino or out["logits"].shape == (1, 1000)
    assert set(out) == set(model.endpoints)
    assert model.inputs["image"].size == (518 if dino else 224)
    assert model.inputs["image"].mean == ((0.5, 0.5, 0.5) if variant.startswith("vit") else IMAGENET_MEAN)


@pytest.mark.parametrize("pool", POOLS)
def test_without_classes_there_are_features_alone(pool):
    model = build(**SMALL | {"num_classes": 0}, pool=pool)
    variables, out = shapes(model)
    assert set(out) == set(model.endpoints) == {"features", "tokens", "block_1", "block_3"}
    assert out["tokens"].shape == (1, 7, 24)
    assert out["block_1"].shape == (1, 2, 3, 24)
    assert set(variables["params"]) & {"norm", "fc_norm", "head"} == {"fc_norm" if pool == "fc_norm" else "norm"}


def test_features_are_what_pool_says():
    found = {}
    for pool in POOLS:
        model, variables, image = small(pool=pool)
        out = found[pool] = run(model, variables, image)
        params = jax.tree.map(np.float64, variables["params"])
        normal = lambda x, norm=params["fc_norm" if pool == "fc_norm" else "norm"]: (  # noqa: E731
            (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * norm["scale"] + norm["bias"]
        )
        last = np.float64(out["block_3"]).reshape(2, 6, 24)
        expected = {"fc_norm": normal(last.mean(1)), "mean": normal(last).mean(1), "token": out["tokens"][:, 0]}
        expected["token_mean"] = np.concatenate([expected["token"], expected["mean"]], axis=1)
        close(out["features"], expected[pool])
        close(out["tokens"][:, 1:], last if pool == "fc_norm" else normal(last))
        close(out["logits"], np.float64(out["features"]) @ params["head"]["kernel"] + params["head"]["bias"])
    assert len({float(out["features"].sum()) for out in found.values()}) == len(POOLS)


def test_distilled_answers_are_the_mean_of_two_heads():
    model, variables, image = small(variant="deit_ti16_distilled")
    out = run(model, variables, image)
    assert out["tokens"].shape == (2, 8, 24)
    for i, (endpoint, name) in enumerate([("logits_class", "head"), ("logits_distilled", "head_dist")]):
        head = jax.tree.map(np.float64, variables["params"][name])
        close(out[endpoint], np.float64(out["tokens"])[:, i] @ head["kernel"] + head["bias"])
    close(out["logits"], (out["logits_class"] + out["logits_distilled"]) / 2)
    assert np.abs(out["logits_class"] - out["logits_distilled"]).max() > 0.1


@pytest.mark.parametrize("extra", [{}, {"relative": True, "layer_scale": 0.1}], ids=["vit", "beit"])
def test_scan_remat_and_the_order_of_examples_change_nothing(extra):
    model, variables, image = small(**extra)
    expected = run(model, variables, image)
    for options, same in [({"remat": True}, variables), ({"scan": True, "remat": True}, stacked(variables))]:
        found = run(build(**SMALL, **extra, **options), same, image)
        for endpoint in expected:
            close(found[endpoint], expected[endpoint])
    close(run(model, variables, image[::-1])["logits"], expected["logits"][::-1])


@pytest.mark.parametrize("extra", [{}, {"relative": True, "layer_scale": 0.1}], ids=["vit", "beit"])
def test_bfloat16_computes_narrow_and_keeps_wide_parameters(extra):
    model, variables, image = small(dtype="bfloat16", **extra)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    found = run(model, variables, image)
    assert {x.dtype for x in found.values()} == {jnp.dtype("bfloat16")}
    expected = np.asarray(run(small(**extra)[0], variables, image)["features"])
    error = np.abs(np.asarray(found["features"], np.float32) - expected).max()
    assert 0 < error < 0.05 * np.abs(expected).max()


def test_impossible_models_say_what_to_do():
    cases = [
        (
            {"image_size": 100},
            "ViT cannot be built:\n  image_size: expected a multiple of the patch size 16, found 100",
        ),
        ({"heads": 7, "taps": (12,)}, "heads: expected a divisor of dim 768, found 7\n  taps: expected block numbers"),
        ({"pool": "tokens"}, "pool: no 'tokens'; did you mean 'token'"),
        ({"variant": "deit_ti16_distilled", "pool": "mean"}, "distilled: expected absolute positions"),
        ({"variant": "deit_ti16_distilled", "relative": True}, "distilled: expected absolute positions"),
        ({"drop_path": 1.0}, r"drop_path: expected a rate in \[0, 1\)"),
        ({"mean": (0.5,)}, r"mean: expected one of each of 3 channels, found \(0.5,\)"),
        ({"std": (0.5, 0.0, 0.5)}, "std: expected one above 0"),
        ({"num_classes": -1}, "num_classes: expected at least 0"),
        ({"variant": "vit_b14"}, "did you mean 'vit_b16'"),
    ]
    for options, message in cases:
        with pytest.raises(ConfigError, match=message):
            build(**options)
    with pytest.raises(ValueError, match=r"ViT was built for images of \(64, 64\) pixels and got \(32, 32\)"):
        jax.eval_shape(build(image_size=64).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def test_the_normalisation_is_an_option():
    spec = build(mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0], image_size=64).inputs[
        "image"
    ]  # a saved config brings lists
    assert (spec.size, spec.mean, spec.std) == (64, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
