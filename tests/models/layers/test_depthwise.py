"""Depthwise convolutions with strides, dilation and edges of their own; plain ones are in the tests of SegFormer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.models.layers.depthwise import depthwise
from tests.support.quick import QUICK


@pytest.mark.parametrize(
    ("size", "stride", "dilation", "edges"),
    [
        ((19, 10), 2, 1, ((1, 1), (0, 1))),  # rows are more than are summed at once
        ((6, 9), 2, 1, ((0, 0), (0, 2))),  # the last row is not seen
        ((5, 7), 1, 3, ((3, 3), (3, 3))),
        ((9, 8), 3, 2, ((2, 0), (1, 3))),
    ],
)
def test_it_is_xlas_with_its_gradients(size, stride, dilation, edges):
    draw = np.random.default_rng(0)
    x, kernel = (jnp.asarray(draw.normal(size=shape), jnp.float32) for shape in ((2, *size, 3), (3, 3, 1, 3)))

    def xlas(x, kernel):
        options = {"rhs_dilation": (dilation, dilation), "feature_group_count": 3}
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (stride, stride), edges, dimension_numbers=dimensions, **options)

    ours = lambda x, kernel: depthwise(x, kernel, stride, dilation, edges)  # noqa: E731
    slope = jnp.asarray(draw.normal(size=jax.eval_shape(xlas, x, kernel).shape), jnp.float32)

    def results(f):
        def both(x, kernel):
            y, pull = jax.vjp(f, x, kernel)
            return y, *pull(slope)

        return jax.jit(both, compiler_options=QUICK)(x, kernel)

    for found, expected in zip(results(ours), results(xlas), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
