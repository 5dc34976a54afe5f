from collections import Counter

import numpy as np
import pytest
from scipy import ndimage

from kdjax.config import ConfigError, Data
from kdjax.data import pipeline
from kdjax.data.images.beetles import SHAPES, SPACINGS, Beetles, cross, disc, portrait, ring, square, triangle


def small(**changes) -> Beetles:
    return Beetles(**{"size": 32, "train": 40, "val": 20, "test": 20, **changes})


def equal(a: dict, b: dict) -> bool:
    return a["name"] == b["name"] and np.array_equal(a["image"], b["image"])


def test_an_image_follows_from_seed_part_and_place():
    one, backwards = small(), {i: small()[i] for i in range(19, -1, -1)}
    assert all(equal(one[i], backwards[i]) for i in range(20))
    longer = small(train=60)
    assert all(equal(one[40 + i], longer[60 + i]) for i in range(20))
    for other in (small(seed=1), small(domain="strange")):
        assert not np.array_equal(one[0]["image"], other[0]["image"])
    with pytest.raises(IndexError):
        one[80]
    with pytest.raises(ConfigError, match="domain: no 'know'; did you mean 'known'"):
        small(domain="know")


def test_every_part_has_as_many_of_each_kind():
    source = small()
    assert len(source.classes) == len(SHAPES) * len(SPACINGS) == 20
    kinds = [source.inspect(i).label for i in range(len(source))]
    assert set(Counter(kinds[:40]).values()) == {2}
    assert set(Counter(kinds[60:]).values()) == {1}
    for i in (0, 7, 45):
        facts, example = source.inspect(i), source[i]
        assert (facts.label, facts.name) == (example["class"], example["name"])
        assert example["name"].endswith(source.classes[facts.label].replace(" ", "_"))
        assert (example["image"].shape, example["image"].dtype) == ((32, 32, 3), np.uint8)
    assert set(small(domain="strange").classes).isdisjoint(source.classes)
    dataset = pipeline.build(Data("beetles", size=32, train=40, val=20, test=20, image_size=32, num_classes=None))
    assert dataset.class_counts("train").tolist() == [2] * 20


def test_spots_have_their_shapes():
    """Areas and holes of each shape of radius 1, by counting the points inside."""
    y, x = np.mgrid[-1.2:1.2:401j, -1.2:1.2:401j].astype(np.float32)
    cell = (2.4 / 400) ** 2
    areas = {shape.__name__: float((shape(x, y) < 0).sum() * cell) for shape in (disc, ring, square, triangle, cross)}
    side = 1.2 / 0.866 + 0.6 / 0.866  # of the base at x = -0.6, whose tip is at x = 1.2
    expected = {"disc": np.pi, "ring": np.pi * (1.05**2 - 0.55**2), "square": 1.7**2, "cross": 4 * 0.6 - 0.36}
    expected["triangle"] = side * 1.8 / 2
    assert areas == pytest.approx(expected, rel=0.02)
    for shape in SHAPES.values():
        _, parts = ndimage.label(shape(x, y) < 0)
        _, outside = ndimage.label(shape(x, y) >= 0)
        assert (parts, outside) == (1, 2 if shape is ring else 1)


def test_stripes_lie_as_far_apart_as_their_spacing_says():
    """The strongest frequency along the body, over many beetles without spots."""
    size = 96
    bare = lambda x, y: np.ones_like(x)  # noqa: E731
    along = slice(size // 4, size - size // 4)
    for name, spacing in SPACINGS.items():
        if not spacing:
            continue
        power = np.zeros(size // 2 + 1)
        for seed in range(24):
            middle = portrait(np.random.default_rng(seed), size, bare, spacing).mean(axis=-1)[along, 42:54].mean(axis=1)
            power += np.abs(np.fft.rfft((middle - middle.mean()) * np.hanning(len(middle)), n=size)) ** 2
        assert np.argmax(power[4:]) + 4 == pytest.approx(1 / spacing, rel=0.25), name
