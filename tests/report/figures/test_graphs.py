import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from kdjax.report.figures import graphs as graph_figures


def ring(n):
    return np.arange(n), (np.arange(n) + 1) % n


def graph(**changes):
    senders, receivers = ring(5)
    names = np.array([0x316, 0x18F, 0, 0x7FF, -1])
    return {
        "title": "normal",
        "names": names,
        "counts": [9, 1, 3, 3, 4],
        "senders": senders,
        "receivers": receivers,
    } | changes


def texts(svg):
    assert "http" not in svg
    return [text.text for text in ET.fromstring(svg).iter("text")]


def test_nodes_are_called_by_their_hexadecimal_id():
    svg = graph_figures.example_graphs([graph(), graph(title="attack: $x", scores=[0, 0.1, 0, 5.0, 0])])
    said = texts(svg)
    assert {"316", "18F", "0", "7FF", "?", "normal", "attack: $x"} <= set(said)
    assert said.count("7FF") == 2
    assert "orange: what the anomaly is made of" in said[-1]
    assert "var(--card)" in svg


def test_what_the_anomaly_is_made_of_is_coloured():
    def coloured(svg):
        return len(re.findall(r"fill: var\(--series-1\)", svg))

    assert coloured(graph_figures.example_graphs([graph()])) == 0
    assert coloured(graph_figures.example_graphs([graph(scores=[0, 1.0, 0, 5.0, 0.01])])) == 2


def test_edges_run_from_rim_to_rim_in_their_direction():
    place, radius = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, -1.0]]), np.array([0.1, 0.2, 0.1])
    lines, heads = graph_figures._edges(place, radius, np.array([0, 1, 2]), np.array([1, 0, 2]))
    assert len(lines) == 3
    assert len(heads) == 2  # a ring has none
    for (s, r), line, head in zip(((0, 1), (1, 0)), lines, heads, strict=False):
        assert np.linalg.norm(line.vertices[0] - place[s]) == pytest.approx(radius[s])
        assert np.linalg.norm(head.vertices[0] - place[r]) == pytest.approx(radius[r])
        assert np.linalg.norm(head.vertices[0] - place[s]) > np.linalg.norm(head.vertices[1] - place[s])
    assert lines[0].vertices[1, 1] < 0 < lines[1].vertices[1, 1]  # an edge and its reverse bend apart


@pytest.mark.parametrize("n", [1, 2, 3, 24, 60])
def test_nodes_lie_apart_and_in_the_picture(n):
    rng = np.random.default_rng(n)
    senders, receivers = rng.integers(0, n, (2, 2 * n))
    apart = 0.16 if n < 40 else 0.12
    place = graph_figures.spring(n, senders, receivers, apart)
    assert place.shape == (n, 2)
    assert np.abs(place).max() <= 1
    distance = np.linalg.norm(place[:, None] - place[None], axis=-1) + 9 * np.eye(n)
    assert distance.min() > 0.9 * apart
    np.testing.assert_array_equal(place, graph_figures.spring(n, senders, receivers, apart))


def test_neighbours_lie_nearer_than_others():
    order = np.random.default_rng(0).permutation(30)
    senders, receivers = order, np.roll(order, 1)
    place = graph_figures.spring(30, senders, receivers, 0.1)
    distance = np.linalg.norm(place[:, None] - place[None], axis=-1)
    assert distance[senders, receivers].mean() < 0.5 * distance[np.triu_indices(30, 1)].mean()


def test_graphs_that_are_hardly_any():
    none = np.zeros(0, int)
    single = graph(names=[5], counts=[100], senders=none, receivers=none)
    assert "5" in texts(graph_figures.example_graphs([single]))
    loop = graph(names=[5], counts=[100], senders=[0], receivers=[0])
    assert graph_figures.example_graphs([loop]) != graph_figures.example_graphs([single])
    bare = graph(names=none, counts=none, senders=none, receivers=none)
    assert "normal" in texts(graph_figures.example_graphs([bare]))
    assert graph_figures.example_graphs([]) == ""


def test_a_large_graph_stays_light():
    rng = np.random.default_rng(0)
    senders, receivers = rng.integers(0, 60, (2, 99))
    large = graph(names=np.arange(60), counts=np.ones(60), senders=senders, receivers=receivers)
    assert len(graph_figures.example_graphs([large])) < 80_000
