import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy import ndimage

from kdjax.config import ConfigError
from kdjax.data.transforms import ANGLE, CONTRAST, GAMMA, TRANSFORMS, ZOOM, augment, draw

ALL = dict.fromkeys(TRANSFORMS, 0.8)


@functools.partial(jax.jit, static_argnums=4)
def jitted(key, image, mask, index, probabilities):
    return augment(key, image, mask, index, dict(probabilities))


def run(image, mask, index=None, key=0, **probabilities):
    index = np.arange(len(image)) if index is None else index
    done = jitted(jax.random.key(key), image, mask, jnp.asarray(index, jnp.int32), tuple(probabilities.items()))
    return tuple(map(np.asarray, done))


def batch(n: int = 6, h: int = 20, w: int = 26, seed: int = 0):
    rng = np.random.default_rng(seed)
    image = np.stack([ndimage.gaussian_filter(rng.random((h, w, 3)), (1, 1, 0)) for _ in range(n)])
    return image.astype(np.float32), rng.integers(0, 4, (n, h, w)).astype(np.int32)


def reference(image, mask, drawn):
    """The same in float64, by scipy: a matrix and an offset per image. Also where the nearest pixel is not in doubt."""
    h, w, _ = image.shape
    x = image.astype(np.float64) ** (1 / drawn["gamma"])
    x = np.clip((x - x.mean()) * drawn["contrast"] + x.mean(), 0, 1)
    turn = np.deg2rad(drawn["rotate"])
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = rotation @ np.diag([drawn["vflip"], drawn["hflip"]]) / drawn["zoom"]
    centre = np.array([h - 1, w - 1]) / 2
    moved = rotation @ (drawn["crop"] * np.array([h, w]) * (1 - 1 / drawn["zoom"]) / 2)
    offset = centre + moved - matrix @ centre
    planes = [ndimage.affine_transform(x[..., c], matrix, offset, order=1, mode="grid-constant") for c in range(3)]
    nearest = ndimage.affine_transform(mask, matrix, offset, order=0, mode="grid-constant")
    at = np.einsum("ij,jhw->ihw", matrix, np.indices((h, w))) + offset[:, None, None]
    clear = (np.abs(at % 1 - 0.5) > 1e-3).all(0)
    return np.stack(planes, -1), nearest, clear


@pytest.mark.parametrize("name", [*TRANSFORMS, "all"])
def test_agrees_with_scipy(name):
    image, mask = batch()
    probabilities = ALL if name == "all" else {name: 1.0}
    found, moved = run(image, mask, key=3, **probabilities)
    for i in range(len(image)):
        drawn = draw(jax.random.fold_in(jax.random.key(3), i), probabilities)
        expected, nearest, clear = reference(image[i], mask[i], {k: np.float64(v) for k, v in drawn.items()})
        np.testing.assert_allclose(found[i], expected, atol=2e-5)
        np.testing.assert_array_equal(moved[i][clear], nearest[clear])
        assert clear.mean() > 0.9
    assert (found != image).any()


def test_probability_zero_is_the_identity():
    image, mask = batch()
    for probabilities in ({}, dict.fromkeys(TRANSFORMS, 0.0), dict.fromkeys(TRANSFORMS, 1e-9)):
        found, moved = run(image, mask, **probabilities)
        np.testing.assert_array_equal(moved, mask)
        np.testing.assert_allclose(found, image, atol=1e-7)


def test_nothing_is_looked_up_without_a_geometric_transform():
    image, mask = batch()
    arguments = (jax.random.key(0), image, mask, jnp.arange(6))
    assert "gather" in jitted.lower(*arguments, (("rotate", 0.5),)).as_text()
    assert "gather" not in jitted.lower(*arguments, (("gamma", 0.5), ("rotate", 0.0))).as_text()


def test_flips_are_exact():
    image, mask = batch()
    for name, flip in (("hflip", np.s_[:, :, ::-1]), ("vflip", np.s_[:, ::-1])):
        found, moved = run(image, mask, **{name: 1.0})
        np.testing.assert_array_equal(found, image[flip])
        np.testing.assert_array_equal(moved, mask[flip])


def test_an_image_is_treated_alike_wherever_it_stands():
    image, mask = batch(8)
    index = np.array([5, 17, 3, 900, 4, 8, 1, 0])
    found, moved = run(image, mask, index, **ALL)
    order = np.array([6, 2, 7, 1, 0, 3, 5, 4])
    again, removed = run(image[order], mask[order], index[order], **ALL)
    np.testing.assert_array_equal(again, found[order])
    np.testing.assert_array_equal(removed, moved[order])
    few, _ = run(image[2:4], mask[2:4], index[2:4], **ALL)
    np.testing.assert_allclose(few, found[2:4], atol=1e-6)
    other, _ = run(image, mask, index, key=1, **ALL)
    assert (np.abs(other - found).max((1, 2, 3)) > 0.01).all()


def test_a_sharded_batch_stays_where_it_is():
    image, mask = batch(16)
    sharding = NamedSharding(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,)), PartitionSpec("data"))
    arguments = [jax.device_put(x, sharding) for x in (image, mask, np.arange(16, dtype=np.int32))]
    step = jax.jit(functools.partial(augment, probabilities=ALL), out_shardings=(sharding, sharding))
    found, moved = step(jax.random.key(0), *arguments)
    alone, unmoved = run(image, mask, **ALL)
    # two programs round coordinates up to 26 differently: 26 * 2^-23, times a slope below 1, and the same again
    np.testing.assert_allclose(found, alone, atol=6.2e-6)
    np.testing.assert_array_equal(moved, unmoved)
    program = step.lower(jax.random.key(0), *arguments).compile().as_text()
    assert not re.search(r"all-|collective-", program)


def test_mask_and_image_move_together():
    y, x = np.mgrid[0:64, 0:64]
    blobs = [((y - 20 - 2 * i) ** 2 / 90 + (x - 36 + i) ** 2 / 200 < 1).astype(np.float32) for i in range(12)]
    image = np.repeat(np.stack(blobs)[..., None], 3, -1)
    found, moved = run(image, np.stack(blobs).astype(np.int32), **{k: 1.0 for k in ("rotate", "zoom", "hflip")})
    for seen, mask in zip(found[..., 0] > 0.5, moved > 0, strict=True):
        assert mask.sum() > 100
        assert 2 * (seen & mask).sum() / (seen.sum() + mask.sum()) > 0.985
    assert (moved != np.stack(blobs)).any((1, 2)).all()


def test_values_stay_images():
    rng = np.random.default_rng(0)
    image = rng.choice([0.0, 1.0, 0.5], (40, 12, 12, 3)).astype(np.float32)
    image[0], image[1] = 0, 1
    mask = rng.integers(0, 5, (40, 12, 12)).astype(np.int32)
    found, moved = run(image, mask, **dict.fromkeys(TRANSFORMS, 1.0))
    assert np.isfinite(found).all()
    assert found.min() >= 0
    assert found.max() <= 1 + 1e-6
    assert set(np.unique(moved)) <= set(range(5))
    assert moved.dtype == np.int32


def test_draws_have_the_probability_and_the_range():
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(4000))
    drawn = jax.vmap(lambda key: draw(key, {**dict.fromkeys(TRANSFORMS, 1.0), "hflip": 0.3, "rotate": 0.6}))(keys)
    drawn = {k: np.asarray(v) for k, v in drawn.items()}
    assert np.mean(drawn["hflip"] < 0) == pytest.approx(0.3, abs=0.03)
    assert np.mean(drawn["rotate"] != 0) == pytest.approx(0.6, abs=0.03)
    for name, low, high in (("rotate", -ANGLE, ANGLE), ("zoom", *ZOOM), ("gamma", *GAMMA), ("contrast", *CONTRAST)):
        values = drawn[name]
        assert low <= values.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < values.max() <= high
    assert np.abs(np.corrcoef(drawn["zoom"], drawn["gamma"])[0, 1]) < 0.06


def test_unknown_names_are_refused():
    image, mask = batch(1)
    with pytest.raises(ConfigError, match="no transform 'hflp'; did you mean 'hflip'"):
        run(image, mask, hflp=0.5)
    with pytest.raises(ConfigError, match=r"augment\.zoom: expected a probability in \[0, 1\], found 1\.5"):
        run(image, mask, zoom=1.5)
