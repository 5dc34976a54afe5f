"""What pictures go through: against Pillow's JPEG, SciPy's Gaussian and Pillow's resizing."""

import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from kdjax.data.images.degrade import blur, jpeg, rescale

jpegs = {subsampled: jax.jit(functools.partial(jpeg, subsampled=subsampled)) for subsampled in (False, True)}
blurred, rescaled = jax.jit(blur), jax.jit(rescale)


def photograph(h: int, w: int, seed: int = 0) -> np.ndarray:
    """Smooth colours with an edge and a little noise."""
    noise = np.random.default_rng(seed).normal(size=(h, w, 3))
    levels = 110 + 300 * ndimage.gaussian_filter(noise, (3, 3, 0)) + 5 * noise
    levels[h // 3 :, w // 2 :] += 60
    return np.clip(levels, 0, 255).astype(np.uint8)


def scaled(image: np.ndarray) -> jax.Array:
    return jnp.asarray(image / np.float32(255))


def pillow(image: np.ndarray, quality: int, subsampled: bool) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=quality, subsampling=2 if subsampled else 0)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize(("h", "w"), [(64, 64), (41, 54)])
@pytest.mark.parametrize("subsampled", [False, True])
def test_jpeg_is_that_of_libjpeg(h, w, subsampled):
    """But for a few coefficients about half-way between two steps, where the bits of its integer cosines decide."""
    image = photograph(h, w)
    for quality in (10, 50, 75, 95, 100):
        expected = pillow(image, quality, subsampled).astype(float)
        found = 255 * np.asarray(jpegs[subsampled](scaled(image), jnp.float32(quality)))
        np.testing.assert_allclose(found, np.round(found), atol=1e-3)
        apart = np.abs(found - expected)
        assert apart.mean() < 0.15, quality
        assert (apart < 1.5).mean() > 0.95, quality


def test_jpeg_of_levels_beyond_the_range_is_that_of_the_nearest():
    image = scaled(photograph(41, 54)) * 3 - 1
    code = functools.partial(jpegs[True], quality=jnp.float32(80))
    np.testing.assert_array_equal(code(image), code(jnp.clip(image, 0, 1)))


def test_blur_is_scipys_gaussian_of_what_lies_inside():
    image = photograph(40, 54)
    for sigma in (0.2, 0.7, 2.0, 5.0):
        options = {"sigma": (sigma, sigma, 0), "mode": "constant", "truncate": 12}
        expected = ndimage.gaussian_filter(image / 255, **options) / ndimage.gaussian_filter(
            np.ones(image.shape), **options
        )
        np.testing.assert_allclose(blurred(scaled(image), jnp.float32(sigma)), expected, atol=1e-6)
    np.testing.assert_array_equal(blurred(scaled(image), jnp.float32(0)), scaled(image))


def test_rescaling_is_pillows_there_and_back():
    image = photograph(40, 60)
    for factor in (0.5, 0.75, 0.9, 1.0, 0.1):
        small = (round(60 * factor), round(40 * factor))
        planes = [Image.fromarray(plane) for plane in np.moveaxis(image / np.float32(255), -1, 0)]
        planes = [
            p.resize(small, Image.Resampling.BILINEAR).resize((60, 40), Image.Resampling.BILINEAR) for p in planes
        ]
        found = rescaled(scaled(image), jnp.float32(factor))
        np.testing.assert_allclose(found, np.stack([np.asarray(p) for p in planes], -1), atol=2e-6)


def test_each_image_of_a_batch_has_its_own_number():
    images = jnp.stack([scaled(photograph(41, 54, seed)) for seed in range(2)])
    for degrade, numbers in ((jpegs[True], (50.0, 90.0)), (blurred, (0.5, 2.0)), (rescaled, (0.5, 0.75))):
        together = jax.jit(jax.vmap(degrade))(images, jnp.array(numbers))
        alone = [degrade(image, jnp.float32(number)) for image, number in zip(images, numbers, strict=True)]
        np.testing.assert_allclose(together, jnp.stack(alone), atol=1e-6)
