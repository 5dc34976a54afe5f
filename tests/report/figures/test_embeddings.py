import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from kdjax.report.figures import embeddings


def texts(svg):
    assert "http" not in svg
    assert not re.search("#01020[34]", svg)
    return [text.text for text in ET.fromstring(svg.replace("xlink:href", "href")).iter("text")]


def dots(svg):
    """Of each group in each panel, in the order of drawing: colour of the page and number of dots."""
    paths = [(e.get("d"), e.get("style") or "") for e in ET.fromstring(svg.replace("xlink:href", "href")).iter("path")]
    strokes = [(re.search(r"stroke: var\((--\w+-?\d?)\)", style), d.count("L")) for d, style in paths if d]
    return [(colour[1], count) for colour, count in strokes if colour and count]


def drawn(counts, d=5, spread=8.0, seed=0):
    """Clusters, one for each class, in no order."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    centres = spread * rng.normal(size=(len(counts), d))
    return centres[labels] + rng.normal(size=(len(labels), d)), labels


def test_each_model_has_a_panel_and_each_class_its_colour():
    features, labels = drawn((20, 12, 8))
    labels[labels == 1] = np.where(np.arange(12) < 2, -1, 1)
    svg = embeddings.tsne({"teacher $1": features, "student": features[:, :2]}, labels, ["cat", "dog", "_eel"])
    assert texts(svg) == ["teacher $1", "student", "cat", "dog", "eel"]
    assert dots(svg) == 2 * [("--series-0", 20), ("--series-1", 10), ("--series-2", 8)]
    assert svg == embeddings.tsne({"teacher $1": features, "student": features[:, :2]}, labels, ["cat", "dog", "_eel"])


def test_clusters_stay_together():
    features, labels = drawn((30, 30))
    places = embeddings._places(features)
    distance = np.linalg.norm(places[:, None] - places[None], axis=-1) + 1e9 * np.eye(60)
    assert (labels[distance.argmin(axis=1)] == labels).all()


def test_of_many_classes_the_most_frequent_are_coloured():
    counts = [2, *[6] * 14, 3]
    features, labels = drawn(counts)
    svg = embeddings.tsne({"a": features}, labels, [f"kind {k}" for k in range(16)])
    said = texts(svg)
    assert "2 more classes" in said
    assert {"kind 1", "kind 14"} <= set(said)
    assert not {"kind 0", "kind 15"} & set(said)
    drawing = dots(svg)
    assert drawing.count(("--card", 6)) == 7, "rings"
    assert ("--series-6", 5) in drawing, "grey"


def test_of_many_examples_a_part_is_drawn(monkeypatch):
    monkeypatch.setattr(embeddings, "POINTS", 40)
    features, labels = drawn((300, 300))
    svg = embeddings.tsne({"a": features}, labels, ["a", "b"])
    assert sum(count for _, count in dots(svg)) == 40


@pytest.mark.parametrize("broken", [np.ones((12, 3)), np.full((12, 3), np.nan), np.zeros((12, 0))])
def test_a_collapsed_model_is_named_beside_the_others(broken):
    features, labels = drawn((6, 6))
    said = texts(embeddings.tsne({"student": broken, "teacher": features}, labels, ["cat", "dog"]))
    assert {"student", "teacher", "cat", "dog", "the embeddings are all alike"} <= set(said)
    assert "cat" not in texts(embeddings.tsne({"student": broken}, labels, ["cat", "dog"]))


@pytest.mark.parametrize("n", [4, 5, 9])
@pytest.mark.parametrize("d", [1, 2, 40])
def test_few_examples_and_any_width(n, d):
    features, labels = drawn((n,), d)
    assert dots(embeddings.tsne({"a": features.astype(np.float32)}, labels, ["x"])) == [("--series-0", n)]


def test_where_there_is_nothing_there_is_no_picture():
    features, labels = drawn((3,))
    assert embeddings.tsne({"a": features}, labels, ["x"]) == ""
    assert embeddings.tsne({}, np.zeros(9, int), ["x"]) == ""
    assert embeddings.tsne({"a": np.ones((9, 2))}, np.full(9, -1), ["x"]) == ""
