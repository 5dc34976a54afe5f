"""Test images and their masks, as a section of the report."""

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from kdjax.report.figures import curves, legend

RANKS = ("best", "median", "worst")
_PIXELS = 8_000_000  # of all pictures together, which keeps the file below about 2 MB


def examples_html(
    examples: list[dict[str, Any]], student: str, num_classes: int = 2, class_names: Sequence[str] = ()
) -> str:
    """Each test image with its true mask and what every model made of it, and the errors of `student`; `class_names`
    begin with the background.

    An example: "name", "rank" ("best" | "median" | "worst"), "image" uint8 [h, w, 3], "truth" int [h, w],
    "predictions" {title of a row: int [h, w]}, "dice" {title of a row: float}.
    """
    count = sum(len(e["predictions"]) + 3 for e in examples)
    side = min(288, int(math.sqrt(_PIXELS / count)))
    ranked = sorted(examples, key=lambda e: RANKS.index(e["rank"]) if e["rank"] in RANKS else len(RANKS))
    swatches = legend.colours(num_classes, class_names)
    if num_classes == 2 and not class_names:
        swatches = {"prediction": curves.CLASSES[0]}
    swatches |= {"outline: truth": curves.TRUTH}
    errors = {kind: c for kind, c in curves.ERRORS.items() if num_classes > 2 or kind != "wrong class"}
    legends = legend.html(swatches) + legend.html(errors, "errors")
    return legends + "".join(_example(e, side, student) for e in ranked)


def _example(example: dict[str, Any], side: int, student: str) -> str:
    cells = []
    for caption, picture in curves.panels(example, side, student).items():
        dice = example.get("dice", {}).get(caption)
        value = "" if dice is None or math.isnan(dice) else f"<b>{dice:.3f}</b>"
        shown = f"errors of {student}" if caption == "errors" and student else caption
        cells.append(panel(picture, f"{example['name']}: {shown}", escape(shown) + value))
    rank, name = escape(str(example["rank"])), escape(str(example["name"]))
    return f'<h3><span class="rank">{rank}</span>{name}</h3><div class="panels">{"".join(cells)}</div>'


def panel(picture: UInt8[np.ndarray, "h w 3"], description: str, caption: str) -> str:
    """A picture inside the page; `description` is for who cannot see it, `caption` is HTML."""
    return f"<figure>{inline(picture, description)}<figcaption>{caption}</figcaption></figure>"


def inline(picture: UInt8[np.ndarray, "h w 3"], description: str) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="WEBP", quality=85)
    source = f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
    return f'<img src="{source}" alt="{escape(description, quote=True)}">'
