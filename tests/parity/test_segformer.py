"""SegFormer beside the one of Hugging Face, with random weights, stage by stage; and one training step of both."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from convert.originals import segformer as plain
from convert.originals.published import Published
from convert.originals.transformers_config import described, from_config
from kdjax import registry
from kdjax.config import Model
from kdjax.models.vision.segformer import PARAMETERS, VARIANTS
from tests.support.quick import QUICK
from tests.support.twins import by_name, close, compared, converted, images, randomised, same_slopes, to_torch

SMALL: dict[str, Any] = {
    "dims": (8, 16, 24, 32),
    "depths": (1, 2, 1, 1),
    "heads": (1, 2, 3, 4),
    "reductions": (4, 2, 2, 1),
    "decoder_dim": 24,
}
STILL = {"depths": (1, 1, 1, 1), "drop_path": 0.0, "dropout": 0.0}


def pair(**options) -> tuple[Published, Any]:
    return randomised(plain.build(Model("segformer", **options))), registry.get("models", "segformer")(**options)


def parameters_alone(model: Model) -> torch.nn.Module:
    return from_config("AutoModelForSemanticSegmentation", described(plain.guess(model), {}))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_parameters_of_every_variant(variant):
    with torch.device("meta"):
        module = parameters_alone(Model("segformer", variant=variant, num_classes=150))
    assert sum(x.numel() for x in module.parameters()) == PARAMETERS[variant]


@pytest.mark.parametrize(
    ("size", "labels", "options"),
    [
        ((97, 65), 1, SMALL),  # odd in every stage: 25 x 17, 13 x 9, 7 x 5, 4 x 3
        ((64, 96), 2, SMALL | {"binary_logit": False}),
        ((128, 96), 150, {"num_classes": 150}),  # B0 as published
    ],
)
def test_stage_by_stage(size, labels, options):
    found = compared(plain, *pair(**options), images(size))
    assert found["logits"].shape == (2, *size, labels)


@pytest.mark.long
def test_one_training_step():
    """Loss, the gradient of every parameter, and the running statistics, without dropout and drop path."""
    size = (90, 71)
    twin, model = pair(num_classes=3, remat=True, **(SMALL | STILL))
    module, variables = twin.module.train(), converted(twin, model)
    image = images(size, batch=3)
    mask = np.random.default_rng(1).integers(0, 3, (3, *size)).astype(np.int32)

    def objective(params, image, mask):
        out, changed = model.apply({**variables, "params": params}, image, train=True, mutable=["batch_stats"])
        chosen = jnp.take_along_axis(jax.nn.log_softmax(out["logits"]), mask[..., None], axis=-1)
        return -chosen.mean(), changed

    step = jax.jit(jax.value_and_grad(objective, has_aux=True), compiler_options=QUICK)
    (loss, changed), grads = step(variables["params"], image, mask)
    expected = module(to_torch(image), labels=torch.from_numpy(mask).long()).loss
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)

    statistics = by_name(changed["batch_stats"])
    assert len(statistics) == 2
    for name, wanted in by_name(converted(twin, model)["batch_stats"]).items():
        close(statistics[name], wanted, name=name)

    slopes = {name: x.grad for name, x in module.named_parameters()} | dict(module.named_buffers())
    slopes = converted({name: slopes[inside] for name, inside in twin.inside.items()}, model)
    nothing = same_slopes(by_name(grads), by_name(slopes["params"]))
    # Softmax takes out what all keys share, BatchNorm what all positions share: all that the last norm adds, too.
    constant = {f"segformer/encoder/block_{i}_0/attention/self/key/bias" for i in range(4)}
    constant |= {f"decode_head/linear_c_{i}/proj/bias" for i in range(4)}
    assert nothing == constant | {"segformer/encoder/layer_norm_3/bias"}


def test_the_comparison_would_notice():
    """Each fault that a port of this model could have shows in the logits."""
    module, model = pair(num_classes=3, **SMALL)
    variables, image = converted(module, model), images((64, 48))
    run = jax.jit(model.apply, compiler_options=QUICK)
    good = run(variables, image)["logits"]
    flat = dict(jax.tree_util.tree_leaves_with_path(variables))
    ends = ("query/bias", "value/bias", "sr/bias", "dwconv/kernel", "layer_norm_0/scale", "linear_c_0/proj/kernel")
    for end in (*ends, "linear_fuse/kernel", "batch_norm/mean", "batch_norm/var"):
        path = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
        changed = [x * 1.001 if path(p).endswith(end) else x for p, x in flat.items()]
        bad = run(jax.tree.unflatten(jax.tree.structure(variables), changed), image)["logits"]
        with pytest.raises(AssertionError):
            close(bad, good, name=end)
