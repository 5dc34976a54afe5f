"""Embeddings in the plane by t-SNE (van der Maaten and Hinton 2008), one model beside the other."""

import textwrap
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Integer

from kdjax.report.figures.drawing import SERIES, dots, drawing, plain, salt_of

POINTS = 500  # of a panel; 500 take about a second
_GREY = 6  # of SERIES: for the classes that have no colour of their own
_COLOURS = [colour for i, colour in enumerate(SERIES) if i != _GREY]


def tsne(sides: dict[str, Float[np.ndarray, "n _"]], labels: Integer[np.ndarray, " n"], class_names: list[str]) -> str:
    """The embeddings of the same examples by each model, a panel per model, as an SVG element; "" for fewer than four.

    The colours are those of the classes: a filled dot for the first seven, a ring for seven more; of more than 14
    classes the most frequent have theirs. Examples without a label (-1) are left out, of many `POINTS` are drawn. The
    same input gives the same picture. Only who is near whom means something: not the axes, nor the size of a cluster.
    """
    labelled = np.flatnonzero(labels >= 0)
    if len(labelled) < 4 or not sides:
        return ""
    chosen = np.sort(np.random.default_rng(0).permutation(labelled)[:POINTS])
    places = {title: _places(features[chosen]) for title, features in sides.items()}
    classes, counts = np.unique(labels[chosen], return_counts=True)
    coloured = np.sort(classes[np.argsort(-counts, kind="stable")][: 2 * len(_COLOURS)])
    groups = {class_names[k]: labels[chosen] == k for k in coloured}
    others = ~np.isin(labels[chosen], coloured)
    columns = min(3, len(sides))
    rows = -(-len(sides) // columns)
    legend_columns = max(1, int(50 * columns) // (6 + max(map(len, groups))))

    def paint(figure: Any) -> None:
        grid = figure.subplots(rows, columns, squeeze=False)
        for ax in grid.flat[len(sides) :]:
            ax.set_axis_off()
        for ax, (title, points) in zip(grid.flat, places.items(), strict=False):
            ax.set_title(plain(textwrap.fill(title, 40)), fontsize=8.5)
            ax.set(xticks=[], yticks=[])
            for spine in ax.spines.values():
                spine.set(visible=True, alpha=0.25, linewidth=0.6)
            if points is None:
                ax.text(0.5, 0.5, "the embeddings are all alike\nor not finite", ha="center", va="center")
                continue
            for i, (name, members) in enumerate(groups.items()):
                hollow = i >= len(_COLOURS)
                dots(ax, points[members], _COLOURS[i % len(_COLOURS)], plain(name), hollow=hollow)
            if others.any():
                dots(ax, points[others], SERIES[_GREY], f"{len(classes) - len(coloured)} more classes", order=0.5)
            margin = 0.04 * np.ptp(points, axis=0).max() + 1e-9
            ax.set_xlim(points[:, 0].min() - margin, points[:, 0].max() + margin)
            ax.set_ylim(points[:, 1].min() - margin, points[:, 1].max() + margin)
        drawn = next((ax for ax in grid.flat if ax.lines), None)
        if drawn is not None:
            handles, names = drawn.get_legend_handles_labels()
            place = {"loc": "outside upper left", "ncols": legend_columns, "frameon": False, "fontsize": 7.5}
            figure.legend(handles, names, handlelength=1.0, **place)

    legend_lines = -(-(len(groups) + bool(others.any())) // legend_columns)
    size = (3.2 * columns + 0.2, 3.1 * rows + 0.2 + 0.17 * legend_lines)
    salt = salt_of("tsne", class_names, *sides, labels[chosen], *(features[chosen] for features in sides.values()))
    return drawing(paint, size, salt=salt)


def _places(features: Float[np.ndarray, "n d"]) -> Float32[np.ndarray, "n 2"] | None:
    """None where there is nothing to tell the examples apart by."""
    from sklearn.manifold import TSNE

    features = features.astype(np.float64)
    if not 0 < np.ptp(features, axis=0).max(initial=0.0) < np.inf:
        return None
    if features.shape[1] == 1:  # the start from principal components takes two
        features = np.pad(features, ((0, 0), (0, 1)))
    perplexity = min(30.0, (len(features) - 1) / 3)  # about that many neighbours: there have to be more
    return TSNE(init="pca", perplexity=perplexity, random_state=0).fit_transform(features)
