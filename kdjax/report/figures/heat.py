"""Where in an image a model sees what it looks for, laid over the image: the probability of each patch, or how much
each place speaks for a class."""

from html import escape
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, UInt8

from kdjax.report.figures import curves, legend
from kdjax.report.figures.examples import panel

NO, YES = (0, 114, 178), (213, 94, 0)  # the colours of class 0 and class 1
STRONGEST = 190  # of 255: how much of the colour there is where the model is sure
SIDE = 224  # pixels of the longer side of a panel

Map = Float[np.ndarray, "_ _"]
Picture = UInt8[np.ndarray, "h w 3"]


def overlay(image: Picture, logits: Map, threshold: float = 0.0) -> Picture:
    """The image in grey under the colour of the likelier class, the stronger the surer; `threshold` is on the line."""
    from PIL import Image

    sure = 2 / (1 + np.exp(-np.clip(logits.astype(np.float64) - threshold, -30, 30))) - 1
    size = image.shape[1::-1]
    sure = np.asarray(Image.fromarray(sure.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
    likelier = Image.fromarray((sure > 0).astype(np.uint8) * np.uint8(255))
    return _under(Image.composite(Image.new("RGB", size, YES), Image.new("RGB", size, NO), likelier), image, abs(sure))


def evidence(image: Picture, heat: Map) -> Picture:
    """The image in grey under the colour of class 1, the stronger the more a place speaks for the class, with a line
    about the places that have half of the most and above; `heat` is not negative."""
    from PIL import Image

    share = heat.astype(np.float32) / max(float(heat.max()), np.finfo(np.float32).tiny)
    size = image.shape[1::-1]
    share = np.asarray(Image.fromarray(share).resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    shown = _under(Image.new("RGB", size, YES), image, share).copy()
    shown[curves.outline(share > 0.5, max(1, round(min(share.shape) / 150)))] = curves.WHITE
    return shown


def swatches(spoken_for: str) -> dict[str, legend.Colour]:
    """What the colours of `evidence` mean."""
    return {f"speaks for {spoken_for}": YES, "half as much or more": curves.WHITE}


def _under(colour: Any, image: Picture, strength: Map) -> Picture:
    from PIL import Image

    grey = Image.fromarray(image).convert("L").convert("RGB")
    return np.asarray(Image.composite(colour, grey, Image.fromarray((STRONGEST * strength).astype(np.uint8))))


def maps(rows: list[dict], kinds: tuple[str, ...]) -> str:
    """Images and what each model sees in them, as a section of the report.

    A row: "name", "truth", "image" uint8 [h, w, 3], "models" {title: (map of logits, score, threshold)}.
    """
    if not rows:
        return ""
    parts = []
    for row in rows:
        shown = curves.resize(row["image"], SIDE)
        cells = [panel(shown, row["name"], f"{escape(row['name'])}<b>{escape(row['truth'])}</b>")]
        for title, (logits, score, threshold) in row["models"].items():
            said = kinds[int(score > threshold)]
            caption = f"{escape(title)}<b>{escape(said)}, {score:+.2f}</b>"
            cells.append(panel(overlay(shown, logits, threshold), f"{row['name']}: patches of {title}", caption))
        parts.append(f'<div class="panels">{"".join(cells)}</div>')
    swatches = {f"speaks for {kinds[0]}": NO, f"speaks for {kinds[1]}": YES}
    note = "The number is the logit of the whole image; the colour of a patch is as strong as it is sure."
    return legend.html(swatches) + "".join(parts) + f'<p class="note">{escape(note)}</p>'


def robustness(curves_of: dict[str, dict[str, dict[str, float]]], measure: str) -> dict[str, str]:
    """For each kind of damage a drawing: the measure over its strength, a line for each model.

    `curves_of`: kind -> title -> strength -> measure.
    """
    from kdjax.report.figures.drawing import INK, SERIES, drawing, plain, salt_of

    def one(kind: str, lines: dict[str, dict[str, float]]) -> str:
        def paint(figure) -> None:
            ax = figure.subplots()
            for i, (title, values) in enumerate(lines.items()):
                dash = "-" if i < len(SERIES) else "--"
                y: Float64[np.ndarray, " n"] = np.array(list(values.values()), float)
                ax.plot(
                    range(len(y)), y, dash, marker="o", markersize=3, color=SERIES[i % len(SERIES)], label=plain(title)
                )
            strengths = next(iter(lines.values()))
            ax.set_xticks(range(len(strengths)), list(strengths))
            ax.set_xlabel(kind)
            ax.set_ylabel(measure)
            ax.grid(color=INK, alpha=0.12, linewidth=0.6)
            figure.legend(loc="outside upper left", frameon=False, handlelength=1.4)

        return drawing(
            paint, (4.4, 2.6 + 0.18 * len(lines)), salt=salt_of("robustness", kind, *map(str, lines.values()))
        )

    return {f"under {kind}": one(kind, lines) for kind, lines in curves_of.items() if lines}
