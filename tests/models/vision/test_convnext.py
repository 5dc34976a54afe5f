"""ConvNeXt-V2: published sizes, documented endpoints, its norm by definition, options that change how it computes but
not what."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import registry
from kdjax.config import ConfigError
from kdjax.models.layers.depthwise import depthwise
from kdjax.models.vision.convnext import PARAMETERS, VARIANTS, Block, GlobalResponseNorm, Stage
from tests.models.vision.test_tinyusfm import close, filled, shapes, size
from tests.support.quick import QUICK

SMALL: dict[str, Any] = {"dims": (6, 8, 10, 12), "depths": (1, 1, 2, 1), "image_size": (32, 48), "num_classes": 5}


def build(**options):
    return registry.get("models", "convnextv2")(**options)


def run(model, variables, image):
    return jax.jit(model.apply, compiler_options=QUICK)(variables, image)


@pytest.fixture(scope="module")
def plain():
    """A model, variables of which none is at its initial value, images, and what it answers."""
    model = build(**SMALL)
    variables = filled(model)
    image = jnp.asarray(np.random.default_rng(1).normal(size=(3, 32, 48, 3)), jnp.float32)
    return model, variables, image, run(model, variables, image)


@pytest.mark.long
def test_the_published_size_and_the_documented_endpoints():
    """Parity with timm counts the parameters of every variant."""
    model = build(variant="tiny", image_size=(64, 96))
    variables, out = shapes(model)
    assert size(variables["params"]) == PARAMETERS["tiny"]
    dims = VARIANTS["tiny"]["dims"]
    expected = {f"stage_{i}": (1, 16 >> i, 24 >> i, dim) for i, dim in enumerate(dims)}
    expected |= {"features": (1, dims[-1]), "logits": (1, 1000)}
    assert {name: x.shape for name, x in out.items()} == expected
    assert set(model.endpoints) == set(expected)
    assert model.inputs["image"].hw == (64, 96)


def test_impossible_models_say_what_to_do():
    cases = [
        ({"dims": (8, 16, 32)}, "dims: expected 4 positive numbers, one per stage, found"),
        ({"depths": (1, 1, 0, 1)}, "depths: expected 4 positive numbers"),
        ({"image_size": (224, 31)}, r"image_size: expected at least 32 pixels a side, found \(224, 31\)"),
        ({"drop_path": 1.0}, r"drop_path: expected a rate in \[0, 1\)"),
        ({"activation": "gelo"}, "activation: no 'gelo'; did you mean 'gelu'"),
        ({"std": (0.5, 0.0, 0.5)}, "std: expected one above 0"),
        ({"num_classes": -1}, "num_classes: expected at least 0"),
        ({"variant": "tinny"}, "did you mean 'tiny'"),
    ]
    for options, message in cases:
        with pytest.raises(ConfigError, match=message):
            build(**options)
    with pytest.raises(ConfigError, match=r"at least 32 pixels a side and got \(31, 64\): resize the images"):
        jax.eval_shape(build(**SMALL).init, jax.random.key(0), jnp.zeros((1, 31, 64, 3)))


@pytest.mark.long
def test_the_global_response_norm_is_the_papers():
    """Equations 1 and 2 and the residual, in float64; a channel that is silent everywhere has a gradient too."""
    draw = np.random.default_rng(0)
    x, scale, bias = draw.normal(size=(2, 3, 5, 4)), draw.normal(size=4), draw.normal(size=4)
    x[1, :, :, 2] = 0
    norms = np.sqrt((x**2).sum((1, 2), keepdims=True))
    expected = scale * (x * norms / (norms.mean(-1, keepdims=True) + 1e-6)) + bias + x
    given = [jnp.asarray(a, jnp.float32) for a in (x, scale, bias)]
    norm = lambda x, scale, bias: GlobalResponseNorm("float32").apply({"params": {"scale": scale, "bias": bias}}, x)  # noqa: E731
    found, pull = jax.vjp(norm, *given)
    close(found, expected, 1e-6)
    of_x, _, _ = pull(jnp.ones_like(found))
    silent = 1 + scale[2] * 0.0  # its norm is 0, and does not move with it
    np.testing.assert_allclose(of_x[1, :, :, 2], silent, rtol=1e-6)
    assert jnp.isfinite(of_x).all()


@pytest.mark.long
def test_features_are_the_mean_of_the_last_map_normalised(plain):
    _, variables, _, out = plain
    head = jax.tree.map(np.float64, variables["params"]["head"])
    mean = np.float64(out["stage_3"]).mean((1, 2))
    centred = mean - mean.mean(-1, keepdims=True)
    features = centred / np.sqrt(mean.var(-1, keepdims=True) + 1e-6) * head["norm"]["scale"] + head["norm"]["bias"]
    close(out["features"], features)
    close(out["logits"], features @ head["fc"]["kernel"] + head["fc"]["bias"])


@pytest.mark.long
def test_the_order_of_examples_changes_nothing(plain):
    model, variables, image, expected = plain
    for name, x in run(model, variables, image[::-1]).items():
        close(x[::-1], expected[name])


@pytest.mark.long
def test_remat_changes_no_gradient(plain):
    _, variables, _, out = plain
    params = {"params": variables["params"]["stages_3"]}

    def slopes(**options):
        stage = Stage(build(**SMALL, **options).options, 3, train=True)
        loss = lambda params, x: jnp.square(stage.apply(params, x)).sum()  # noqa: E731
        return jax.jit(jax.grad(loss, argnums=(0, 1)), compiler_options=QUICK)(params, out["stage_2"])

    jax.tree.map(close, slopes(remat=True), slopes())


@pytest.mark.long
def test_bfloat16_computes_narrow_and_keeps_wide_parameters(plain):
    _, variables, _, out = plain
    model = build(**SMALL, dtype="bfloat16")
    declared, found = shapes(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(declared)} == {jnp.dtype("float32")}
    assert {x.dtype for x in found.values()} == {jnp.dtype("bfloat16")}
    stage = Stage(model.options, 3, train=False)
    params = {"params": variables["params"]["stages_3"]}
    found = np.asarray(run(stage, params, out["stage_2"].astype(jnp.bfloat16)), np.float32)
    error = np.abs(found - out["stage_3"]).max()
    assert 0 < error < 0.05 * np.abs(out["stage_3"]).max()


@pytest.mark.long
def test_drop_path_skips_blocks_in_training_alone(plain):
    """The last ones the most, whole examples at a time, and scales up what is kept."""
    options = build(**SMALL, drop_path=0.5).options
    assert [options.rate(*at) for at in ((0, 0), (1, 0), (2, 0), (2, 1), (3, 0))] == [0, 0.125, 0.25, 0.375, 0.5]
    _, variables, image, expected = plain
    close(run(build(**SMALL, drop_path=0.5), variables, image)["logits"], expected["logits"])

    x = jnp.asarray(np.random.default_rng(2).normal(size=(64, 2, 3, 12)), jnp.float32)
    params = {"params": variables["params"]["stages_3"]["blocks_0"]}
    whole = run(Block(options, 0.0), params, x)
    dropping = lambda params, x: Block(options, 0.5).apply(params, x, rngs={"dropout": jax.random.key(0)})  # noqa: E731
    found = jax.jit(dropping, compiler_options=QUICK)(params, x)
    kept = np.asarray(jnp.abs(found - x).max((1, 2, 3)) > 0)
    assert 16 < kept.sum() < 48
    close(found[kept], (2 * whole - x)[kept])


@pytest.mark.long
def test_a_depthwise_kernel_of_7_by_7_is_xlas():
    """Values and gradients, of maps smaller and larger than the kernel."""
    draw = np.random.default_rng(0)
    for h, w in ((1, 2), (7, 7), (19, 10)):
        x, kernel, slope = (
            jnp.asarray(draw.normal(size=shape), jnp.float32) for shape in ((2, h, w, 6), (7, 7, 1, 6), (2, h, w, 6))
        )
        xlas = lambda x, kernel: jax.lax.conv_general_dilated(  # noqa: E731
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=6
        )
        y, pull = jax.vjp(xlas, x, kernel)
        z, ours = jax.vjp(depthwise, x, kernel)
        for found, expected in zip((z, *ours(slope)), (y, *pull(slope)), strict=True):
            close(found, expected)
