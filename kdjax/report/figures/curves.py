"""Pictures of a run: masks drawn over images, and curves over the training (`drawing` says how they look)."""

import io
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer, UInt8
from PIL import Image

from kdjax.report.figures.drawing import INK, SERIES, drawing, plain

SKY, ORANGE, GREEN, YELLOW = (86, 180, 233), (230, 159, 0), (0, 158, 115), (240, 228, 66)
BLUE, VERMILLION, PURPLE, WHITE = (0, 114, 178), (213, 94, 0), (204, 121, 167), (255, 255, 255)
CLASSES = (SKY, ORANGE, GREEN, PURPLE, VERMILLION, BLUE)  # of class 1, 2, ...; from the start again after the last
TRUTH = YELLOW
ERRORS = {"found": WHITE, "false alarm": ORANGE, "missed": PURPLE, "wrong class": GREEN}

Points = list[tuple[float, float]]
Lines = dict[str, Points]  # name in the legend -> (x, y)
_POINTS = 200  # of a curve; more would only make the page heavier


# -- masks over images -----------------------------------------------------------------------------------------------


def overlay(
    image: UInt8[np.ndarray, "h w 3"],
    mask: Integer[np.ndarray, "h w"],
    truth: Integer[np.ndarray, "h w"] | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """The image with each class of `mask` tinted and outlined in its colour, and the outline of `truth` in yellow."""
    shown = image.astype(np.float32)
    width = max(1, round(min(mask.shape) / 150))
    for k in np.unique(mask[mask > 0]):
        colour = np.array(CLASSES[(int(k) - 1) % len(CLASSES)], np.float32)
        inside, line = mask == k, outline(mask == k, width)
        shown[inside] = 0.7 * shown[inside] + 0.3 * colour
        shown[line] = colour
    if truth is not None:
        for k in np.unique(truth[truth > 0]):
            shown[outline(truth == k, width)] = TRUTH
    return shown.round().astype(np.uint8)


def errors(
    image: UInt8[np.ndarray, "h w 3"], predicted: Integer[np.ndarray, "h w"], truth: Integer[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """The darkened image with what was found, false alarms, misses and confused classes in the colours of `ERRORS`."""
    where = {
        "found": (predicted == truth) & (truth > 0),
        "false alarm": (predicted > 0) & (truth == 0),
        "missed": (predicted == 0) & (truth > 0),
        "wrong class": (predicted != truth) & (predicted > 0) & (truth > 0),
    }
    shown = image.astype(np.float32) * 0.55
    for kind, pixels in where.items():
        strength = 0.25 if kind == "found" else 0.7
        shown[pixels] = (1 - strength) * shown[pixels] + strength * np.array(ERRORS[kind], np.float32)
    return shown.round().astype(np.uint8)


def outline(mask: Bool[np.ndarray, "h w"], width: int) -> Bool[np.ndarray, "h w"]:
    """The outermost `width` pixels of the mask; the border of the image is not an outline."""
    inner = mask
    for _ in range(width):
        m = np.pad(inner, 1, mode="edge")
        inner = inner & m[:-2, 1:-1] & m[2:, 1:-1] & m[1:-1, :-2] & m[1:-1, 2:]
    return mask & ~inner


def resize(image: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "a b 3"]:
    """The image with its longer side at `side` pixels."""
    return np.asarray(Image.fromarray(image).resize(_size(image.shape, side), Image.Resampling.BICUBIC))


def resize_mask(mask: Integer[np.ndarray, "h w"], side: int) -> UInt8[np.ndarray, "a b"]:
    """As `resize`, with smooth outlines: each class is interpolated, the strongest one wins."""
    size = _size(mask.shape, side)
    planes = [
        np.asarray(Image.fromarray((mask == k).astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
        for k in range(int(mask.max()) + 1)
    ]
    return np.argmax(planes, axis=0).astype(np.uint8)


def _size(shape: tuple[int, ...], side: int) -> tuple[int, int]:
    scale = side / max(shape[:2])
    return max(1, round(shape[1] * scale)), max(1, round(shape[0] * scale))


def panels(example: dict[str, Any], side: int, student: str = "") -> dict[str, UInt8[np.ndarray, "a b 3"]]:
    """Caption -> picture: the image, the truth, each prediction, and the errors of the `student`.

    An example has "image" uint8 [h, w, 3], "truth" [h, w] and "predictions" {title: [h, w]} with class ids.
    """
    image, truth = resize(example["image"], side), resize_mask(example["truth"], side)
    masks = {title: resize_mask(mask, side) for title, mask in example["predictions"].items()}
    drawn = {"image": image, "truth": overlay(image, truth, truth)}
    drawn |= {title: overlay(image, mask, truth) for title, mask in masks.items()}
    if masks:
        drawn["errors"] = errors(image, masks.get(student, list(masks.values())[-1]), truth)
    return drawn


def sheet(examples: list[dict[str, Any]], student: str = "") -> bytes:
    """A PNG with a row of `panels` for each example."""
    from matplotlib.figure import Figure

    rows = [panels(example, 288, student) for example in examples]
    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(1.9 * columns, 2.05 * len(rows)), dpi=110, layout="constrained")
    for axes, row, example in zip(figure.subplots(len(rows), columns, squeeze=False), rows, examples, strict=True):
        for ax in axes:
            ax.set_axis_off()
        for ax, (caption, picture) in zip(axes, row.items(), strict=False):
            ax.imshow(picture)
            dice = example.get("dice", {}).get(caption)
            ax.set_title(plain(caption if dice is None else f"{caption}: {dice:.3f}"), fontsize=8)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


# -- curves ----------------------------------------------------------------------------------------------------------


def learning_curves(records: list[dict[str, Any]]) -> dict[str, str]:
    """Title -> SVG for one stage: its loss with each term, and the norm of each term's own gradient."""
    train = [r for r in records if r["split"] == "train"]
    loss = {"all terms": _series(train, "loss")} | _group(train, "terms/")
    norms = {"all terms": _series(train, "grad_norm")} | _group(train, "grad_norm/")
    charts = {"training loss": loss, "gradient norm": norms}
    charts = {title: {name: points for name, points in lines.items() if points} for title, lines in charts.items()}
    return {title: svg(lines, xlabel="step") for title, lines in charts.items() if lines}


def validation_curves(curves: dict[str, list[dict[str, Any]]], name: str) -> str:
    """One SVG: measure `name` after each epoch, a line per stage; empty where nothing was measured."""
    lines = {}
    for title, records in curves.items():
        values = [r.get(name) for r in records if r["split"] == "val"]
        lines[title] = [(i + 1.0, float(v)) for i, v in enumerate(values) if v is not None]
    lines = {title: points for title, points in lines.items() if points}
    return svg(lines, xlabel="epoch", size=(5.4, 2.9)) if lines else ""


def _group(records: list[dict[str, Any]], prefix: str) -> Lines:
    names = dict.fromkeys(k for r in records for k in r if k.startswith(prefix))
    return {name.removeprefix(prefix): _series(records, name) for name in names}


def _series(records: list[dict[str, Any]], name: str) -> Points:
    """(step, value) where there is one; long series as means of equal stretches."""
    points = np.array([(r["step"], r[name]) for r in records if r.get(name) is not None], float).reshape(-1, 2)
    if len(points) > _POINTS:
        points = np.stack([part.mean(axis=0) for part in np.array_split(points, _POINTS)])
    return [(float(x), float(y)) for x, y in points]


def svg(lines: Lines, *, xlabel: str, size: tuple[float, float] = (4.4, 2.9)) -> str:
    """Lines of (x, y) with a legend; logarithmic where all y are positive and span more than a factor of 20."""
    from matplotlib.ticker import MaxNLocator, NullFormatter

    def paint(figure: Any) -> None:
        ax = figure.subplots()
        for i, (name, points) in enumerate(lines.items()):
            x, y = zip(*points, strict=True)
            dash, mark = "-" if i < len(SERIES) else "--", "o" if len(points) == 1 else ""
            ax.plot(x, y, dash, color=SERIES[i % len(SERIES)], marker=mark, label=plain(name), linewidth=1.5)
        values = [y for points in lines.values() for _, y in points]
        if min(values) > 0 and max(values) > 20 * min(values):
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter(NullFormatter())
        ax.grid(color=INK, alpha=0.12, linewidth=0.6)
        ax.set_xlabel(xlabel)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside upper left", ncols=3, frameon=False, handlelength=1.4)

    return drawing(paint, size, salt=repr(lines))
