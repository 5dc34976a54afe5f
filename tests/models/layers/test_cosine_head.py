"""The cosine head beside its formula in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.models.layers.cosine_head import CosineHead


def test_the_nearest_centre_of_each_class_counts_and_lengths_do_not():
    rng = np.random.default_rng(0)
    x, centres, slope = rng.normal(size=(5, 7)), rng.normal(size=(3, 4, 7)), rng.normal(size=(5, 3))
    run = lambda centres, x: CosineHead(3, 4).apply({"params": {"centres": centres}}, x)  # noqa: E731
    cosines, pull = jax.vjp(jax.jit(run), jnp.float32(centres), jnp.float32(x))

    unit = lambda a: a / np.linalg.norm(a, axis=-1, keepdims=True)  # noqa: E731
    each = np.einsum("bd,kcd->bkc", unit(x), unit(centres))
    np.testing.assert_allclose(cosines, each.max(-1), rtol=1e-5, atol=1e-6)

    nearest = unit(centres)[np.arange(3), each.argmax(-1)]  # [b, k, d]
    towards = (nearest - each.max(-1)[..., None] * unit(x)[:, None]) / np.linalg.norm(x, axis=-1)[:, None, None]
    by_centres, by_x = pull(jnp.float32(slope))
    np.testing.assert_allclose(by_x, np.einsum("bk,bkd->bd", slope, towards), rtol=1e-4, atol=1e-5)
    near = np.zeros((3, 4), bool)
    near[np.arange(3), each.argmax(-1)] = True
    np.testing.assert_array_equal(np.any(by_centres, axis=-1), near)
    assert not near.all()


def test_bfloat16_features_and_zeros():
    x = jnp.zeros((2, 7), jnp.bfloat16).at[1].set(1)
    variables = {"params": {"centres": jnp.ones((3, 1, 7))}}
    cosines, slope = jax.jit(jax.value_and_grad(lambda x: CosineHead(3).apply(variables, x).sum()))(x)
    assert cosines.dtype == jnp.float32
    assert np.isfinite(np.asarray(slope, np.float32)).all()
