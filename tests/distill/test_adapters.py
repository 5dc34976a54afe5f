import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from kdjax.config import ConfigError
from kdjax.distill import adapters

SHAPES = {"vectors": (6, 5), "tokens": (6, 7, 5), "maps": (6, 3, 4, 5)}


def made(name, shape):
    adapter = adapters.build(name, shape, (*shape[:-1], 9))
    x = jax.random.normal(jax.random.key(0), shape) + 0.5
    variables = adapter.init(jax.random.key(1), x)
    return adapter, variables, x


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", adapters.ADAPTERS)
@pytest.mark.parametrize("train", [False, True])
def test_maps_channels_and_never_the_batch(name, shape, train):
    """Permuting the examples permutes the result; and in evaluation no example sees another."""
    adapter, variables, x = made(name, shape)
    order = np.random.default_rng(0).permutation(shape[0])

    def run(x):
        return adapter.apply(variables, x, train=train, mutable=["batch_stats"])[0]

    y = run(x)
    assert y.shape == (*shape[:-1], 9)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(run(x[order]), y[order], rtol=1e-5, atol=1e-6)
    if not train:
        np.testing.assert_allclose(run(x[:1]), y[:1], rtol=1e-5, atol=1e-6)


def test_conv_bn_relu_agrees_with_torch():
    adapter, variables, x = made("conv_bn_relu", (2, 3, 4, 5))
    conv, bn = torch.nn.Conv2d(5, 9, 1, bias=False), torch.nn.BatchNorm2d(9)
    rng = np.random.default_rng(0)
    affine = {"scale": rng.uniform(0.5, 2, 9), "bias": rng.normal(size=9)}
    stats = {"mean": rng.normal(size=9), "var": rng.uniform(0.5, 2, 9)}
    with torch.no_grad():
        conv.weight.copy_(torch.tensor(np.array(variables["params"]["conv"]["kernel"])).T[:, :, None, None])
        bn.weight.copy_(torch.tensor(affine["scale"]))
        bn.bias.copy_(torch.tensor(affine["bias"]))
        bn.running_mean.copy_(torch.tensor(stats["mean"]))
        bn.running_var.copy_(torch.tensor(stats["var"]))
    cast = lambda tree: jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree)  # noqa: E731
    variables = {"params": {**variables["params"], "bn": cast(affine)}, "batch_stats": {"bn": cast(stats)}}
    picture = torch.tensor(np.array(x)).permute(0, 3, 1, 2)
    bn.eval()
    expected = torch.relu(bn(conv(picture))).permute(0, 2, 3, 1).detach().numpy()
    np.testing.assert_allclose(adapter.apply(variables, x), expected, rtol=1e-5, atol=1e-6)
    bn.train()
    expected = torch.relu(bn(conv(picture))).permute(0, 2, 3, 1).detach().numpy()
    found, changed = adapter.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(changed["batch_stats"]["bn"]["mean"], bn.running_mean, rtol=1e-5, atol=1e-6)


def test_linear_is_an_affine_map():
    adapter, variables, x = made("linear", (4, 5))
    bias = jnp.arange(9.0)
    proj = {**variables["params"]["proj"], "bias": bias}
    found = adapter.apply({"params": {"proj": proj}}, x)
    expected = np.asarray(x, np.float64) @ np.asarray(proj["kernel"], np.float64) + np.asarray(bias)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(6, 8), (2, 3), (7, 5), (1, 1), (5, 3)])
def test_maps_are_resized_as_torch_does(size):
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 4)).astype(np.float32)
    found = adapters.resize_like(jnp.asarray(x), (2, *size, 9))
    reference = torch.nn.functional.interpolate(
        torch.tensor(x).permute(0, 3, 1, 2), size, mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(found, reference.permute(0, 2, 3, 1).numpy(), rtol=1e-5, atol=1e-6)


def test_tokens_and_maps_meet_row_by_row():
    tokens = jnp.arange(2 * 6 * 3.0).reshape(2, 6, 3)
    grid = adapters.resize_like(tokens, (2, 2, 3, 8))
    assert grid.shape == (2, 2, 3, 3)
    np.testing.assert_array_equal(grid[:, 1, 2], tokens[:, 5])
    np.testing.assert_array_equal(adapters.resize_like(grid, (2, 6, 8)), tokens)
    np.testing.assert_array_equal(adapters.resize_like(tokens, (2, 6, 8)), tokens)
    np.testing.assert_array_equal(adapters.resize_like(tokens[:, 0], (2, 8)), tokens[:, 0])


@pytest.mark.parametrize(
    ("have", "want"),
    [
        ((2, 7, 3), (2, 2, 3, 8)),
        ((2, 2, 3, 3), (2, 7, 8)),
        ((2, 6, 3), (2, 7, 8)),
        ((2, 3), (2, 1, 8)),
        ((2, 6, 3), (2, 8)),
    ],
)
def test_what_cannot_be_laid_out_is_refused(have, want):
    with pytest.raises(ConfigError, match="cannot be laid out as"):
        adapters.resize_like(jnp.zeros(have), want)


def test_unknown_and_meaningless_adapters_are_refused():
    with pytest.raises(ConfigError, match="no adapter 'conv_bn'; did you mean 'conv_bn_relu'"):
        adapters.build("conv_bn", (2, 3), (2, 4))
    with pytest.raises(ConfigError, match="an endpoint that has channels"):
        adapters.build("linear", (2,), (2, 4))
