"""The five names for notebooks and other people's programs."""

import inspect
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kdjax
from kdjax.config import ConfigError
from kdjax.train.setup import initialiser
from kdjax.weights import safetensors

NAMES = ["apply", "build", "load", "loss", "run"]
OPTIONS = {"image_size": 32, "dim": 16, "heads": 2, "depth": 2, "taps": (0, 0, 1, 1), "neck_dim": 8, "head_dim": 8}


def test_five_names_and_no_more():
    """In a fresh interpreter, where no submodule has been imported yet."""
    code = "import sys, kdjax; print(*sorted(n for n in dir(kdjax) if n[0] != '_')); print('jax' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.splitlines() == [" ".join(NAMES), "False"]
    assert kdjax.__all__ == NAMES
    assert all(inspect.getdoc(getattr(kdjax, name)) for name in NAMES)


@pytest.fixture(scope="module")
def model():
    return kdjax.build("tinyusfm_seg", **OPTIONS)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    variables = jax.tree.map(np.asarray, initialiser(model)(jax.random.key(0)))
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    safetensors.save(path, variables)
    return path, variables


def test_load_gives_what_was_saved(model, saved):
    path, variables = saved
    jax.tree.map(np.testing.assert_array_equal, kdjax.load(model, path), variables)


def test_load_refuses_another_model(saved):
    with pytest.raises(ValueError, match="the weights do not fit the model"):
        kdjax.load(kdjax.build("tinyusfm_seg", **{**OPTIONS, "neck_dim": 12}), saved[0])


def test_apply_takes_images_as_they_come(model, saved):
    """Bytes and their floats are one; so are an image and the same image normalised by hand."""
    variables = saved[1]
    image = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    of_bytes = kdjax.apply(model, variables, image)
    of_floats = kdjax.apply(model, variables, image.astype(np.float32) / np.float32(255))
    np.testing.assert_allclose(of_bytes["logits"], of_floats["logits"], rtol=1e-5, atol=1e-5)
    mean, std = (np.float32(getattr(model.inputs["image"], k)) for k in ("mean", "std"))
    by_hand = model.apply(variables, jnp.asarray((image / np.float32(255) - mean) / std))
    np.testing.assert_allclose(of_bytes["logits"], by_hand["logits"], rtol=1e-5, atol=1e-5)
    assert set(of_bytes) == set(by_hand)


@pytest.mark.long
def test_apply_resizes_to_the_models_size(model, saved):
    flat = np.full((1, 50, 20, 3), 77, np.uint8)
    small = kdjax.apply(model, saved[1], flat)["logits"]
    assert small.shape == (1, 32, 32, 1)
    np.testing.assert_allclose(small, kdjax.apply(model, saved[1], flat[:, :32, :1].repeat(32, 2))["logits"], atol=1e-5)


def test_apply_compiles(model, saved):
    image = np.random.default_rng(0).uniform(size=(1, 32, 32, 3)).astype(np.float32)
    run = jax.jit(lambda variables, image: kdjax.apply(model, variables, image)["logits"])
    np.testing.assert_allclose(
        run(saved[1], image), kdjax.apply(model, saved[1], image)["logits"], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ((np.zeros((1, 8, 8, 3), np.float32) + 2,), r"expected floats in \[0, 1\], found 2 to 2"),
        ((np.full((1, 8, 8, 3), np.nan, np.float32),), r"expected floats in \[0, 1\], found nan to nan"),
        ((np.zeros((8, 8, 3), np.uint8),), r"expected \[b, h, w, 3\], found \[8, 8, 3\]"),
        ((np.zeros((1, 8, 8, 1), np.uint8),), r"expected \[b, h, w, 3\], found \[1, 8, 8, 1\]"),
        ((np.zeros((1, 8, 8, 3), np.int32),), r"expected uint8, or float in \[0, 1\], found int32"),
        ((), r"Segmenter takes image; found 0 input\(s\)"),
    ],
)
def test_apply_refuses_other_images(model, inputs, said):
    with pytest.raises(ConfigError, match=said):
        kdjax.apply(model, {}, *inputs)


def test_loss_is_the_registered_function():
    found = kdjax.loss("mse")(jnp.ones((2, 3)), jnp.zeros((2, 3)))
    np.testing.assert_array_equal(found, [1, 1])


@pytest.mark.parametrize(("call", "near"), [(kdjax.build, "tinyusfm_sge"), (kdjax.loss, "msee")])
def test_unknown_names_answer_with_the_nearest(call, near):
    with pytest.raises(ConfigError, match="did you mean"):
        call(near)
