"""Pictures of classification, from arrays to an SVG element (`drawing` says how they look), or "" without examples."""

import math
import textwrap
from typing import Any

import numpy as np
from jaxtyping import Integer

from kdjax.report.figures import detection
from kdjax.report.figures.drawing import INK, SERIES, drawing, plain, salt_of
from kdjax.report.metrics import classification, outside

_COUNTED = 8  # classes up to which the numbers fit into the cells
_NAMED = 30  # ... and up to which their names fit along the axes
ENERGY = "energy, -log Σ exp(logits)"


def confusions(counts: dict[str, Integer[np.ndarray, "k k"]], class_names: list[str]) -> str:
    """A table [truth, prediction] for each model: the shade of a cell is its share of the true class.

    Few classes have their numbers in the cells; the shades of many are those of the root, so that rare errors show.
    """
    if len(class_names) <= _COUNTED:
        return detection.confusions(counts, tuple(_short(name) for name in class_names))
    counts = {title: table for title, table in counts.items() if table.sum()}
    if not counts:
        return ""
    columns = min(2, len(counts))
    rows = -(-len(counts) // columns)
    names = [_short(name) for name in class_names]

    def paint(figure: Any) -> None:
        from matplotlib.colors import LinearSegmentedColormap, PowerNorm, to_rgb

        colour = to_rgb(SERIES[0])  # from nothing, which leaves the paper of the page, to its full strength
        shades = LinearSegmentedColormap.from_list("share", [(*colour, 0.0), (*colour, 1.0)])
        grid = figure.subplots(rows, columns, squeeze=False)
        for ax in grid.flat[len(counts) :]:
            ax.set_axis_off()
        for i, (ax, (title, table)) in enumerate(zip(grid.flat, counts.items(), strict=False)):
            share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
            image = ax.imshow(share, cmap=shades, norm=PowerNorm(0.5, 0, 1), interpolation="none")
            ax.set_title(plain(textwrap.fill(title, 40)), fontsize=8)
            _class_ticks(ax, names, named_rows=i % columns == 0)
            for spine in ax.spines.values():
                spine.set(visible=True, linewidth=0.5, alpha=0.4)
        bar = figure.colorbar(image, ax=grid, ticks=[0, 0.01, 0.1, 0.5, 1], shrink=0.6, aspect=30, pad=0.02)
        bar.ax.set_yticklabels(["0", "1 %", "10 %", "50 %", "100 %"])
        bar.outline.set(linewidth=0.5, alpha=0.4)
        figure.supxlabel("prediction", fontsize=8.5)
        figure.supylabel("truth", fontsize=8.5)

    margin = 0.06 * max(map(len, names)) if len(names) <= _NAMED else 0.3
    size = (3.1 * columns + margin + 1.0, (3.1 + margin) * rows + 0.4)
    return drawing(paint, size, salt=salt_of("confusions", class_names, *counts, *counts.values()))


def _class_ticks(ax: Any, names: list[str], *, named_rows: bool) -> None:
    """Names along both axes; of more classes than fit, the number of every tenth."""
    many = len(names) > _NAMED
    places = range(0, len(names), 10 if many else 1)
    labels = [str(place) for place in places] if many else [plain(name) for name in names]
    size = 7.5 if many else min(7.5, 190 / len(names))
    ax.set_xticks(places, labels, fontsize=size, rotation=0 if many else 90)
    ax.set_yticks(places, labels if named_rows else [""] * len(labels), fontsize=size)
    ax.tick_params(length=2 if many else 0)


def _short(name: str) -> str:
    return textwrap.shorten(name, 18, placeholder="…") if " " in name else name[:17] + "…" * (len(name) > 17)


Models = dict[str, tuple[np.ndarray, np.ndarray]]  # title -> logits [n, k], labels [n]


def reliability(models: Models, scaled: Models | None = None) -> str:
    """Accuracy against confidence, a line per model, with its ECE; beside it the same after temperature scaling.

    On the diagonal a model is right as often as it claims, below it is too sure. Under it stands the share of the
    examples that have such a confidence.
    """
    panels = {"as it is" if scaled else "": _curves(models), "after temperature scaling": _curves(scaled or {})}
    panels = {heading: curves for heading, curves in panels.items() if curves}
    titles = list(dict.fromkeys(title for curves in panels.values() for title in curves))
    if not titles:
        return ""
    least = min(confidence[0] for curves in panels.values() for confidence, *_ in curves.values())
    errors = {
        title: [f"{_ece(curves[title]):.3f}" for curves in panels.values() if title in curves] for title in titles
    }

    def paint(figure: Any) -> None:
        grid = figure.subplots(2, len(panels), sharex=True, sharey="row", height_ratios=(3, 1), squeeze=False)
        for (upper, lower), (heading, curves) in zip(grid.T, panels.items(), strict=True):
            for title, (confidence, accuracy, share) in curves.items():
                i = titles.index(title)
                line = {"color": SERIES[i % len(SERIES)], "marker": "o", "markersize": 3, "linewidth": 1.5}
                line["linestyle"] = "-" if i < len(SERIES) else "--"
                upper.plot(confidence, accuracy, label=plain(f"{title}, ECE {' → '.join(errors[title])}"), **line)
                lower.plot(confidence, share, **line)
            upper.plot((0, 1), (0, 1), color=INK, alpha=0.4, linewidth=0.8, linestyle=":", label="as sure as right")
            upper.set_title(heading, fontsize=8.5)
            lower.set_xlabel("confidence")
            for ax in (upper, lower):
                ax.grid(color=INK, alpha=0.12, linewidth=0.6)
        lower.set_xlim(max(0.0, math.floor(10 * least) / 10 - 0.02), 1.02)
        grid[0, 0].set_ylim(-0.02, 1.02)
        grid[1, 0].set_ylim(bottom=0)
        grid[0, 0].set_ylabel("accuracy")
        grid[1, 0].set_ylabel("share")
        figure.legend(
            *grid[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False, handlelength=1.4
        )

    size = (detection.WIDTH + 2.6 * (len(panels) - 1), 3.4 + 0.18 * ((len(titles) + 2) // 2))
    arrays = [array for curves in panels.values() for curve in curves.values() for array in curve]
    return drawing(paint, size, salt=salt_of("reliability", *panels, *titles, *arrays))


def _curves(models: Models) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    curves = {title: classification.calibration(*pair) for title, pair in models.items()}
    return {title: curve for title, curve in curves.items() if len(curve[0])}


def _ece(curve: tuple[np.ndarray, np.ndarray, np.ndarray]) -> float:
    confidence, accuracy, share = curve
    return float(np.sum(share * np.abs(accuracy - confidence)))


def energies(models: Models, known: dict[str, np.ndarray] | None = None) -> str:
    """How the energies of labelled examples lie, of those that are told rightly and of the others, a panel per model.

    The energy of an example is -log Σ exp of its logits (Liu et al. 2020, arXiv 2010.03759), or the one in `known`: the
    higher it is, the less the example is like what the model was trained on.
    """
    sets = {}
    for title, (logits, labels) in models.items():
        values = (known or {}).get(title, outside.energy(logits))
        sets[title] = values[labels >= 0], (logits.argmax(axis=1) != labels).astype(int)[labels >= 0]
    return detection.score_histograms(sets, xlabel=ENERGY, kinds=("told rightly", "told wrongly"))
