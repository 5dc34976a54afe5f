"""MobileViT and MobileNet-V2 beside transformers', with random weights, stage by stage; and one training step."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from convert import families
from convert.family import Converted, build, fit
from convert.onto import read
from convert.originals import mobilenetv2, published
from convert.originals import mobilevit as theirs_mobilevit
from convert.originals.transformers_config import from_config
from convert.sources import Tensor
from kdjax import registry
from kdjax.config import Model
from kdjax.models.vision import mobilenet, mobilevit
from tests.support.quick import QUICK
from tests.support.twins import by_name, close, images, randomised, same_slopes, to_torch

pytestmark = pytest.mark.long

SMALL: dict[str, dict[str, Any]] = {
    "mobilevit": {"dims": (8, 12, 16), "widths": (8, 8, 16, 16, 24, 24, 32), "heads": 2},
    "mobilenetv2": {"multiplier": 0.1},
}
ORIGINALS = {"mobilevit": theirs_mobilevit, "mobilenetv2": mobilenetv2}
FAMILIES = {name: families.get(name) for name in SMALL}  # made before anything is cut
LAYERS = mobilenet.LAYERS
# Biases that a softmax or the next normalisation takes away again.
WITHOUT_EFFECT = ("key/bias", "reduce_1x1/normalization/bias", "layernorm/bias")


@pytest.fixture(autouse=True)
def shallow(monkeypatch):
    """One layer of each kind: the whole networks are compared as families are."""
    for name, value in {"RESIDUALS": (1, 1), "TRANSFORMERS": (1, 1, 1)}.items():
        monkeypatch.setattr(mobilevit, name, value)
    kept = [i for i, before in enumerate(LAYERS) if i == 0 or before[0] != LAYERS[i - 1][0]]
    for name, value in {"LAYERS": tuple(LAYERS[i] for i in kept), "ENDS": (0, 1, 3, 5)}.items():
        monkeypatch.setattr(mobilenet, name, value)
    monkeypatch.setattr(mobilenetv2, "ENDS", mobilenet.ENDS)
    monkeypatch.setattr(published, "from_config", lambda *a: cut(from_config(*a), kept))


def cut(module: Any, kept: list[int]) -> Any:
    """A module of transformers with as few layers."""
    inner = getattr(module, module.base_model_prefix, module)
    if hasattr(inner, "encoder"):
        inner.encoder.layer[1].layer = inner.encoder.layer[1].layer[:1]
        for stage in inner.encoder.layer[2:]:
            stage.transformer.layer = stage.transformer.layer[:1]
    else:
        inner.layer = torch.nn.ModuleList(inner.layer[i] for i in kept)
    return module


def pair(name: str, **options) -> tuple[Any, Model]:
    described = Model(name, **SMALL[name], **options)
    return randomised(ORIGINALS[name].build(described)), described


def converted(described: Model, state: Mapping[str, Any]) -> Converted:
    arrays = {key: x.detach().numpy() for key, x in state.items()}
    given = {key: Tensor(key, x.shape, x.dtype, lambda x=x: x.copy()) for key, x in arrays.items()}
    return fit(FAMILIES[described.name], given, model=described)


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("mobilevit", (64, 64), {"num_classes": 0, "pool": "channel", "qkv_bias": False}),
        ("mobilevit", (37, 70), {}),  # maps of 5 x 9 and 3 x 5 are stretched to whole patches
        ("mobilenetv2", (64, 64), {"num_classes": 0, "pool": "channel", "activation": "silu"}),
        ("mobilenetv2", (37, 70), {"tf_padding": False, "output_stride": 8}),
        ("mobilenetv2", (46, 37), {}),
    ],
)
def test_stage_by_stage(name, size, options):
    module, described = pair(name, **{"num_classes": 5} | options)
    image, model = images(size), build(described)
    ours = jax.jit(model.apply, compiler_options=QUICK)(
        read(converted(described, module.state_dict()).variables), image
    )
    with torch.no_grad():
        expected = ORIGINALS[name].outputs(module, image)
    assert set(ours) == set(expected) == set(model.endpoints)
    for endpoint, x in expected.items():
        close(ours[endpoint], x, name=endpoint)


@pytest.mark.parametrize("name", SMALL)
def test_one_training_step(name):
    """The loss, the gradient of every parameter, and what the running statistics become."""
    keep = {} if name == "mobilevit" else {"momentum": 1 - 0.997}  # as transformers has PyTorch keep them
    module, described = pair(name, num_classes=5, dropout=0.0, **keep)
    model, variables = build(described), read(converted(described, module.state_dict()).variables)
    image, label = images((45, 66), batch=3), np.array([1, 4, 2])

    def objective(params, image):
        out, changed = model.apply({**variables, "params": params}, image, train=True, mutable=["batch_stats"])
        return -jnp.take_along_axis(jax.nn.log_softmax(out["logits"]), label[:, None], axis=-1).mean(), changed

    step = jax.jit(jax.value_and_grad(objective, has_aux=True), compiler_options=QUICK)
    (loss, changed), slopes = step(variables["params"], image)
    turned = image[..., ::-1].copy() if name == "mobilevit" else image
    expected = torch.nn.functional.cross_entropy(module.train()(to_torch(turned)).logits, torch.from_numpy(label))
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    at = {inside: key for key, inside in module.inside.items()}
    grads = {at[key]: x.grad for key, x in module.module.named_parameters()}
    after = read(converted(described, module.state_dict() | grads).variables)
    nothing = same_slopes(by_name(slopes), by_name(after["params"]))
    assert all(key.endswith(WITHOUT_EFFECT) for key in nothing), nothing
    for key, x in by_name(after["batch_stats"]).items():
        close(by_name(changed["batch_stats"])[key], x, name=key)


@pytest.mark.parametrize("name", SMALL)
def test_images_are_those_of_transformers_processor(name):
    """MobileViT's are in [0, 1], blue first; ours have red first, and so has its converted kernel."""
    kind = {"mobilevit": "MobileViT", "mobilenetv2": "MobileNetV2"}[name]
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    processor = getattr(transformers, f"{kind}ImageProcessorPil")(do_resize=False, do_center_crop=False)
    theirs = np.moveaxis(processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0], 0, -1)
    spec = registry.get("models", name)(image_size=32).inputs["image"]
    ours = np.asarray(spec.view(jnp.asarray(pixels[None], jnp.float32) / 255))[0]
    np.testing.assert_allclose(ours[..., ::-1] if name == "mobilevit" else ours, theirs, rtol=0, atol=1e-6)
    assert np.abs(ours - theirs).max() > 0.5 or name != "mobilevit"


def test_a_kernel_that_is_not_turned_would_be_noticed():
    module, described = pair("mobilevit", num_classes=0, dropout=0.2)
    variables, image = read(converted(described, module.state_dict()).variables), images((8, 8))
    stem = {kind: jax.tree.map(jnp.asarray, variables[kind]["conv_stem"]) for kind in ("params", "batch_stats")}
    layer = mobilevit.ConvLayer(build(described).options.habits, 8, 3, stride=2)
    with torch.no_grad():
        expected = module.module.conv_stem(to_torch(image[..., ::-1].copy())).permute(0, 2, 3, 1).numpy()
    close(layer.apply(stem, jnp.asarray(image), False), expected)
    with pytest.raises(AssertionError):
        close(layer.apply(stem, jnp.asarray(image[..., ::-1]), False), expected)
