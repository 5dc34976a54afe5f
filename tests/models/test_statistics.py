"""Running statistics tell by which preprocessing a model was trained."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import registry
from kdjax.config import Model
from kdjax.models import statistics
from kdjax.models.inputs import ImageInput
from kdjax.models.layers.preprocess import PREPROCESSES
from kdjax.models.statistics import judge, mismatch

TINY = "tiny_ladeda"
SIZE = 48


def textures(count: int, seed: int = 0, size: int = SIZE) -> np.ndarray:
    """Random pictures with the spectrum of photographs, uint8."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = 1
    wave = rng.normal(size=(count, 3, *frequency.shape)) + 1j * rng.normal(size=(count, 3, *frequency.shape))
    x = np.fft.irfft2(wave / frequency**1.5)
    x = 0.5 + 0.2 * (x - x.mean()) / x.std()
    return (255 * np.clip(x, 0, 1)).astype(np.uint8).transpose(0, 2, 3, 1)


def trained(preprocess: str) -> tuple[Model, dict]:
    """A model whose statistics have settled on textures."""
    model = Model(TINY, preprocess=preprocess, image_size=SIZE)
    module = registry.build("models", model.name, model.options)
    view = module.inputs["image"].view(jnp.asarray(textures(8, 1) / 255, jnp.float32))
    return model, settled(module, module.init(jax.random.key(0), view), view)


def settled(module: Any, variables: dict, view: jax.Array, momentum: float = 0.9) -> dict:
    """What the statistics come to after many steps on one batch, of what they are after one."""
    moved = module.apply(variables, view, train=True, mutable=["batch_stats"])[1]["batch_stats"]
    last = lambda new, old: (new - momentum * old) / (1 - momentum)  # noqa: E731
    return {**variables, "batch_stats": jax.tree.map(last, moved, variables["batch_stats"])}


@pytest.fixture(scope="module")
def models() -> dict[str, tuple[Model, dict]]:
    return {name: trained(name) for name in ("npr", "right_diag")}


def declared(preprocess: str) -> Model:
    return Model(TINY, preprocess=preprocess, image_size=SIZE)


@pytest.mark.parametrize("count", [1, *(pytest.param(n, marks=pytest.mark.long) for n in (2, 8))])
def test_the_right_one_is_let_be_and_the_wrong_one_is_told(models, count):
    images = textures(count)
    for name, (model, variables) in models.items():
        assert mismatch(model, variables, images) == ""
        assert mismatch(model, variables, images.astype(np.float32) / 255) == ""
        other = {"npr": "right_diag", "right_diag": "npr"}[name]
        said = mismatch(declared(other), variables, images)
        assert f"preprocess={other!r} is not what these weights were trained with: on {count} image" in said
        assert f"'{name}'" in said.partition("near 0")[2]


def test_what_cannot_be_told_apart_is_said(models):
    """Gradients along different directions are alike in pictures that have none of their own."""
    judged = judge(*models["right_diag"], textures(4), "preprocess")
    assert {"left_diag", "right_diag"} <= set(judged.fitting)
    assert "npr" not in judged.fitting
    assert "fit about equally and cannot be told apart" in judged.summary()
    assert "do not tell these apart" in judged.mismatch("npr")
    assert judge(*models["npr"], textures(4), "preprocess").fitting == ("npr",)
    assert "preprocess: npr fits: by 4 images" in judge(*models["npr"], textures(4), "preprocess").summary()


def test_pictures_of_another_kind_tell_nothing(models):
    """In white noise everything varies more."""
    noise = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3)).astype(np.uint8)
    model, variables = models["npr"]
    assert mismatch(model, variables, noise) == ""
    judged = judge(model, variables, noise, "preprocess")
    assert judged.fitting == ()
    assert "none fits" in judged.summary()


def test_odd_images_are_judged_by_what_takes_them(models):
    _, variables = models["npr"]
    odd = Model(TINY, preprocess="x_grad", image_size=SIZE - 1)
    assert set(judge(odd, variables, textures(2), "preprocess").deviations) == set(PREPROCESSES) - {"npr"}


def test_deviations_are_of_every_batch_norm(models):
    model, variables = models["npr"]
    found = statistics.deviations(model, variables, textures(8, 1))
    assert list(found) == ["bn1", "layer1_0/bn1", "layer1_0/bn2"]
    assert all(x.shape == (8,) and np.abs(x).max() < 0.02 for x in found.values())
    stored = jax.tree.map(lambda x: x * np.e, variables["batch_stats"])
    found = statistics.deviations(
        model, {**variables, "batch_stats": variables["batch_stats"] | {"bn1": stored["bn1"]}}, textures(8, 1)
    )
    np.testing.assert_allclose(found["bn1"], -1, atol=0.03)


class Own(nn.Module):
    """A model of somebody's own, with Flax's BatchNorm and an option to be told."""

    options: Any

    choices = {"power": ("root", "square")}

    @property
    def inputs(self):
        return {"image": ImageInput(8)}

    @property
    def endpoints(self):
        return ("logits",)

    @nn.compact
    def __call__(self, image, train=False):
        x = jnp.sqrt(jnp.abs(image)) if self.options.power == "root" else 10 * jnp.square(image)
        return {"logits": nn.BatchNorm(use_running_average=not train, name="norm")(x).mean((1, 2))}


class Options:
    def __init__(self, power):
        self.power = power


def build(power="root", dtype="float32"):
    return Own(Options(power))


def test_any_model_with_batch_norms_and_choices_can_be_asked():
    images = textures(4)
    own = lambda power: Model("tests.models.test_statistics:build", power=power)  # noqa: E731
    module = build()
    view = module.inputs["image"].view(jnp.asarray(images / 255, jnp.float32))
    variables = settled(module, module.init(jax.random.key(0), view), view, 0.99)
    assert mismatch(own("root"), variables, images) == ""
    assert "power='square' is not what these weights were trained with" in mismatch(own("square"), variables, images)


def test_models_without_choices_have_nothing_to_be_asked():
    model = Model("convnet", variant="nano")
    assert mismatch(model, {}, textures(1)) == ""
