"""Records of a test, an image with a caption, beside what models answer; and how these weigh image and caption."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from kdjax.report.figures import curves
from kdjax.report.figures.drawing import INK, SERIES, drawing, plain, salt_of
from kdjax.report.figures.examples import inline
from kdjax.report.tables import MISSING

SIDE = 200  # pixels of the longer side of an image
BINS = 25  # of a histogram over [0, 1]


@dataclass(frozen=True)
class Record:
    """An example: the names of its classes by label, "" where one is not known, and of those that each model gives."""

    name: str
    image: UInt8[np.ndarray, "h w 3"] | None
    caption: str
    truth: dict[str, str]
    answers: dict[str, dict[str, str]]  # by the title of the model


def html(records: list[Record], item: str, n: int) -> str:
    """Each as a block with its image, its caption and a table of the answers."""
    note = f"{len(records)} of {n:,} test {item}s, those first about which the models differ."
    return f'<p class="note">{escape(note)}</p>' + "".join(map(_record, records))


def _record(record: Record) -> str:
    picture = ""
    if record.image is not None:
        picture = inline(curves.resize(record.image, SIDE), f"image of {record.name}")
    labels = "".join(f'<th scope="col">{escape(label)}</th>' for label in record.truth)
    lines = [_line("truth", [escape(name) or MISSING for name in record.truth.values()])]
    for title, answers in record.answers.items():
        lines.append(_line(title, [_judged(answers[label], truth) for label, truth in record.truth.items()]))
    table = f"<table><thead><tr><td></td>{labels}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    caption = f"<p>{escape(record.caption)}</p>" if record.caption else '<p class="note">no caption</p>'
    told = f'<h3>{escape(record.name)}</h3>{caption}<div class="scroll">{table}</div>'
    return f'<div class="record"><div>{picture}</div><div>{told}</div></div>'


def _line(title: str, cells: list[str]) -> str:
    return f'<tr><th scope="row">{escape(title)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _judged(answer: str, truth: str) -> str:
    """An answer with whether it is right, by colour and by word."""
    if not answer:
        return f"{MISSING} no answer"
    if not truth:
        return escape(answer)
    word = "right" if answer == truth else "wrong"
    return f'<span class="{word}">{escape(answer)}, {word}</span>'


def shares(models: Mapping[str, Float[np.ndarray, " n"]]) -> str:
    """How the shares, in [0, 1], of the examples lie, a line for each model, as an SVG element."""
    edges = np.linspace(0, 1, BINS + 1)

    def paint(figure: Any) -> None:
        ax = figure.subplots()
        for i, (title, values) in enumerate(models.items()):
            counts = np.histogram(np.clip(values, 0, 1), edges)[0] / max(len(values), 1)
            style = {"color": SERIES[i % len(SERIES)], "linestyle": "-" if i < len(SERIES) else "--"}
            ax.stairs(counts, edges, linewidth=1.5, label=plain(title), **style)
        ax.axvline(0.5, color=INK, alpha=0.4, linewidth=0.8, linestyle=":")
        ax.set_xlim(0, 1)
        ax.set_ylim(bottom=0)
        ax.set_xlabel("0: the text alone, 1: the image alone")
        ax.set_ylabel("share of the examples")
        ax.grid(color=INK, alpha=0.12, linewidth=0.6)
        figure.legend(loc="outside upper left", ncols=2, frameon=False, handlelength=1.4)

    return drawing(paint, (7.4, 2.6 + 0.1 * len(models)), salt=salt_of("shares", *models, *models.values()))
