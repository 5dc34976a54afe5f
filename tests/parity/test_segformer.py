"""SegFormer beside the one of Hugging Face, with random weights, stage by stage; and one training step of both."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from torch.nn import functional as F

from kdjax import registry
from kdjax.models.segformer import PARAMETERS, VARIANTS
from tests.parity.test_tinyusfm import by_name, close, images, randomised, to_numpy, to_torch
from tests.parity.torch_names import to_flax
from tests.quick import QUICK

SMALL: dict[str, Any] = {
    "dims": (8, 16, 24, 32),
    "depths": (1, 2, 1, 1),
    "heads": (1, 2, 3, 4),
    "reductions": (4, 2, 2, 1),
    "decoder_dim": 24,
}
STILL = {"depths": (1, 1, 1, 1), "drop_path": 0.0, "dropout": 0.0}


def original(variant: str, num_labels: int, options=None) -> Any:
    """The same model of `transformers`, which names the dimensions in its own way."""
    o = registry.get("models", "segformer")(variant, num_labels + 2, **(options or {})).options
    config = transformers.SegformerConfig(
        hidden_sizes=o.dims,
        depths=o.depths,
        num_attention_heads=o.heads,
        sr_ratios=o.reductions,
        decoder_hidden_size=o.decoder_dim,
        num_labels=num_labels,
        drop_path_rate=o.drop_path,
        classifier_dropout_prob=o.dropout,
    )
    return transformers.SegformerForSemanticSegmentation(config)


def published(module, state, folder) -> dict[str, np.ndarray]:
    """`state` under the names of the checkpoints that people have, which are those that the library writes."""
    module.save_pretrained(folder, state_dict={name: x.clone() for name, x in state.items()})
    return {name: x.numpy() for name, x in safetensors.torch.load_file(folder / "model.safetensors").items()}


def converted(module, model, folder, state=None) -> dict:
    abstract = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    return to_flax(published(module, module.state_dict() if state is None else state, folder), abstract)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_parameters_of_every_variant(variant):
    with torch.device("meta"):
        module = original(variant, 150)
    assert sum(x.numel() for x in module.parameters()) == PARAMETERS[variant]


@pytest.mark.parametrize(
    ("size", "labels", "options"),
    [
        ((97, 65), 1, SMALL),  # odd in every stage: 25 x 17, 13 x 9, 7 x 5, 4 x 3
        ((64, 96), 2, SMALL | {"binary_logit": False}),
        ((128, 96), 150, {}),  # B0 as published
    ],
)
def test_stage_by_stage(size, labels, options, tmp_path):
    dims = {k: v for k, v in options.items() if k != "binary_logit"}
    module = randomised(original("b0", labels, dims)).eval()
    model = registry.get("models", "segformer")(num_classes=max(2, labels), **options)
    image = images(size)
    found = jax.jit(model.apply, compiler_options=QUICK)(converted(module, model, tmp_path), image)
    head = []
    module.decode_head.classifier.register_forward_pre_hook(lambda _, inputs: head.append(inputs[0]))
    with torch.no_grad():
        out = module(to_torch(image), output_hidden_states=True)
        logits = F.interpolate(out.logits, size=size, mode="bilinear", align_corners=False)
    expected = {f"stage_{i}": x for i, x in enumerate(out.hidden_states)}
    expected |= {"fused": head[0], "low_res_logits": out.logits, "logits": logits}
    assert set(expected) == set(found)
    for name, x in expected.items():
        close(found[name], to_numpy(x), name=name)
    assert found["logits"].shape == (2, *size, labels)


def test_one_training_step(tmp_path):
    """Loss, the gradient of every parameter, and the running statistics, without dropout and drop path."""
    size = (90, 71)
    module = randomised(original("b0", 3, SMALL | STILL)).train()
    model = registry.get("models", "segformer")(num_classes=3, remat=True, **(SMALL | STILL))
    variables = converted(module, model, tmp_path)
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
    for name, wanted in by_name(converted(module, model, tmp_path)["batch_stats"]).items():
        close(statistics[name], wanted, name=name)

    slopes = {name: x.grad for name, x in module.named_parameters()} | dict(module.named_buffers())
    slopes = by_name(converted(module, model, tmp_path, slopes)["params"])
    largest = max(np.abs(slope).max() for slope in slopes.values())
    nothing = set()
    for name, found in by_name(grads).items():
        if np.abs(slopes[name]).max() < 1e-6 * largest:
            nothing.add(name)
            assert np.abs(found).max() < 1e-6 * largest, name
        else:
            close(found, slopes[name], 1e-4, name)
    # Softmax takes out what all keys share, BatchNorm what all positions share: all that the last norm adds, too.
    constant = {f"segformer/encoder/block_{i}_0/attention/self/key/bias" for i in range(4)}
    constant |= {f"decode_head/linear_c_{i}/proj/bias" for i in range(4)}
    assert nothing == constant | {"segformer/encoder/layer_norm_3/bias"}


def test_the_comparison_would_notice(tmp_path):
    """Each fault that a port of this model could have shows in the logits."""
    module = randomised(original("b0", 3, SMALL)).eval()
    model = registry.get("models", "segformer")(num_classes=3, **SMALL)
    variables, image = converted(module, model, tmp_path), images((64, 48))
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
