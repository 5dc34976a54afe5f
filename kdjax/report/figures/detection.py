"""Pictures of detection, from arrays to an SVG element (`drawing` says how they look), or "" where there is nothing.

Histograms, ROC curves and confusions take the width of the page, the others that of a column.
"""

import math
import textwrap
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from kdjax.report.figures.drawing import INK, SERIES, dots, drawing, plain, salt_of
from kdjax.report.metrics import detection

Sets = dict[str, tuple[np.ndarray, np.ndarray]]  # name -> scores, labels
NORMAL, ATTACK = SERIES[0], SERIES[1]
WIDTH = 4.4  # inches of a drawing in a column of the page: then its letters have the size of all others
LONG = 28  # letters of a name in a legend; longer ones stand one below the other
_DOTS = 700  # of a group; more would only make the page heavier
_BINS = 40
_UPRIGHT = 9  # letters of a class under its cell; longer names are turned


KINDS = ("normal", "attack")


def score_histograms(
    sets: Sets, threshold: float = math.nan, *, xlabel: str = "anomaly score", kinds: tuple[str, ...] = KINDS
) -> str:
    """How the scores of both classes lie about the threshold, a panel per set.

    Each class fills an area of its own size, however rare it is. The outermost bins hold all that lies beyond; the axis
    is logarithmic where scores are positive and have a long tail.
    """
    sets = {name: (s[np.isfinite(s)], y[np.isfinite(s)]) for name, (s, y) in sets.items()}
    sets = {name: pair for name, pair in sets.items() if len(pair[0])}
    if not sets:
        return ""
    edges, log = _edges(np.concatenate([s for s, _ in sets.values()]), threshold)
    columns = min(2, len(sets))
    rows = -(-len(sets) // columns)

    def paint(figure: Any) -> None:
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
        for ax in grid.flat[len(sets) :]:
            ax.set_axis_off()
        for i, (ax, (name, (scores, labels))) in enumerate(zip(grid.flat, sets.items(), strict=False)):
            for kind, label, colour in ((0, kinds[0], NORMAL), (1, kinds[1], ATTACK)):
                chosen = np.clip(scores[labels == kind], edges[0], edges[-1])
                share = np.histogram(chosen, edges)[0] / max(len(chosen), 1)
                ax.stairs(share, edges, fill=True, color=colour, alpha=0.4)
                ax.stairs(share, edges, color=colour, linewidth=1.2, label=plain(label) if i == 0 else None)
            if math.isfinite(threshold):
                said = f"threshold {threshold:.3g}" if i == 0 else None
                ax.axvline(threshold, color=INK, linewidth=1.2, linestyle="--", label=said)
            count = ", ".join(f"{np.sum(labels == i)} {kind}" for i, kind in enumerate(kinds))
            ax.set_title(plain(f"{name}: {count}"), fontsize=8)
            if log:
                ax.set_xscale("log")
            ax.set_xlim(edges[0], edges[-1])
            ax.set_ylim(bottom=0)
            ax.grid(color=INK, alpha=0.12, linewidth=0.6)
            ax.tick_params(labelbottom=i + columns >= len(sets))
        figure.supxlabel(xlabel, fontsize=8.5)
        figure.supylabel("share of the class", fontsize=8.5)
        figure.legend(loc="outside upper left", ncols=3, frameon=False, handlelength=1.4)

    return drawing(
        paint,
        (3.4 * columns + 1.0, 1.55 * rows + 1.0),
        salt=salt_of("histograms", xlabel, threshold, *kinds, *sets, *sum(sets.values(), ())),
    )


def _edges(scores: Float[np.ndarray, " n"], threshold: float) -> tuple[Float64[np.ndarray, " m"], bool]:
    low, middle, high = np.quantile(scores.astype(np.float64), (0.001, 0.5, 0.999)).tolist()
    if math.isfinite(threshold):
        low, high = min(low, threshold), max(high, threshold)
    log = low > 0 and high > 20 * middle
    if high <= low:
        low, high = low - 0.5, high + 0.5
    if log:
        return np.geomspace(low / 1.1, high * 1.1, _BINS + 1), True
    pad = 0.03 * (high - low)
    return np.linspace(low - pad, high + pad, _BINS + 1), False


def roc_curves(models: Sets) -> str:
    """Recall against false-positive rate, a line per model with its AUC.

    Where all models are good (AUC above 0.95), false-positive rates are logarithmic, down to less than one false alarm,
    and recall begins where it is without any.
    """
    models = {name: pair for name, pair in models.items() if not math.isnan(detection.auc(*pair))}
    if not models:
        return ""
    areas = {name: detection.auc(*pair) for name, pair in models.items()}
    least = min(0.5 / np.sum(labels == 0) for _, labels in models.values())
    log = min(areas.values()) > 0.95
    columns = 2 if max(map(len, models)) <= LONG else 1

    def paint(figure: Any) -> None:
        ax = figure.subplots()
        for i, (name, pair) in enumerate(models.items()):
            x, y = _thinned(*detection.roc(*pair))
            dash, colour = "-" if i < len(SERIES) else "--", SERIES[i % len(SERIES)]
            x = np.maximum(x, least) if log else x
            step = "steps-post" if log else "default"
            ax.plot(
                x, y, dash, color=colour, drawstyle=step, label=plain(f"{name}, AUC {areas[name]:.4f}"), linewidth=1.5
            )
        if log:
            silent = (y[x == 0].max() for x, y in (detection.roc(*pair) for pair in models.values()))
            bottom = min(0.9, *silent)
            ax.set_xscale("log")
            ax.set_xlim(least, 1)
            ax.set_ylim(max(0.0, bottom - 0.1 * (1 - bottom)), 1 + 0.03 * (1 - bottom))
        else:
            ax.plot((0, 1), (0, 1), color=INK, alpha=0.4, linewidth=0.8, linestyle=":", label="by chance")
            ax.set_xlim(0, 1)
            ax.set_ylim(0, 1.02)
        ax.grid(color=INK, alpha=0.12, linewidth=0.6)
        ax.set_xlabel("false-positive rate")
        ax.set_ylabel("recall")
        figure.legend(loc="outside upper left", ncols=columns, frameon=False, handlelength=1.4)

    return drawing(
        paint, (5.4, 3.2 + 0.18 * (len(models) + 2) // columns), salt=salt_of("roc", *models, *sum(models.values(), ()))
    )


def _thinned(x: Float64[np.ndarray, " n"], y: Float64[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
    keep = np.unique(np.linspace(0, len(x) - 1, 400).round().astype(int))
    return x[keep], y[keep]


def confusions(counts: dict[str, np.ndarray], classes: tuple[str, ...] = KINDS) -> str:
    """A table [truth, prediction] for each name: how many, and which share of that truth; the shade is the share."""
    counts = {name: table for name, table in counts.items() if table.sum()}
    if not counts:
        return ""
    wide, high = 0.68 * len(classes) + 0.2, 0.55 * len(classes) + 0.65
    columns = max(1, min(4, len(counts), int(7.5 / wide)))  # wider drawings the page makes smaller, letters and all
    longest = max(map(len, classes))

    def paint(figure: Any) -> None:
        grid = figure.subplots(-(-len(counts) // columns), columns, squeeze=False)
        for ax in grid.flat[len(counts) :]:
            ax.set_axis_off()
        for i, (ax, (name, table)) in enumerate(zip(grid.flat, counts.items(), strict=False)):
            share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
            _cells(ax, share, np.vectorize(lambda n, s: f"{n}\n{100 * s:.1f} %", otypes=[object])(table, share))
            ax.set_xticks(range(len(classes)), map(plain, classes), rotation=90 if longest > _UPRIGHT else 0)
            ax.set_yticks(range(len(classes)), map(plain, classes) if i % columns == 0 else [""] * len(classes))
            ax.set_title(plain(textwrap.fill(name, 9 * len(classes))), fontsize=8)
        figure.supxlabel("prediction", fontsize=8.5)
        figure.supylabel("truth", fontsize=8.5)

    high += 0.08 * longest if longest > _UPRIGHT else 0.0
    size = (max(WIDTH, wide * columns + 0.9), high * -(-len(counts) // columns) + 0.3)
    return drawing(paint, size, salt=salt_of("confusion", *classes, *counts, *counts.values()))


def likeness(cka: Float[np.ndarray, "t s"], teacher: list[str], student: list[str]) -> str:
    """A heat map of `cka.similarities`: a row per layer of the teacher (the deepest on top), a column per student's."""
    if not cka.size:
        return ""

    def paint(figure: Any) -> None:
        ax = figure.subplots()
        said = np.vectorize(lambda v: "–" if math.isnan(v) else f"{v:.2f}", otypes=[object])(cka)
        _cells(ax, np.nan_to_num(cka), said)
        ax.invert_yaxis()
        ax.set_xticks(range(len(student)), [plain(name) for name in student], rotation=30 if len(student) > 4 else 0)
        ax.set_yticks(range(len(teacher)), [plain(name) for name in teacher])
        ax.set_xlabel("layer of the student")
        ax.set_ylabel("layer of the teacher")

    longest = max(map(len, teacher))
    size = (max(WIDTH, 0.5 * len(student) + 0.07 * longest + 0.9), 0.38 * len(teacher) + 0.8)
    return drawing(paint, size, salt=salt_of("cka", teacher, student, cka))


def _cells(ax: Any, share: Float[np.ndarray, "r c"], said: np.ndarray) -> None:
    """Cells shaded by a share in [0, 1], never so much that the page's text colour could not be read on them."""
    from matplotlib.patches import Rectangle

    for (r, c), value in np.ndenumerate(share):
        shade = 0.03 + 0.52 * float(np.clip(value, 0, 1))
        ax.add_patch(Rectangle((c - 0.48, r - 0.48), 0.96, 0.96, facecolor=NORMAL, alpha=shade, linewidth=0))
        ax.text(c, r, said[r, c], ha="center", va="center", fontsize=7.5)
    ax.set_xlim(-0.5, share.shape[1] - 0.5)
    ax.set_ylim(share.shape[0] - 0.5, -0.5)
    ax.set_box_aspect(0.75 * share.shape[0] / share.shape[1])
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def policy(
    anomaly: Float[np.ndarray, " n"], probability: Float[np.ndarray, " n"], alpha: Float[np.ndarray, " n"]
) -> str:
    """Which weight a fusion agent gives where: the mean alpha of the graphs in each bin of both scores, in [0, 1].

    Alpha 0 believes the anomaly score alone, 1 the probability alone. The line is where the fused score is 0.5.
    """
    bins, outer = 20, [(0.0, 1.0), (0.0, 1.0)]
    counts, _, _ = np.histogram2d(probability, anomaly, bins, outer)
    total, _, _ = np.histogram2d(probability, anomaly, bins, outer, weights=alpha)
    if not counts.any():
        return ""
    mean = np.where(counts > 0, total / np.maximum(counts, 1), math.nan)
    centres = (np.arange(bins) + 0.5) / bins
    fused = (1 - mean) * centres[None, :] + mean * centres[:, None]

    def paint(figure: Any) -> None:
        ax = figure.subplots()
        image = ax.imshow(
            mean,
            cmap="cividis",
            vmin=0,
            vmax=1,
            origin="lower",
            extent=(0, 1, 0, 1),
            interpolation="none",
            aspect="auto",
        )
        if np.nanmin(fused) < 0.5 < np.nanmax(fused):
            ax.contour(centres, centres, np.ma.masked_invalid(fused), [0.5], colors="#000000", linewidths=2.6)
            ax.contour(centres, centres, np.ma.masked_invalid(fused), [0.5], colors="#ffffff", linewidths=1.2)
        ax.set_xlabel("anomaly score of the autoencoder")
        ax.set_ylabel("probability of the classifier")
        bar = figure.colorbar(image, ax=ax, ticks=[0, 0.5, 1], shrink=0.9)
        bar.ax.set_yticklabels(["α = 0, anomaly\nscore alone", "α = 0.5", "α = 1, proba-\nbility alone"])
        bar.outline.set_visible(False)

    return drawing(paint, (WIDTH, 3.1), salt=salt_of("policy", mean))


def embedding(points: Float[np.ndarray, "n 2"], groups: list[str], share: Float[np.ndarray, " 2"] | None = None) -> str:
    """Points in the plane, a colour per group; the smallest group lies on top. `share` is that of the variance.

    Of large groups a part is drawn, evenly taken.
    """
    if not len(points):
        return ""
    names = np.array(groups)
    order = sorted(dict.fromkeys(groups), key=lambda name: ({"normal": 0, "attack": 1}.get(name, 2), name))
    members = {name: np.flatnonzero(names == name) for name in order}

    def paint(figure: Any) -> None:
        ax = figure.subplots()
        for i, (name, chosen) in enumerate(members.items()):
            shown = chosen[np.unique(np.linspace(0, len(chosen) - 1, _DOTS).round().astype(int))]
            said = plain(f"{name} ({len(chosen)})")
            dots(ax, points[shown], SERIES[i % len(SERIES)], said, order=1 + 1 / len(chosen))
        for axis, limit in ((0, ax.set_xlim), (1, ax.set_ylim)):
            low, high = points[:, axis].min(), points[:, axis].max()
            limit(low - 0.04 * (high - low) - 1e-9, high + 0.04 * (high - low) + 1e-9)
        part = ["", ""] if share is None else [f" ({100 * s:.0f} % of the variance)" for s in share]
        ax.set_xlabel(f"component 1{part[0]}")
        ax.set_ylabel(f"component 2{part[1]}")
        ax.grid(color=INK, alpha=0.12, linewidth=0.6)
        figure.legend(loc="outside upper left", ncols=columns, frameon=False, handlelength=1.0, fontsize=7.5)

    columns = max(1, 70 // (12 + max(map(len, order))))
    height = 3.0 + 0.17 * -(-len(order) // columns)
    return drawing(paint, (WIDTH, height), salt=salt_of("embedding", groups, points))
