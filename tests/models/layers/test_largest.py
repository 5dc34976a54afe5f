"""The maximum whose gradient goes to one entry."""

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.models.layers.largest import largest


def test_of_equal_ones_the_first_has_the_gradient():
    x = jnp.asarray([[1.0, 3.0, 3.0], [0.0, 0.0, 0.0]])
    found, slope = jax.value_and_grad(lambda x: (largest(x, -1) * jnp.asarray([2.0, 5.0])).sum())(x)
    assert found == 6
    np.testing.assert_array_equal(slope, [[0, 2, 0], [5, 0, 0]])
    np.testing.assert_array_equal(largest(x, 0), [1, 3, 3])
