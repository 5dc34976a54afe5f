"""ViT and DeiT beside the same models in PyTorch, with random weights, stage by stage."""

import jax
import numpy as np
import pytest
import torch
import transformers

from convert.originals import vit as plain
from convert.originals.published import names_in_files
from kdjax import registry
from kdjax.config import Model
from tests.support.torch_names import to_flax
from tests.support.twins import close, compared, images, randomised

SMALL = {"dim": 48, "heads": 4, "depth": 3, "taps": (0, 2), "num_classes": 5}


def pair(**options):
    return randomised(plain.build(Model("vit", **options))), registry.get("models", "vit")(**options)


@pytest.mark.parametrize(
    "options",
    [
        SMALL | {"image_size": (48, 80)},
        SMALL | {"image_size": (80, 48), "variant": "deit_ti16_distilled", "mlp_ratio": 3.0},
        SMALL | {"image_size": (56, 24), "patch_size": 8, "pool": "mean", "qkv_bias": False},
        SMALL | {"image_size": (32, 96), "variant": "vit_b32", "pool": "fc_norm", "norm_eps": 1e-3, "num_classes": 0},
        {"variant": "deit_ti16_distilled"},
    ],
    ids=["token", "distilled", "mean", "fc_norm", "published"],
)
def test_stage_by_stage(options):
    module, model = pair(**options)
    compared(plain, module, model, images(model.options.image_hw))


def test_the_comparison_would_notice():
    options = SMALL | {"variant": "deit_ti16_distilled", "image_size": (48, 80)}
    module, image = pair(**options)[0], images((48, 80), 1)
    for at in ("cls_token", "dist_token", "pos_embed", "blocks.0.attn.qkv.bias", "norm.weight", "head_dist.bias"):
        changed, _ = pair(**options)
        with torch.no_grad():
            changed.get_parameter(at).mul_(1.01)
        with pytest.raises(AssertionError):
            close(plain.outputs(changed, image)["logits"], plain.outputs(module, image)["logits"])
    with pytest.raises(AssertionError):
        compared(plain, module, registry.get("models", "vit")(**options | {"norm_eps": 1e-3}), image)


TIMM = {  # name in timm's checkpoints -> the name or, to be stacked, names in Hugging Face's
    "cls_token": ["vit.embeddings.cls_token"],
    "pos_embed": ["vit.embeddings.position_embeddings"],
    **{f"patch_embed.proj.{x}": [f"vit.embeddings.patch_embeddings.projection.{x}"] for x in ("weight", "bias")},
    **{f"norm.{x}": [f"vit.layernorm.{x}"] for x in ("weight", "bias")},
    **{f"head.{x}": [f"classifier.{x}"] for x in ("weight", "bias")},
}
TIMM_BLOCK = {
    "norm1": ["layernorm_before"],
    "attn.qkv": [f"attention.attention.{x}" for x in ("query", "key", "value")],
    "attn.proj": ["attention.output.dense"],
    "norm2": ["layernorm_after"],
    "mlp.fc1": ["intermediate.dense"],
    "mlp.fc2": ["output.dense"],
}


def hugging_face(scale: float) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    """A small ViTForImageClassification, and its tensors by timm's names; `scale` is that of what enters the blocks."""
    config = transformers.ViTConfig(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=192, image_size=64, num_labels=5
    )
    module = randomised(transformers.ViTForImageClassification(config).eval())
    with torch.no_grad():
        for x in module.vit.embeddings.parameters():
            x.mul_(scale)
    names = dict(TIMM)
    for i in range(3):
        for block, theirs in TIMM_BLOCK.items():
            for x in ("weight", "bias"):
                names[f"blocks.{i}.{block}.{x}"] = [f"vit.encoder.layer.{i}.{name}.{x}" for name in theirs]
    inside = module.state_dict()
    state = {name: inside[there].numpy() for name, there in names_in_files(module).items()}
    assert sorted(state) == sorted(name for theirs in names.values() for name in theirs)
    return module, {ours: np.concatenate([state[name] for name in theirs]) for ours, theirs in names.items()}


@pytest.mark.parametrize(
    ("scale", "eps", "same"), [(1.0, 1e-12, True), (1e-3, 1e-12, True), (1e-3, 1e-6, False)], ids=str
)
def test_hugging_face(scale, eps, same):
    """Where what enters the blocks is small, the epsilon of the norms shows."""
    module, state = hugging_face(scale)
    model = registry.get("models", "vit")(**SMALL, image_size=64, norm_eps=eps)
    image = images((64, 64))
    variables = to_flax(state, jax.eval_shape(model.init, jax.random.key(0), image))
    found = jax.jit(model.apply)(variables, image)
    with torch.no_grad():
        y = module(torch.from_numpy(np.moveaxis(image, -1, 1).copy()), output_hidden_states=True)
        tokens = module.vit.layernorm(y.hidden_states[-1])
    expected = {"logits": y.logits, "tokens": tokens, "features": tokens[:, 0]}
    expected |= {f"block_{i}": y.hidden_states[i + 1][:, 1:].unflatten(1, (4, 4)) for i in (0, 2)}
    assert set(expected) == set(found)
    for name, x in expected.items():
        if same:
            close(found[name], x.numpy(), name=name)
    if not same:
        with pytest.raises(AssertionError):
            close(found["logits"], y.logits.numpy())
