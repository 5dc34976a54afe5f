"""USFM: its size, documented endpoints, and what its positions mean."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import registry
from kdjax.config import ConfigError, Lora
from kdjax.models.vision.usfm import PARAMETERS
from kdjax.train import lora
from tests.models.vision.test_tinyusfm import close, filled, run, shapes, size

NAMES = ("usfm", "usfm_cls", "usfm_seg")
SMALL = {"dim": 24, "heads": 3, "depth": 4, "taps": (0, 1, 2, 3), "neck_dim": 5, "head_dim": 6, "image_size": (32, 48)}


def build(name, **options):
    return registry.get("models", name)(**options)


def images(batch=2):
    return jnp.asarray(np.random.default_rng(1).normal(size=(batch, 32, 48, 3)), jnp.float32)


@pytest.mark.long
def test_sizes():
    dim, block = 768, 2 * 1536 + 768 * 2304 + 2 * 768 + 732 * 12 + 768 * 769 + 2 * 768 + 8 * 768**2 + 5 * 768
    encoder = 768 * 769 + dim + 12 * block + 2 * dim
    neck, head = 4 * (768 * 48 + 48), 617_601  # the head is TinyUSFM's
    assert PARAMETERS["base"] == (encoder, encoder + neck + head)
    variables, out = shapes(build("usfm"))
    assert size(variables["params"]) == encoder
    assert variables["params"]["blocks_3"]["attn"]["relative_position_bias_table"].shape == (732, 12)
    assert out["block_11"].shape == (1, 14, 14, 768)
    variables, out = shapes(build("usfm_seg"))
    assert size(variables["params"]) == PARAMETERS["base"][1]
    assert out["logits"].shape == (1, 224, 224, 1)
    tables = shapes(build("usfm", image_size=(64, 96)))[0]["params"]
    assert tables["blocks_0"]["attn"]["relative_position_bias_table"].shape == (7 * 11 + 3, 12)


@pytest.mark.parametrize("name", NAMES)
def test_every_endpoint_is_there_and_documented(name):
    for scan in (False, True):
        model = build(name, scan=scan)
        _, out = shapes(model)
        assert set(out) == set(model.endpoints)
        assert model.inputs["image"].size == 224


def test_it_can_teach_tinyusfm():
    """All that a term may read has the same name and, but for the width of the blocks, the same shape."""
    teacher, student = (shapes(build(name))[1] for name in ("usfm_seg", "tinyusfm_seg"))
    assert set(teacher) == set(student)
    same = {name for name in teacher if teacher[name].shape == student[name].shape}
    assert same == {"logits", "fused", "neck_0", "neck_1", "neck_2", "neck_3"}


@pytest.mark.long
def test_positions_are_in_the_tables_alone():
    """Without them the patches are a set; with them, a shuffled image is another one."""
    model = build("usfm", **SMALL)
    variables, image = filled(model), images()
    order = np.random.default_rng(2).permutation(6)
    patches = image.reshape(2, 2, 16, 3, 16, 3).swapaxes(2, 3).reshape(2, 6, 16, 16, 3)[:, order]
    shuffled = patches.reshape(2, 2, 3, 16, 16, 3).swapaxes(2, 3).reshape(2, 32, 48, 3)
    empty = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.zeros_like(x) if path[-1].key == "relative_position_bias_table" else x, variables
    )
    plain, other = (run(model, empty, x)["block_3"].reshape(2, 6, -1) for x in (image, shuffled))
    close(other, plain[:, order])
    plain, other = (run(model, variables, x)["block_3"].reshape(2, 6, -1) for x in (image, shuffled))
    assert np.abs(other - plain[:, order]).max() > 1e-3 * np.abs(plain).max()


def test_branches_start_small():
    model = build("usfm", **SMALL | {"depth": 1, "taps": ()})
    variables = jax.jit(model.init)(jax.random.key(0), images())
    for name in ("gamma_1", "gamma_2"):
        np.testing.assert_array_equal(variables["params"]["blocks_0"][name], np.full(24, 0.1, np.float32))


def test_lora_fits_its_qkv():
    model = build("usfm", **SMALL | {"depth": 2, "taps": (1,)})
    variables, image = filled(model), images()
    settings = Lora(rank=2)
    pairs = jax.tree.map(lambda x: x + 0.1, lora.init(jax.random.key(0), variables["params"], settings))
    with lora.active(settings):
        found = jax.jit(model.apply)({**variables, "lora": pairs}, image)["features"]
    merged = {**variables, "params": lora.merge(variables["params"], pairs, settings)}
    close(found, run(model, merged, image)["features"])
    assert np.abs(found - run(model, variables, image)["features"]).max() > 1e-3


def test_impossible_models_say_what_to_do():
    cases = [
        ("usfm", {"image_size": 100}, "USFM cannot be built:\n  image_size: expected a multiple of the patch size 16"),
        ("usfm_cls", {"num_classes": 1}, "num_classes: expected at least 2, found 1"),
        (
            "usfm_seg",
            {"num_classes": 1, "taps": (3,), "image_size": 16},
            "at least 2; found 1\n  taps: .*\n  image_size",
        ),
        ("usfm", {"variant": "bass"}, "no USFM variant 'bass'; did you mean 'base'"),
    ]
    for name, options, message in cases:
        with pytest.raises(ConfigError) as error:
            build(name, **options)
        assert re.search(message, str(error.value))
