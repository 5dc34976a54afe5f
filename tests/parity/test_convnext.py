"""ConvNeXt-V2 beside timm's and transformers', with random weights, stage by stage; and one training step of each."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from convert import families
from convert.family import Converted, build, fit, tensors
from convert.onto import read
from convert.originals import convnextv2_hf
from convert.sources import Tensor
from kdjax.models.vision.convnext import PARAMETERS, VARIANTS
from tests.support.quick import QUICK
from tests.support.timm import timm
from tests.support.twins import by_name, close, images, randomised, same_slopes, to_numpy, to_torch

pytestmark = pytest.mark.long

SMALL: dict[str, Any] = {"dims": (8, 12, 16, 20), "depths": (1, 2, 1, 1)}
SIZES = ((64, 64), (37, 70))  # the second leaves rows and columns over at each stage: 9 x 17, 4 x 8, 2 x 4, 1 x 2
FAMILIES = {"timm": "convnextv2", "transformers": "convnextv2_hf"}


def original(side: str, variant: str = "tiny", **options) -> Any:
    classes = options.pop("num_classes", 5)
    if side == "timm":
        return timm.create_model(f"convnextv2_{variant}", num_classes=classes, **options).eval()
    options = {k: list(x) for k, x in (VARIANTS[variant] | options).items()}
    config = transformers.ConvNextV2Config(hidden_sizes=options["dims"], depths=options["depths"], num_labels=classes)
    return transformers.ConvNextV2ForImageClassification(config).eval()


def outputs(side: str, module: Any, image: np.ndarray) -> dict[str, np.ndarray]:
    if side == "transformers":
        return convnextv2_hf.outputs(module, image)
    last, stages = module.forward_intermediates(to_torch(image))
    found = {f"stage_{i}": x for i, x in enumerate(stages)}
    found |= {"features": module.forward_head(last, pre_logits=True), "logits": module.forward_head(last)}
    return {name: to_numpy(x) for name, x in found.items()}


def converted(side: str, state: Mapping[str, Any]) -> Converted:
    arrays = {name: x.detach().numpy() for name, x in state.items()}
    given = {name: Tensor(name, x.shape, x.dtype, lambda x=x: x.copy()) for name, x in arrays.items()}
    return fit(families.get(FAMILIES[side]), given)


def compared(side: str, module: Any, image: np.ndarray) -> None:
    found = converted(side, module.state_dict())
    model = build(found.model)
    ours = jax.jit(model.apply, compiler_options=QUICK)(read(found.variables), image)
    with torch.no_grad():
        theirs = outputs(side, module, image)
    assert set(ours) == set(theirs) == set(model.endpoints)
    for name, x in theirs.items():
        close(ours[name], x, name=name)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("side", FAMILIES)
def test_stage_by_stage(side, size):
    compared(side, randomised(original(side, **SMALL)), images(size))


def test_timms_of_convolutions():
    """Its four smallest variants; what goes out fits them to the last axis."""
    module = randomised(original("timm", "pico", **SMALL | {"dims": (64, 12, 16, 20)}))
    assert module.get_parameter("stages.0.blocks.0.mlp.fc1.weight").ndim == 4
    compared("timm", module, images(SIZES[1]))
    found = converted("timm", module.state_dict())
    back = dict(tensors(found.family, found.model, read(found.variables)))
    again = original("timm", "pico", **SMALL | {"dims": (64, 12, 16, 20)})
    again.load_state_dict({name: torch.from_numpy(np.array(x)) for name, x in back.items()}, strict=True)
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in module.state_dict().items())


def test_tiny_as_published():
    compared("timm", randomised(original("timm", num_classes=1000)), images((224, 224), 1))


@pytest.mark.parametrize("side", FAMILIES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_files_of_every_variant_fit(side, variant):
    with torch.device("meta"):
        module = original(side, variant, num_classes=1000)
    assert sum(x.numel() for x in module.parameters()) == PARAMETERS[variant]
    shapes = {name: Tensor(name, tuple(x.shape), np.dtype("float32"), list) for name, x in module.state_dict().items()}
    found = fit(families.get(FAMILIES[side]), shapes)
    eps = {} if side == "timm" else {"head_norm_eps": 1e-12}
    assert found.model.options == {"variant": variant, "num_classes": 1000, **eps}


@pytest.mark.parametrize("side", FAMILIES)
def test_one_training_step(side):
    """The loss, and the gradient of every parameter."""
    module, label = randomised(original(side, **SMALL | {"depths": (1, 1, 1, 1)})).train(), np.array([1, 4, 2])
    found, image = converted(side, module.state_dict()), images((45, 66), batch=3)
    model, variables = build(found.model), read(found.variables)

    def objective(params, image):
        logits = model.apply({"params": params}, image, train=True)["logits"]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], axis=-1).mean()

    step = jax.jit(jax.value_and_grad(objective), compiler_options=QUICK)
    loss, slopes = step(variables["params"], image)
    theirs = module(to_torch(image))
    theirs = theirs.logits if side == "transformers" else theirs
    expected = torch.nn.functional.cross_entropy(theirs, torch.from_numpy(label))
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    wanted = read(converted(side, {name: x.grad for name, x in module.named_parameters()}).variables)
    assert same_slopes(by_name(slopes), by_name(wanted["params"])) == set()


def test_the_comparison_would_notice():
    """Each fault that a port of this model could have shows in the logits."""
    module, image = randomised(original("timm", **SMALL)), images(SIZES[1], 1)
    found = converted("timm", module.state_dict())
    model, variables = build(found.model), read(found.variables)
    run = jax.jit(model.apply, compiler_options=QUICK)
    good = run(variables, image)["logits"]
    flat = jax.tree_util.tree_leaves_with_path(variables)
    for end in ("conv_dw/kernel", "conv_dw/bias", "grn/scale", "grn/bias", "downsample_0/bias", "head/norm/scale"):
        name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")  # noqa: E731
        changed = [x * 1.001 if name(path).endswith(end) else x for path, x in flat]
        with pytest.raises(AssertionError):
            close(run(jax.tree.unflatten(jax.tree.structure(variables), changed), image)["logits"], good)
    turned = jax.tree.map(lambda x: x.swapaxes(0, 1) if x.shape[:2] == (7, 7) else x, variables)
    with pytest.raises(AssertionError):
        close(run(turned, image)["logits"], good)
