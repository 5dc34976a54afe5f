import base64
import io
import math
import re
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest
from PIL import Image

from kdjax.report.figures import detection as figures


def drawn(n=300, seed=0, shift=2.0):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.3).astype(np.int32)
    return rng.normal(shift * labels, 1.0).astype(np.float32), labels


def texts(svg):
    root = ET.fromstring(svg.replace("xlink:href", "href"))
    links = [e.get("href") for e in root.iter() if e.get("href")]
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert "http" not in svg
    assert not re.search("#01020[34]", svg)
    return [text.text for text in root.iter("text")]


def strokes(svg, series):
    """Of each path in that colour of the page: its commands."""
    root = ET.fromstring(svg.replace("xlink:href", "href"))
    return [e.get("d") for e in root.iter("path") if f"var(--series-{series})" in (e.get("style") or "")]


def test_histograms_show_each_set_and_the_threshold():
    sets = {"known $1": drawn(), "unknown": drawn(200, 1), "empty": (np.zeros(0), np.zeros(0, int))}
    svg = figures.score_histograms(sets, 1.25, xlabel="logit")
    normal = [int(np.sum(labels == 0)) for _, labels in sets.values()]
    said = texts(svg)
    assert {f"known $1: {normal[0]} normal, {300 - normal[0]} attack", "threshold 1.25", "logit", "attack"} <= set(said)
    assert len([s for s in said if s and "normal," in s]) == 2
    assert "threshold" not in " ".join(filter(None, texts(figures.score_histograms(sets))))


def test_the_axis_of_a_long_tail_is_logarithmic_and_holds_the_threshold():
    scores = np.random.default_rng(0).lognormal(0, 2, 500)
    edges, log = figures._edges(scores, 1e6)
    assert log
    assert edges[0] > 0
    assert edges[-1] > 1e6
    edges, log = figures._edges(scores - 1.0, math.nan)
    assert not log
    edges, _ = figures._edges(np.ones(4), 1.0)
    assert edges[0] < 1 < edges[-1]
    assert "threshold 0.5" in texts(figures.score_histograms({"long": (scores, np.arange(500) % 2)}, 0.5))
    worst = np.append(drawn()[0], [np.inf, np.nan]), np.append(drawn()[1], [1, 0])
    assert texts(figures.score_histograms({"a": worst}))


def test_roc_curves_name_their_areas_and_leave_out_what_has_none():
    models = {"good": drawn(shift=6.0), "poor": drawn(shift=0.5), "blind": (np.ones(5), np.zeros(5, int))}
    said = " ".join(filter(None, texts(figures.roc_curves(models))))
    assert re.search(r"good, AUC (0\.99\d\d|1\.0000)", said)
    assert "poor, AUC 0.6" in said
    assert "by chance" in said
    assert "blind" not in said
    assert "by chance" not in texts(figures.roc_curves({"good": models["good"]}))


def test_a_long_curve_stays_light():
    scores, labels = drawn(20_000, shift=0.1)
    assert len(figures.roc_curves({"a": (scores, labels)})) < 40_000


def test_confusions_count_and_share():
    svg = figures.confusions({"a set": np.array([[90, 10], [1, 3]]), "no attacks": np.array([[5, 0], [0, 0]])})
    said = texts(svg)
    for text in ("90", "90.0 %", "10.0 %", "75.0 %", "100.0 %", "a set", "no attacks", "prediction", "truth"):
        assert text in said, text
    assert said.count("0.0 %") == 3
    three = texts(figures.confusions({"": np.eye(3, dtype=int)}, ("a", "b", "c")))
    assert [three.count(name) for name in "abc"] == [2, 2, 2]


def test_likeness_stands_where_its_layers_meet():
    svg = figures.likeness(np.array([[0.5, 1.0, math.nan], [0.25, 0.0, 0.125]]), ["t1", "t2"], ["s1", "s2", "s3"])
    root = ET.fromstring(svg)
    place = {e.text: [float(v) for v in re.findall(r"-?[\d.]+", e.get("transform") or "")] for e in root.iter("text")}
    at = {e.text: (e.get("x"), e.get("y")) for e in root.iter("text")}
    assert {"0.50", "1.00", "–", "0.25", "0.00", "0.12", "layer of the teacher"} <= set(at)
    y = {name: float(at[name][1] or place[name][1]) for name in ("0.50", "0.25", "t1", "t2")}
    assert y["0.25"] < y["0.50"]  # the deepest layer on top
    assert abs(y["t2"] - y["0.25"]) < 5
    assert abs(y["t1"] - y["0.50"]) < 5


def test_the_policy_has_the_mean_weight_of_each_bin():
    svg = figures.policy(np.array([0.02, 0.03, 0.62]), np.array([0.98, 0.97, 0.11]), np.array([0.0, 0.5, 1.0]))
    assert {"anomaly score of the autoencoder", "probability of the classifier"} <= set(texts(svg))
    image = ET.fromstring(svg.replace("xlink:href", "href")).find(".//image")
    assert image is not None
    _, _, _, down, _, _ = map(float, re.findall(r"-?[\d.]+", image.get("transform")))
    data = base64.b64decode(image.get("href").partition(",")[2])
    rows = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))[:: 1 if down < 0 else -1]  # the lowest first
    np.testing.assert_array_equal(np.argwhere(rows[:, :, 3]), [[2, 12], [19, 0]])
    colour = matplotlib.colormaps["cividis"]
    np.testing.assert_allclose(rows[19, 0], np.array(colour(0.25)) * 255, atol=2)
    np.testing.assert_allclose(rows[2, 12], np.array(colour(1.0)) * 255, atol=2)


def test_every_point_is_a_dot_in_the_colour_of_its_group():
    points, groups = np.random.default_rng(0).normal(size=(60, 2)), ["attack"] * 20 + ["normal"] * 39 + ["other"]
    svg = figures.embedding(points, groups, np.array([0.5, 0.25]))
    said = texts(svg)
    assert {"normal (39)", "attack (20)", "other (1)", "component 1 (50 % of the variance)"} <= set(said)
    assert [max(d.count("L") for d in strokes(svg, i)) for i in range(3)] == [39, 20, 1]


def test_of_many_points_a_part_is_drawn():
    svg = figures.embedding(np.random.default_rng(0).normal(size=(9000, 2)), ["a"] * 9000)
    assert max(d.count("L") for d in strokes(svg, 0)) == 700
    assert "a (9000)" in texts(svg)


def test_one_point_and_equal_points_are_drawn():
    assert texts(figures.embedding(np.ones((1, 2)), ["a"]))
    assert texts(figures.embedding(np.ones((5, 2)), ["a"] * 5))


def test_where_there_is_nothing_there_is_no_picture():
    none = np.zeros(0)
    assert figures.score_histograms({"a": (none, none.astype(int))}) == ""
    assert figures.roc_curves({"a": (np.ones(3), np.ones(3, int))}) == ""
    assert figures.confusions({"a": np.zeros((2, 2), int)}) == ""
    assert figures.likeness(np.zeros((0, 3)), [], ["a", "b", "c"]) == ""
    assert figures.policy(none, none, none) == ""
    assert figures.policy(np.full(2, 1.5), np.zeros(2), np.zeros(2)) == ""
    assert figures.policy(np.full(2, 0.5), np.zeros(2), np.zeros(2))
    assert figures.embedding(np.zeros((0, 2)), []) == ""


@pytest.mark.parametrize("threshold", [0.0, 0.1])
def test_no_two_drawings_share_an_id(threshold):
    several = [figures.score_histograms({name: drawn()}, threshold) for name in ("a", "b")]
    several += [figures.roc_curves({"a": drawn()}), figures.roc_curves({"a": drawn(seed=1)})]
    ids = [set(re.findall(r' id="([^"]*)"', svg)) for svg in several]
    assert all(ids)
    assert len(set.union(*ids)) == sum(map(len, ids))
