"""index.html beside predictions: which classes a folder of images was taken for, and the images to look at first."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from jaxtyping import UInt8

from kdjax.report.figures.examples import inline
from kdjax.report.page import document, tiles_html
from kdjax.report.tables import percent, table_html

SIDE = 160  # pixels of the longer side of a picture on the page
MOST = 300  # images on the page, which then has some 5 MB
ROWS = 50  # classes in the table


@dataclass(frozen=True)
class Answer:
    """What a model says of an image: the most probable classes, the most probable first, and the energy."""

    image: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    energy: float


@dataclass(frozen=True)
class Shown:
    """An image on the page; `evidence` is the same under what speaks for its class."""

    answer: Answer
    picture: UInt8[np.ndarray, "h w 3"]
    evidence: UInt8[np.ndarray, "_ _ 3"] | None = None


def first(answers: Sequence[Answer]) -> list[Answer]:
    """Those on the page: the least sure ones, in this order."""
    return sorted(answers, key=lambda answer: answer.probabilities[0])[:MOST]


def render(title: str, answers: Sequence[Answer], shown: Sequence[Shown], note: str, table: str) -> str:
    """The page; `note` says what the pictures show, `table` is the file with all answers."""
    sure: dict[str, list[float]] = {}
    for answer in answers:
        sure.setdefault(answer.classes[0], []).append(answer.probabilities[0])
    count = f"{len(answers):,} image{'s' * (len(answers) != 1)} taken for {len(sure):,} class{'es' * (len(sure) != 1)}"
    mean = float(np.mean([answer.probabilities[0] for answer in answers]))
    doubtful = sum(answer.probabilities[0] < 0.5 for answer in answers)
    tiles = [
        (f"{len(answers):,}", "images"),
        (f"{len(sure):,}", "classes they were taken for"),
        (percent(mean), "mean probability of the answer"),
        (f"{doubtful:,}", "images with an answer below 50 %"),
    ]
    sections = [("Classes", _classes(sure)), ("The least sure first", _images(len(answers), shown, note, table))]
    return document(title, f"{count}.", tiles_html(tiles), sections)


def _classes(sure: dict[str, list[float]]) -> str:
    order = sorted(sure, key=lambda name: -len(sure[name]))
    rows = [("", [name, f"{len(sure[name]):,}", percent(float(np.mean(sure[name]))), ""]) for name in order[:ROWS]]
    more = f'<p class="note">And {len(order) - ROWS:,} classes more.</p>' if len(order) > ROWS else ""
    return table_html(["class", "images", "mean probability", ""], rows) + more


def _images(count: int, shown: Sequence[Shown], note: str, table: str) -> str:
    told = (
        f"{len(shown):,} of {count:,}; {table} has all of them" if len(shown) < count else f"{table} has these numbers"
    )
    told = f"{told}. {note}".strip()
    pairs = " pairs" if any(one.evidence is not None for one in shown) else ""
    return f'<p class="note">{escape(told)}</p><div class="looks{pairs}">{"".join(map(_figure, shown))}</div>'


def _figure(one: Shown) -> str:
    answer = one.answer
    names = [
        escape(f"{name}: {percent(share)}") for name, share in zip(answer.classes, answer.probabilities, strict=True)
    ]
    images = inline(one.picture, answer.image)
    if one.evidence is not None:
        images += inline(one.evidence, f"{answer.image}: what speaks for the class")
    rest = ", ".join(name for name, share in zip(names[1:3], answer.probabilities[1:3], strict=True) if share >= 0.005)
    told = " · ".join(filter(None, [rest, escape(answer.image)]))
    return f"<figure>{images}<figcaption><b>{names[0]}</b>{told}</figcaption></figure>"
