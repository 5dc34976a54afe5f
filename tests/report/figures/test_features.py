import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from kdjax.report.figures import features


def pictures(html):
    encoded = re.findall(r'src="data:image/webp;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(part)))).astype(float) for part in encoded]


def scene(n=2, height=12, width=16, seed=0):
    """Images in [0, 1] with a dark ground, a red square and a blue bar at places of their own."""
    rng = np.random.default_rng(seed)
    images = 0.05 * rng.random((n, height, width, 3))
    for i in range(n):
        images[i, 2:6, 2 + 3 * i : 6 + 3 * i] += [0.8, 0.1, 0.1]
        images[i, 8:11, 1:15] += [0.1, 0.2, 0.8]
    return images


def test_each_example_is_a_row_and_each_model_a_panel():
    images = scene()
    sides = {"SAM <b>": [x[::2, ::2] for x in images], "student": [x[::4, ::4, :2] for x in images]}
    html = features.maps(images, sides)
    assert html.count('class="panels"') == 2
    assert re.findall("<figcaption>(.*?)</figcaption>", html) == 2 * [
        "image",
        "SAM &lt;b&gt;<br>6 × 8 × 3",
        "student<br>3 × 4 × 2",
    ]
    assert {picture.shape for picture in pictures(html)} == {(168, 224, 3)}
    np.testing.assert_allclose(pictures(html)[0][56, 56], 255 * images[0, 4, 4], atol=12)
    assert html == features.maps(images, sides)
    as_bytes = (255 * images).round().astype(np.uint8)
    assert pictures(features.maps(as_bytes, sides))[0].mean() == pytest.approx(pictures(html)[0].mean(), abs=1)


def test_the_same_thing_has_the_same_colour_in_all_images_and_models():
    images = scene()
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(7, 7)))
    wide = [x @ turn[:3] for x in images]  # the same features in another basis, of seven channels
    _, first, second, _, other, _ = pictures(features.maps(images, {"teacher": list(images), "student": wide}))
    np.testing.assert_allclose(first, second, atol=1)
    square, moved = (part[28:84].mean(axis=(0, 1)) for part in (first[:, 28:84], other[:, 70:126]))
    bar, ground = (first[rows, 28:84].mean(axis=(0, 1)) for rows in (slice(112, 154), slice(0, 28)))
    np.testing.assert_allclose(square, moved, atol=12)
    for a, b in ((square, bar), (square, ground), (bar, ground)):
        assert np.abs(a - b).max() > 60


def test_components_are_those_of_the_covariance():
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(5, 6, 4)) * [9.0, 1.0, 4.0, 0.1], rng.normal(size=(3, 3, 4)) * [9.0, 1.0, 4.0, 0.1] + 2.0]
    rows = np.concatenate([part.reshape(-1, 4) for part in maps])
    values, vectors = np.linalg.eigh(np.cov(rows.T, bias=True))
    expected = ((rows - rows.mean(axis=0)) @ vectors[:, :0:-1]) / (values[:0:-1] * values[-1]) ** 0.25
    components = features._components(maps)
    assert [part.shape for part in components] == [(5, 6, 3), (3, 3, 3)]
    flat = np.concatenate([part.reshape(-1, 3) for part in components])
    np.testing.assert_allclose(np.abs(flat), np.abs(expected), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("value", [0.3, np.nan])
@pytest.mark.parametrize("channels", [1, 5])
def test_what_shows_nothing_is_grey(value, channels):
    broken = [np.full((3, 4, channels), value, np.float32)] * 2
    *_, last = pictures(features.maps(scene(), {"student": broken}))
    np.testing.assert_allclose(last, 127.5, atol=2)


def test_one_channel_and_one_cell_are_drawn():
    images = scene(1)
    assert len(pictures(features.maps(images, {"a": [images[0, :, :, :1]], "b": [images[0]]}))) == 3
    assert len(pictures(features.maps(images, {"a": [images[0, :1, :1]]}))) == 2


def test_where_there_is_nothing_there_is_no_picture():
    assert features.maps(scene()[:0], {"a": []}) == ""
    assert features.maps(scene(), {}) == ""
