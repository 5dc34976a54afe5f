"""MobileViT and MobileNet-V2 beside transformers', with random weights, stage by stage; and one training step."""

import importlib
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
PARAMETERS = {"mobilevit": mobilevit.PARAMETERS, "mobilenetv2": mobilenet.PARAMETERS}


def original(model: Model) -> Any:
    return importlib.import_module(families.get(model.name).original)


def converted(name: str, state: Mapping[str, Any], options: Mapping[str, Any] = {}) -> Converted:
    arrays = {key: x.detach().numpy() for key, x in state.items()}
    given = {key: Tensor(key, x.shape, x.dtype, lambda x=x: x.copy()) for key, x in arrays.items()}
    return fit(families.get(name), given, {"heads": 2, **options} if name == "mobilevit" else options)


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("mobilevit", (64, 64), {}),
        ("mobilevit", (37, 70), {}),  # maps of 5 x 9 and 3 x 5 are stretched to whole patches
        ("mobilenetv2", (64, 64), {}),
        ("mobilenetv2", (37, 70), {"tf_padding": False, "output_stride": 8}),
    ],
)
def test_stage_by_stage(name, size, options):
    described = Model(name, **SMALL[name], num_classes=5, **options)
    theirs, image = original(described), images(size)
    module = randomised(theirs.build(described))
    found = converted(name, module.state_dict(), options)
    model = build(found.model)
    ours = jax.jit(model.apply, compiler_options=QUICK)(read(found.variables), image)
    with torch.no_grad():
        expected = theirs.outputs(module, image)
    assert set(ours) == set(expected) == set(model.endpoints)
    for endpoint, x in expected.items():
        close(ours[endpoint], x, name=endpoint)


@pytest.mark.parametrize("name", SMALL)
def test_one_training_step(name):
    """The loss, the gradient of every parameter, and what the running statistics become."""
    described, label = Model(name, **SMALL[name], num_classes=5, dropout=0.0), np.array([1, 4, 2])
    image = images((45, 66), batch=3)
    module = randomised(original(described).build(described)).train()
    keep = {} if name == "mobilevit" else {"momentum": 1 - 0.997}  # as transformers has PyTorch keep them
    found = converted(name, module.state_dict(), {"dropout": 0.0, **keep})
    model, variables = build(found.model), read(found.variables)

    def objective(params, image):
        out, changed = model.apply({**variables, "params": params}, image, train=True, mutable=["batch_stats"])
        return -jnp.take_along_axis(jax.nn.log_softmax(out["logits"]), label[:, None], axis=-1).mean(), changed

    step = jax.jit(jax.value_and_grad(objective, has_aux=True), compiler_options=QUICK)
    (loss, changed), slopes = step(variables["params"], image)
    turned = image[..., ::-1].copy() if name == "mobilevit" else image
    expected = torch.nn.functional.cross_entropy(module(to_torch(turned)).logits, torch.from_numpy(label))
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    at = {inside: key for key, inside in module.inside.items()}
    grads = {at[key]: x.grad for key, x in module.module.named_parameters()}
    after = read(converted(name, module.state_dict() | grads, {"dropout": 0.0}).variables)
    assert same_slopes(by_name(slopes), by_name(after["params"])) <= {f"{x}/key/bias" for x in attentions(model)}
    for key, x in by_name(after["batch_stats"]).items():
        close(by_name(changed["batch_stats"])[key], x, name=key)


def attentions(model: Any) -> list[str]:
    """Whose keys' biases add the same to all scores."""
    stages = enumerate(mobilevit.TRANSFORMERS, len(mobilevit.RESIDUALS)) if hasattr(model.options, "heads") else ()
    return [f"encoder/layer_{i}/transformer/layer_{j}/attention" for i, depth in stages for j in range(depth)]


@pytest.mark.parametrize(
    ("name", "variant"), [(name, variant) for name, counts in PARAMETERS.items() for variant in counts]
)
def test_files_of_every_variant_fit(name, variant):
    described = Model(name, variant=variant)
    theirs = original(described)
    settings = theirs.described(theirs.guess(registry.get("models", name)(**described.options)), {"num_labels": 1000})
    kind = {"mobilevit": "MobileViT", "mobilenetv2": "MobileNetV2"}[name]
    with torch.device("meta"):
        module = getattr(transformers, f"{kind}ForImageClassification")(settings)
    assert sum(x.numel() for x in module.parameters()) == PARAMETERS[name][variant]
    shapes = {key: Tensor(key, tuple(x.shape), np.dtype("float32"), list) for key, x in module.state_dict().items()}
    shapes = {key: x for key, x in shapes.items() if not key.endswith("num_batches_tracked")}
    assert fit(families.get(name), shapes).model.options == {"variant": variant, "num_classes": 1000}


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
    described = Model("mobilevit", **SMALL["mobilevit"], num_classes=0)
    theirs = original(described)
    module, image = randomised(theirs.build(described)), images((8, 8))
    variables = read(converted("mobilevit", module.state_dict()).variables)
    stem, statistics = (variables[kind]["conv_stem"] for kind in ("params", "batch_stats"))
    layer = mobilevit.ConvLayer(build(described).options.habits, 8, 3, stride=2)
    inner: Any = module.module
    with torch.no_grad():
        expected = inner.conv_stem(to_torch(image[..., ::-1].copy())).permute(0, 2, 3, 1).numpy()
    run = lambda stem: layer.apply({"params": stem, "batch_stats": statistics}, jnp.asarray(image), False)  # noqa: E731
    close(run(stem), expected)
    turned = {"convolution": {"kernel": stem["convolution"]["kernel"][:, :, ::-1]}}
    with pytest.raises(AssertionError):
        close(run(stem | turned), expected)
