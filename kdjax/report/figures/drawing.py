"""Drawings that stand inside a page as SVG elements: they take its text colour, its paper and its `--series-N` colours,
and refer to nothing outside.

The colours are those of Okabe and Ito, which people with any kind of colour vision tell apart.
"""

import hashlib
import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7f7f7f", "#8b5cf6")
INK = "#010203"  # stands for the page's text colour until the SVG is written
PAPER = "#010204"  # ... and this for what lies behind it


def drawing(paint: Callable[[Any], None], size: tuple[float, float], salt: str) -> str:
    """What `paint` puts on a figure of `size` inches. Another `salt` for each drawing keeps their ids apart."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "font.size": 8.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **{k: INK for k in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")},
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return _inline(out.getvalue())


def salt_of(*parts: Any) -> str:
    """A salt that differs wherever one of these does: arrays, or what repr() tells apart."""
    digest = hashlib.sha1(usedforsecurity=False)
    for part in parts:
        digest.update(np.ascontiguousarray(part).tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return digest.hexdigest()


def dots(
    ax: Any, points: Float[np.ndarray, "n 2"], colour: str, label: str, order: float = 1.0, *, hollow: bool = False
) -> None:
    """All dots as one path of strokes without length, which is a tenth of the text that markers would take."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    path = Path(np.repeat(points, 2, axis=0), np.tile([Path.MOVETO, Path.LINETO], len(points)))
    path.should_simplify = False  # which would take points for nothing
    strokes = [(colour, 2.6, 0.75)] if not hollow else [(colour, 2.9, 1.0), (PAPER, 1.3, 1.0)]
    for edge, width, alpha in strokes:
        stroke = {"edgecolor": edge, "linewidth": width, "alpha": alpha, "capstyle": "round", "zorder": order}
        ax.add_patch(PathPatch(path, facecolor="none", **stroke))
    face = PAPER if hollow else colour
    ax.add_line(Line2D([], [], color=colour, markerfacecolor=face, marker="o", markersize=4, linewidth=0, label=label))


def plain(text: str) -> str:
    """Not read as a formula, and not hidden from the legend as names with a leading underscore are."""
    return text.replace("$", r"\$").lstrip("_") or "–"


def standalone(element: str) -> str:
    """An SVG element of a page as a file of its own: dark on white."""
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    for i, colour in enumerate(SERIES):
        element = element.replace(f"var(--series-{i})", colour)
    element = element.replace("var(--card)", "#ffffff")
    return element.replace("<svg", f'<svg {names} style="color:#1b2129;background:#ffffff"', 1) + "\n"


def _inline(document: str) -> str:
    """An SVG document as an element of an HTML page that scales, has the page's colours, and names no address."""
    element = document[document.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", element, flags=re.DOTALL)
    element = re.sub(r'\sxmlns(:\w+)?="[^"]*"|(?<=<g) id="[^"]*"', "", element)
    tag = re.sub(r'\s(width|height)="[^"]*"', "", element[: element.index(">")])
    element = re.sub(r"\s*\n\s*", " ", tag + element[element.index(">") :])
    element = re.sub(r'(?<= d=")[^"]*', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), element)
    element = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", element)
    for i, colour in enumerate(SERIES):
        element = element.replace(colour, f"var(--series-{i})")
    return element.replace(INK, "currentColor").replace(PAPER, "var(--card)").strip()
