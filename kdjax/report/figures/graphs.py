"""Pictures of graphs of CAN traffic: which id follows which."""

import math
from typing import Any

import numpy as np
from jaxtyping import Float64, Integer

from kdjax.report.figures.drawing import INK, PAPER, SERIES, drawing, plain, salt_of

_LEAST, _MOST = 0.075, 0.12  # radius of a node; the picture reaches from -1 to 1
_BEND = 0.14  # of an edge's length, to its right, so that an edge and its reverse do not lie on each other


def example_graphs(graphs: list[dict[str, Any]]) -> str:
    """Graphs side by side, two in a row, as an SVG element; "" where there are none.

    A graph: "title", "names" int [n] (CAN ids, negative for one that is unknown), "counts" [n] messages of each,
    "senders" and "receivers" int [e]; and, if known, "scores" [n] >= 0, how much each node adds to the anomaly.
    """
    if not graphs:
        return ""
    columns = min(2, len(graphs))
    rows = -(-len(graphs) // columns)

    def paint(figure: Any) -> None:
        grid = figure.subplots(rows, columns, squeeze=False)
        for ax in grid.flat:
            ax.set_axis_off()
        for ax, graph in zip(grid.flat, graphs, strict=False):
            _draw(ax, graph)
        said = "node: CAN id, larger with more messages; arrow: the id that comes next"
        if any("scores" in graph for graph in graphs):
            said += "; orange: what the anomaly is made of"
        figure.supxlabel(said, fontsize=8)

    return drawing(
        paint, (3.5 * columns, 3.6 * rows + 0.25), salt=salt_of(*(part for graph in graphs for part in graph.values()))
    )


def _draw(ax: Any, graph: dict[str, Any]) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    names, counts = np.asarray(graph["names"]), np.asarray(graph["counts"], float)
    senders, receivers = np.asarray(graph["senders"], int), np.asarray(graph["receivers"], int)
    radius = _LEAST + (_MOST - _LEAST) * np.sqrt(counts / max(counts.max(initial=0.0), 1e-12))
    if len(names) > 40:
        radius = radius * math.sqrt(40 / len(names))
    place = spring(len(names), senders, receivers, 2.1 * float(radius.max(initial=0.0)))
    lines, heads = _edges(place, radius, senders, receivers)
    if lines:
        ax.add_patch(
            PathPatch(Path.make_compound_path(*lines), facecolor="none", edgecolor=INK, alpha=0.45, linewidth=0.7)
        )
        ax.add_patch(PathPatch(Path.make_compound_path(*heads), facecolor=INK, alpha=0.6, linewidth=0))
    scores = np.asarray(graph.get("scores", np.zeros(len(names))), float)
    strength = scores / max(scores.max(initial=0.0), 1e-12)
    circles = [_circle(at, size) for at, size in zip(place, radius, strict=True)]
    for chosen, colour in ((strength <= 0.5, SERIES[0]), (strength > 0.5, SERIES[1])):
        rims = [circle for circle, inside in zip(circles, chosen, strict=True) if inside]
        if rims:
            nodes = Path.make_compound_path(*rims)
            ax.add_patch(PathPatch(nodes, facecolor=PAPER, edgecolor=colour, linewidth=0.9))
    quiet = [circle for circle, s in zip(circles, strength, strict=True) if s <= 0.1]
    if quiet:
        ax.add_patch(PathPatch(Path.make_compound_path(*quiet), facecolor=SERIES[0], alpha=0.2, linewidth=0))
    for i, name in enumerate(names.tolist()):
        if strength[i] > 0.1:
            ax.add_patch(PathPatch(circles[i], facecolor=SERIES[1], alpha=0.65 * strength[i], linewidth=0))
        size = 6.2 * min(1.0, float(radius[i]) / _LEAST)
        ax.text(*place[i], "?" if name < 0 else f"{name:X}", ha="center", va="center", fontsize=size)
    ax.set_title(plain(str(graph["title"])), fontsize=8.5)
    ax.set_xlim(-1.15, 1.15)
    ax.set_ylim(-1.15, 1.15)
    ax.set_aspect("equal")


def spring(
    n: int, senders: Integer[np.ndarray, " e"], receivers: Integer[np.ndarray, " e"], apart: float
) -> Float64[np.ndarray, "{n} 2"]:
    """Places in [-1, 1]: neighbours attract, all repel (Fruchterman and Reingold 1991), none nearer than `apart`.

    It starts from a circle, so that the same graph always gives the same picture.
    """
    angle = 2 * math.pi * np.arange(n) / max(n, 1)
    place = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    if n < 3:
        return 0.6 * place
    near = np.zeros((n, n))
    near[senders, receivers] = near[receivers, senders] = 1.0
    rest = 1.3 / math.sqrt(n)
    for heat in np.linspace(0.12, 0.002, 220):
        away = place[:, None, :] - place[None, :, :]
        distance = np.maximum(np.linalg.norm(away, axis=-1), 0.01)
        pull = rest**2 / distance**2 - near * distance / rest
        force = (away * pull[:, :, None]).sum(axis=1) - 0.8 * place  # the last keeps loose parts in sight
        size = np.maximum(np.linalg.norm(force, axis=1, keepdims=True), 1e-9)
        place = place + force / size * np.minimum(size * 0.1, heat)
    low, high = place.min(axis=0, keepdims=True), place.max(axis=0, keepdims=True)
    place = 2 * (place - low) / np.maximum(high - low, 1e-9) - 1
    for _ in range(200):
        away = place[:, None, :] - place[None, :, :]
        distance = np.linalg.norm(away, axis=-1) + 1e9 * np.eye(n)
        lack = np.maximum(apart - distance, 0.0) / np.maximum(distance, 1e-6)
        place = np.clip(place + 0.4 * (away * lack[:, :, None]).sum(axis=1), -1, 1)
    return place


def _edges(
    place: Float64[np.ndarray, "n 2"],
    radius: Float64[np.ndarray, " n"],
    senders: Integer[np.ndarray, " e"],
    receivers: Integer[np.ndarray, " e"],
) -> tuple[list[Any], list[Any]]:
    """Curves from rim to rim, and their arrow heads; an edge to itself is a ring outside the node."""
    from matplotlib.path import Path

    lines, heads = [], []
    for s, r in zip(senders, receivers, strict=True):
        a, b = place[s], place[r]
        if s == r:
            out = a / max(float(np.linalg.norm(a)), 1e-9)
            lines.append(_circle(a + out * radius[s] * 1.3, 0.6 * float(radius[s])))
            continue
        along = b - a
        length = max(float(np.linalg.norm(along)), 1e-9)
        middle = (a + b) / 2 + _BEND * np.array([along[1], -along[0]])
        start, end = (_towards(p, middle, float(radius[i])) for p, i in ((a, s), (b, r)))
        way = (end - middle) / max(float(np.linalg.norm(end - middle)), 1e-9)
        side, back = 0.017 * np.array([way[1], -way[0]]), end - 0.05 * way
        if length > radius[s] + radius[r]:
            lines.append(Path([start, middle, back], [Path.MOVETO, Path.CURVE3, Path.CURVE3]))
            codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
            heads.append(Path([end, back + side, back - side, end], codes))
    return lines, heads


def _circle(centre: Float64[np.ndarray, " 2"], radius: float) -> Any:
    """A circle of four arcs; matplotlib's own has eight, and a picture has many circles."""
    from matplotlib.path import Path

    k = 4 / 3 * (math.sqrt(2) - 1)
    arc = np.array([(1, k), (k, 1), (0, 1)])
    points, turn = [np.array([(1.0, 0.0)])], np.array([[0.0, 1.0], [-1.0, 0.0]])
    for _ in range(4):
        points.append(arc)
        arc = arc @ turn
    codes = [Path.MOVETO, *[Path.CURVE4] * 12]
    return Path(centre[None, :] + radius * np.concatenate(points), codes)


def _towards(a: Float64[np.ndarray, " 2"], b: Float64[np.ndarray, " 2"], step: float) -> Float64[np.ndarray, " 2"]:
    return a + (b - a) / max(float(np.linalg.norm(b - a)), 1e-9) * step
