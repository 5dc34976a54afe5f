"""The losses beside PyTorch's own, and beside the distillation loss of the original framework."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdjax import registry


@pytest.fixture
def maps():
    rng = np.random.default_rng(0)
    return tuple(rng.normal(0, 3, (2, 5, 6, 4)).astype(np.float32) for _ in range(2))


def loss(name, *inputs, **args):
    return registry.get("losses", name)(*map(jnp.asarray, inputs), **args)


def close(found, expected):
    np.testing.assert_allclose(float(np.mean(found)), float(expected), rtol=1e-5)


@pytest.mark.parametrize(("variant", "divide"), [("mean", 30), ("sum", 1)])
def test_binary_kl_is_the_original(maps, variant, divide):
    student, teacher = (torch.from_numpy(x[..., :1]).permute(0, 3, 1, 2) for x in maps)
    s, t = (torch.cat([torch.zeros_like(x), x], dim=1) / 4.0 for x in (student, teacher))
    expected = F.kl_div(F.log_softmax(s, dim=1), F.softmax(t, dim=1), reduction="batchmean") * 16 / divide
    close(loss("binary_kl", maps[0][..., :1], maps[1][..., :1], variant=variant), expected)


def test_kl_variants_are_the_reductions_of_pytorch(maps):
    s, t = (torch.from_numpy(x) / 3.0 for x in maps)
    s, t = F.log_softmax(s, dim=-1), F.softmax(t, dim=-1)
    close(loss("kl", *maps, temperature=3.0, variant="sum"), 9 * F.kl_div(s, t, reduction="batchmean"))
    with pytest.warns(UserWarning, match="batchmean"):
        close(loss("kl", *maps, temperature=3.0, variant="class_mean"), 9 * F.kl_div(s, t, reduction="mean"))


def test_labels_and_features(maps):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, (2, 5, 6), dtype=np.int32)
    mask = np.minimum(labels, 1)
    z, t = (torch.from_numpy(x) for x in maps)
    y = torch.from_numpy(labels).long()
    found = loss("bce", maps[0][..., :1], mask)
    close(found, F.binary_cross_entropy_with_logits(z[..., 0], torch.from_numpy(mask).float()))
    found = loss("ce", maps[0], labels, label_smoothing=0.1)
    close(found, F.cross_entropy(z.permute(0, 3, 1, 2), y, label_smoothing=0.1))
    for b, one in enumerate(loss("ce", maps[0], labels, ignore=2, label_smoothing=0.1)):
        close(one, F.cross_entropy(z[b].reshape(-1, 4), y[b].reshape(-1), ignore_index=2, label_smoothing=0.1))
    close(loss("cosine", *maps), (1 - F.cosine_similarity(z, t, dim=-1)).mean())
    close(loss("mse", *maps), F.mse_loss(z, t))
    close(loss("l1", *maps), F.l1_loss(z, t))
