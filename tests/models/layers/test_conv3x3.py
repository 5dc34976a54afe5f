"""A 3 × 3 convolution without padding, of few channels and of many: against plain NumPy, value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.models.layers.conv3x3 import FEW, conv3x3


def plain(x, kernel, stride):
    b, h, w, _ = x.shape
    out = np.zeros((b, (h - 3) // stride + 1, (w - 3) // stride + 1, kernel.shape[-1]))
    for i, j in np.ndindex(out.shape[1:3]):
        window = x[:, i * stride : i * stride + 3, j * stride : j * stride + 3]
        out[:, i, j] = np.tensordot(window, kernel, 3)
    return out


@pytest.mark.parametrize("channels", [1, 3, FEW + 1])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(3, 3), (7, 6), (8, 9)], ids=str)
def test_value_and_gradient(channels, stride, size):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, *size, channels)), rng.normal(size=(3, 3, channels, 4))
    expected = plain(x, kernel, stride)
    slope, step = rng.normal(size=expected.shape), rng.normal(size=x.shape)
    turn = rng.normal(size=kernel.shape)
    single = lambda *arrays: [jnp.asarray(array, jnp.float32) for array in arrays]  # noqa: E731
    found, back = jax.vjp(lambda x, kernel: conv3x3(x, kernel, stride), *single(x, kernel))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    of_x, of_kernel = back(*single(slope))
    # Both are linear, so a direction's slope is the value of the function along it.
    np.testing.assert_allclose((of_x * step).sum(), (plain(step, kernel, stride) * slope).sum(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose((of_kernel * turn).sum(), (plain(x, turn, stride) * slope).sum(), rtol=1e-4, atol=1e-4)
