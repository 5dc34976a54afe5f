"""TinyUSFM beside the same model in PyTorch, with random weights, stage by stage; and one training step of both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from convert.originals import tinyusfm as plain
from kdjax import registry
from kdjax.config import Model
from kdjax.models.layers.resize import resize
from kdjax.models.vision.fpn import scaled
from tests.support.twins import by_name, close, compared, converted, images, randomised, same_slopes, to_numpy, to_torch

SMALL = {"dim": 48, "heads": 4, "depth": 4, "taps": (0, 1, 2, 3), "neck_dim": 12, "head_dim": 16}

BEFORE_BATCH_NORM = (
    ("neck/projections", "/bias"),
    ("decode_head/lateral_convs", "_0/bias"),
    ("decode_head/fpn_convs", "_0/bias"),
)


@pytest.mark.parametrize(
    ("size", "num_classes", "dims"),
    [((224, 224), 2, {}), ((112, 80), 4, SMALL)],  # the second has an odd grid, 7 by 5 patches
)
def test_segmenter_stage_by_stage(size, num_classes, dims):
    options = {"image_size": size, "num_classes": num_classes, **dims}
    module = randomised(plain.build(Model("tinyusfm_seg", **options)))
    model = registry.get("models", "tinyusfm_seg")(**options)
    found = compared(plain, module, model, images(size))
    assert found["logits"].shape == (2, *size, 1 if num_classes == 2 else num_classes)


@pytest.mark.parametrize(("name", "options"), [("tinyusfm", {}), ("tinyusfm_cls", {"num_classes": 5})])
def test_encoder_and_classifier(name, options):
    options = {"dim": 48, "heads": 4, "depth": 3, "taps": (0, 2), "image_size": (64, 96), **options}
    module = randomised(plain.build(Model(name, **options)))
    compared(plain, module, registry.get("models", name)(**options), images((64, 96)))


def test_one_training_step():
    """Loss, the gradient of every parameter, and the running statistics, without dropout and drop path.

    Small, because in the published size enough ReLUs lie near 0 for the order of a sum to flip some: there PyTorch's
    own float32 gradients are 1e-3 from its float64 ones.
    """
    size, still = (112, 80), {"dropout": 0.0, "drop_path": 0.0}
    module = randomised(plain.SegmentationModel(image_size=size, **SMALL, **still)).train()
    model = registry.get("models", "tinyusfm_seg")(image_size=size, **SMALL, **still)
    variables = converted(module, model)
    image = images(size, batch=3)
    mask = (np.random.default_rng(1).random((3, *size)) < 0.1).astype(np.int32)

    def objective(params, image, mask):
        out, changed = model.apply({**variables, "params": params}, image, train=True, mutable=["batch_stats"])
        return registry.get("losses", "bce")(out["logits"], mask).mean(), changed

    step = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (loss, changed), grads = step(variables["params"], image, mask)
    expected = F.binary_cross_entropy_with_logits(module(to_torch(image))[:, 0], torch.from_numpy(mask).float())
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)

    statistics = by_name(changed["batch_stats"])
    assert len(statistics) == 16
    for name, wanted in by_name(converted(module, model)["batch_stats"]).items():
        close(statistics[name], wanted, name=name)

    slopes = {name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in module.named_parameters()}
    slopes = converted(slopes | dict(module.named_buffers()), model)
    nothing = same_slopes(by_name(grads), by_name(slopes["params"]))
    # What BatchNorm takes out again, and a norm that is in the checkpoint but read by nothing, have no slope.
    constant = [f"{part}_{i}{end}" for i in range(4) for part, end in BEFORE_BATCH_NORM]
    assert nothing == {"backbone/norm/scale", "backbone/norm/bias", "backbone/blocks_3/mlp/fc2/bias", *constant}


def test_bilinear_is_interpolate():
    rng = np.random.default_rng(0)
    for old, new in [((7, 5), (14, 20)), ((7, 5), (56, 40)), ((3, 2), (7, 5)), ((6, 9), (4, 3)), ((1, 1), (3, 4))]:
        x = rng.normal(size=(2, *old, 3)).astype(np.float32)
        expected = F.interpolate(to_torch(x), size=new, mode="bilinear", align_corners=False)
        close(resize(jnp.asarray(x), new), to_numpy(expected), 1e-6, f"{old} to {new}")
    for scale in (4.0, 2.0, 1.0, 0.5):
        x = rng.normal(size=(2, 7, 5, 3)).astype(np.float32)
        expected = F.interpolate(to_torch(x), scale_factor=scale, mode="bilinear", align_corners=False)
        close(scaled(jnp.asarray(x), scale), to_numpy(expected), 1e-6, f"by {scale}")


def test_bilinear_has_the_gradient_of_interpolate():
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 3)).astype(np.float32)
    weight = np.random.default_rng(1).normal(size=(2, 16, 10, 3)).astype(np.float32)
    found = jax.jit(jax.grad(lambda x: (resize(x, (16, 10)) * weight).sum()))(jnp.asarray(x))
    leaf = torch.from_numpy(x).requires_grad_()
    y = F.interpolate(leaf.permute(0, 3, 1, 2), size=(16, 10), mode="bilinear", align_corners=False)
    (y * to_torch(weight)).sum().backward()
    close(found, leaf.grad.numpy(), 1e-6)


def test_the_comparison_would_notice():
    """Each fault that a port of this model could have shows in the logits."""
    size = (64, 96)
    module = randomised(plain.SegmentationModel(image_size=size, **SMALL)).eval()
    model = registry.get("models", "tinyusfm_seg")(image_size=size, **SMALL)
    variables = converted(module, model)
    image = images(size)
    run = jax.jit(model.apply)
    good = run(variables, image)["logits"]
    flat = dict(jax.tree_util.tree_leaves_with_path(variables))
    for at in ("cls_token", "pos_embed", "qkv']['bias", "norm1']['bias", "mean", "var", "fpn_convs_3_0']['kernel"):
        changed = {p: x * 1.001 if at in jax.tree_util.keystr(p) else x for p, x in flat.items()}
        bad = run(jax.tree.unflatten(jax.tree.structure(variables), list(changed.values())), image)["logits"]
        with pytest.raises(AssertionError):
            close(bad, good)
