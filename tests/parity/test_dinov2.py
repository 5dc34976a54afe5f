"""DINOv2 beside timm's and transformers' own, with random weights: after each block, and each parameter's slope."""

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
from convert.originals import vit as twin
from convert.sources import Tensor
from kdjax.config import Model
from tests.support.quick import QUICK
from tests.support.twins import close, images, randomised, same_slopes, to_torch

pytestmark = pytest.mark.long
DIM, HEADS, DEPTH, PATCH, SQUARE = 48, 4, 3, 14, 56  # and the pixels of the images that there are positions for
SIZES = [(SQUARE, SQUARE), (42, 70)]


def transformers_model(registers: int, classes: int) -> Any:
    options: dict[str, Any] = {"hidden_size": DIM, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS}
    options |= {"patch_size": PATCH, "image_size": SQUARE, "num_labels": classes}
    if registers:
        config: Any = transformers.Dinov2WithRegistersConfig(**options, num_register_tokens=registers)
    else:
        config = transformers.Dinov2Config(**options)
    kind = transformers.AutoModelForImageClassification if classes else transformers.AutoModel
    return randomised(kind.from_config(config).eval())


def timm_vits() -> Any:
    """Imported where it is needed: it takes seconds."""
    from tests.support.timm import timm

    return timm.models.vision_transformer


def timm_model(registers: int, classes: int, size: tuple[int, int] = (SQUARE, SQUARE)) -> Any:
    options: dict[str, Any] = {"img_size": size, "patch_size": PATCH, "embed_dim": DIM, "depth": DEPTH}
    options |= {"num_heads": HEADS, "init_values": 1e-5, "num_classes": classes}
    options |= {"reg_tokens": registers, "no_embed_class": registers > 0}  # as all of timm's DINOv2
    return randomised(timm_vits().VisionTransformer(**options).eval())


def converted(family: str, state: dict[str, torch.Tensor], size: tuple[int, int]) -> Converted:
    source = {name: Tensor("", x.shape, np.dtype("float32"), x.detach().numpy) for name, x in state.items()}
    return fit(families.get(family), source, {"heads": HEADS, "taps": tuple(range(DEPTH)), "image_size": size})


def ours(found: Converted, image: np.ndarray) -> dict[str, jax.Array]:
    return jax.jit(build(found.model).apply, compiler_options=QUICK)(read(found.variables), image)


def maps(states: Any, first: int, size: tuple[int, int]) -> dict[str, np.ndarray]:
    grid = (size[0] // PATCH, size[1] // PATCH)
    return {f"block_{i}": x[:, first:].unflatten(1, grid).detach().numpy() for i, x in enumerate(states)}


def compared(found: Any, expected: dict[str, Any]) -> None:
    assert set(found) == set(expected)
    for name, x in expected.items():
        close(np.asarray(found[name]), np.asarray(x), name=name)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("registers", "classes"), [(0, 0), (0, 5), (3, 0), (3, 5)])
def test_transformers(registers, classes, size):
    """Which itself resizes the positions to the image's grid."""
    module, image = transformers_model(registers, classes), images(size)
    found = ours(converted("dinov2_hf", module.state_dict(), size), image)
    with torch.no_grad():
        out = module(to_torch(image), output_hidden_states=True)
        tokens = getattr(module, module.base_model_prefix, module)(to_torch(image)).last_hidden_state
    features = [tokens[:, 0], *([tokens[:, 1 + registers :].mean(1)] if classes else [])]
    expected = {"tokens": tokens, "features": torch.cat(features, 1)} | ({"logits": out.logits} if classes else {})
    compared(found, expected | maps(out.hidden_states[1:], 1 + registers, size))


def timm_outputs(module: Any, image: np.ndarray, first: int) -> dict[str, Any]:
    size = (image.shape[1], image.shape[2])
    with torch.no_grad():
        tokens, states = module.forward_intermediates(to_torch(image), norm=False, output_fmt="NCHW")
        out = {f"block_{i}": x.permute(0, 2, 3, 1).numpy() for i, x in enumerate(states)}
        assert states[0].shape[2:] == (size[0] // PATCH, size[1] // PATCH)
        out |= {"tokens": tokens, "features": module.forward_head(tokens, pre_logits=True)}
        return out | ({"logits": module(to_torch(image))} if module.num_classes else {})


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("registers", "classes"), [(0, 0), (0, 5), (3, 0), (3, 5)])
def test_timm(registers, classes, size):
    """Its model of another size gets the positions resized, as when timm itself loads them."""
    state = timm_model(registers, classes).state_dict()
    module = timm_model(registers, classes, size)
    module.load_state_dict(timm_vits().checkpoint_filter_fn(dict(state), module))
    image = images(size)
    compared(ours(converted("dinov2", state, size), image), timm_outputs(module, image, 1 + registers))


@pytest.mark.parametrize("registers", [0, 3])
def test_files_of_meta_in_timm(registers):
    """timm's own conversion of them computes what ours does: it adds the class token's position to the token."""
    options: dict[str, Any] = {"dim": DIM, "heads": HEADS, "depth": DEPTH, "taps": (0, 1, 2), "registers": registers}
    meta = Model("vit", variant="dinov2_s14", image_size=SQUARE, num_classes=0, **options)
    state = dict(randomised(twin.build(meta)).state_dict())
    state.setdefault("mask_token", torch.zeros(1, DIM))
    found = converted("dinov2", state, (SQUARE, SQUARE))
    module, image = timm_model(registers, 0), images((SQUARE, SQUARE))
    module.load_state_dict(timm_vits().checkpoint_filter_fn(state, module))
    assert found.dropped == ("mask_token",)
    compared(ours(found, image), timm_outputs(module, image, 1 + registers))


@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize("family", ["dinov2", "dinov2_hf"])
def test_one_step_has_the_same_slopes(family, registers):
    module = (timm_model if family == "dinov2" else transformers_model)(registers, 5)
    image, size = images((SQUARE, SQUARE)), (SQUARE, SQUARE)
    found = converted(family, module.state_dict(), size)
    weight = np.random.default_rng(1).normal(size=(2, 5)).astype(np.float32)

    def loss(variables: dict) -> jax.Array:
        logits = build(found.model).apply(variables, jnp.asarray(image))["logits"]
        return (jax.nn.log_softmax(logits) * jnp.asarray(weight)).sum()

    slopes = jax.jit(jax.grad(loss), compiler_options=QUICK)(read(found.variables))
    out = module(to_torch(image))
    logits = out if isinstance(out, torch.Tensor) else out.logits
    (logits.log_softmax(1) * torch.from_numpy(weight)).sum().backward()
    theirs = families.get(family).prepared(dict(module.named_parameters()))
    expected = {name: x.grad.numpy() for name, x in theirs.items() if x.grad is not None}
    ours = {name: x for name, x in tensors(families.get(family), found.model, slopes) if name in expected}
    assert set(theirs) - set(expected) == {name for name in theirs if name.endswith("mask_token")}
    same_slopes(ours, expected)
