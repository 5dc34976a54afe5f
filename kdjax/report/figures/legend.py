"""Which colour is which class: as HTML for the pages, and below a picture."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from jaxtyping import UInt8

from kdjax.report import tables
from kdjax.report.figures.curves import CLASSES

NARROW = 96  # pixels; a narrower picture has no room for names

Colour = tuple[int, int, int]


def colours(num_classes: int, names: Sequence[str] = ()) -> dict[str, Colour]:
    """Name -> colour of each class of a mask but the background; `names` begin with it."""
    return {tables.class_name(str(k), list(names)): CLASSES[(k - 1) % len(CLASSES)] for k in range(1, num_classes)}


def html(swatches: Mapping[str, Colour], of: str = "") -> str:
    items = f"<li>{escape(of)}:</li>" if of else ""
    items += "".join(f'<li><i style="background:rgb{c}"></i>{escape(name)}</li>' for name, c in swatches.items())
    return f'<ul class="legend">{items}</ul>'


def below(picture: UInt8[np.ndarray, "h w 3"], swatches: Mapping[str, Colour]) -> UInt8[np.ndarray, "t w 3"]:
    """The picture with a strip under it that names the colours; one that is too narrow for names stays as it is."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = picture.shape[:2]
    if width < NARROW:
        return picture
    size = max(11, min(height, width) // 28)
    font: Any = ImageFont.load_default(size)
    places, x, y = [], size // 2, size // 2
    for name, colour in swatches.items():
        wide = 2 * size + int(font.getlength(name))
        if x + wide > width and x > size // 2:
            x, y = size // 2, y + 3 * size // 2
        places.append((x, y, name, colour))
        x += wide + size // 2
    strip = Image.new("RGB", (width, y + 3 * size // 2), (24, 28, 34))
    draw = ImageDraw.Draw(strip)
    for x, y, name, colour in places:
        draw.rectangle((x, y + size // 8, x + size, y + 9 * size // 8), fill=colour)
        draw.text((x + 3 * size // 2, y - size // 8), name, fill=(235, 238, 242), font=font)
    return np.concatenate([picture, np.asarray(strip)])
