"""USFM beside the same model in PyTorch, with random weights, stage by stage; and the gradients of one loss."""

import jax
import numpy as np
import pytest
import torch

from convert.originals import usfm as plain
from kdjax import registry
from kdjax.config import Model
from kdjax.models.vision.vit import relative_positions
from tests.support.twins import by_name, close, compared, converted, images, randomised, same_slopes

SIZE = (112, 80)  # an odd grid, 7 by 5 patches
SMALL = {"dim": 48, "heads": 4, "depth": 4, "taps": (0, 1, 2, 3), "neck_dim": 12, "head_dim": 16, "image_size": SIZE}


def pair(name, **options):
    return randomised(plain.build(Model(name, **options))), registry.get("models", name)(**options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("usfm", {}),
        ("usfm", {"qkv_bias": False, "layer_scale": 0.0}),
        ("usfm_cls", {"num_classes": 5}),
        ("usfm_seg", {"num_classes": 4}),
        ("usfm_seg", {}),
    ],
    ids=str,
)
def test_stage_by_stage(name, options):
    module, model = pair(name, **SMALL, **options)
    compared(plain, module, model, images(SIZE))


def test_the_published_size():
    module, model = pair("usfm", depth=3, taps=(0, 2))  # each block is like the others
    compared(plain, module, model, images((224, 224), 1))


@pytest.mark.parametrize("grid", [(1, 1), (1, 4), (7, 5), (14, 14)], ids=str)
def test_relative_positions(grid):
    found = relative_positions(grid)
    np.testing.assert_array_equal(found, plain.relative_position_index(grid).numpy())
    rows = (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3
    assert found.max() == rows - 1
    assert len(np.unique(found)) == rows


def test_gradients():
    """Of the logits against random directions, for every parameter; drop path left out."""
    module, model = pair("usfm_cls", **SMALL | {"depth": 2, "taps": (0, 1), "drop_path": 0.0}, num_classes=3)
    variables, image = converted(module, model), images(SIZE)
    weight = np.random.default_rng(1).normal(size=(2, 3)).astype(np.float32)

    def loss(params, image):
        return (model.apply({"params": params}, image, train=True)["logits"] * weight).sum()

    found = by_name(jax.jit(jax.grad(loss))(variables["params"], image))
    logits = module.train()(torch.from_numpy(np.moveaxis(image, -1, 1).copy()))
    (logits * torch.from_numpy(weight)).sum().backward()
    slopes = converted({name: x.grad for name, x in module.named_parameters()}, model)
    assert not same_slopes(found, by_name(slopes["params"]))


FAULTS = {
    "transposed": lambda index: index.T,
    "class token": lambda index: np.where(index >= index.max() - 2, index.max(), index),
    "rows and columns": lambda index: np.roll(index, 1, axis=0),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_would_notice_another_index(fault, monkeypatch):
    module, model = pair("usfm", **SMALL | {"depth": 1, "taps": (0,)})
    right = relative_positions((7, 5))
    monkeypatch.setattr("kdjax.models.vision.vit.relative_positions", lambda grid: FAULTS[fault](right))
    with pytest.raises(AssertionError, match="block_0"):
        compared(plain, module, model, images(SIZE))


@pytest.mark.parametrize(
    "at", ["q_bias", "v_bias", "relative_position_bias_table", "gamma_1", "gamma_2", "fc_norm.bias"]
)
def test_the_comparison_would_notice_another_value(at):
    options = SMALL | {"depth": 2, "taps": (0, 1)}
    module, model = pair("usfm", **options)
    expected = plain.outputs(module, images(SIZE))["features"]
    with torch.no_grad():
        for name, x in module.named_parameters():
            if name.endswith(at):
                x.mul_(1.01)
    found = jax.jit(model.apply)(converted(module, model), images(SIZE))["features"]
    with pytest.raises(AssertionError):
        close(found, expected)
