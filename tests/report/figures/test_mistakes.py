"""The most confident mistakes, and what speaks for a class, laid over its image."""

import re

import numpy as np

from kdjax.report.figures import heat
from kdjax.report.figures.mistakes import MOST, mistakes

NAMES = ["ant", "bee", "c<at"]


def image(i):
    return np.full((6, 8, 3), 10 * i, np.uint8)


def test_the_surest_mistake_is_the_first_and_what_is_right_or_unknown_is_none():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.05, 0.9, 0.05], [0.8, 0.1, 0.1], [0.9, 0.1, 0.0]])
    labels = np.array([1, 0, 1, -1, 2])
    html = mistakes(image, labels, probabilities.argmax(1), probabilities, NAMES, [f"{i}.png" for i in range(5)])
    said = re.findall(r"<b>([^<]*)</b>([^<]*)<br>([^<]*)<", html)
    assert said == [
        ("ant: 90 %", "is c&lt;at: 0 %", "4.png"),
        ("ant: 70 %", "is bee: 20 %", "0.png"),
        ("c&lt;at: 60 %", "is ant: 10 %", "1.png"),
    ]
    assert "Shown: 3 mistakes among 4 images" in html


def test_of_many_mistakes_some_are_shown_and_of_none_nothing():
    n = 3 * MOST
    probabilities = np.tile([0.9, 0.1], (n, 1))
    html = mistakes(image, np.ones(n, int), np.zeros(n, int), probabilities, NAMES)
    assert html.count("<figure>") == MOST
    assert f"the {MOST} surest of {n} mistakes among {n} images" in html
    assert mistakes(image, np.zeros(n, int), np.zeros(n, int), probabilities, NAMES) == ""


def test_a_diverged_model_is_sure_of_nothing():
    probabilities = np.full((2, 2), np.nan)
    assert mistakes(image, np.ones(2, int), np.zeros(2, int), probabilities, NAMES) == ""


def test_evidence_colours_the_place_that_has_it_and_leaves_the_others_grey():
    picture = np.zeros((40, 60, 3), np.uint8) + np.array([200, 60, 20], np.uint8)
    cam = np.zeros((4, 6), np.float32)
    cam[1, 4] = 1e-3  # however little it is
    shown = heat.evidence(picture, cam).astype(int)
    assert shown.shape == picture.shape
    grey = shown[35, 5]
    assert grey.max() == grey.min()
    there = shown[15, 45]
    assert np.abs(there - (190 / 255 * np.array(heat.YES) + 65 / 255 * grey)).max() <= 2
    ring = (shown == 255).all(-1)
    assert ring.any()
    assert not ring[:, :30].any()
    np.testing.assert_array_equal(heat.evidence(picture, np.zeros((4, 6), np.float32))[..., 0], grey[0])
