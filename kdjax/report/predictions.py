"""index.html beside predictions: which classes images, or records of image and caption, were taken for, and those to
look at first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
from jaxtyping import UInt8

from kdjax.report.figures.examples import inline
from kdjax.report.page import document, tiles_html
from kdjax.report.tables import percent, table_html

SIDE = 160  # pixels of the longer side of a picture on the page
MOST = 300  # images on the page, which then has some 5 MB
ROWS = 50  # classes in the table
ALONE = ""  # what the label of a model is called that has but one


@dataclass(frozen=True)
class Ranking:
    """The most probable classes of a label, the most probable first."""

    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Answer:
    """What a model says of an example, by label."""

    name: str
    labels: dict[str, Ranking]
    caption: str | None = None
    shares: Mapping[str, float] = field(default_factory=dict)  # of the parts of the input in what the model makes of it

    @property
    def least(self) -> float:
        """The probability of the answer that is least sure."""
        return min(ranking.probabilities[0] for ranking in self.labels.values())


@dataclass(frozen=True)
class Shown:
    """An example on the page; `evidence` is its picture under what speaks for its class."""

    answer: Answer
    picture: UInt8[np.ndarray, "h w 3"] | None
    evidence: UInt8[np.ndarray, "_ _ 3"] | None = None


def first(answers: Sequence[Answer]) -> list[Answer]:
    """Those on the page: the least sure ones, in this order."""
    return sorted(answers, key=lambda answer: answer.least)[:MOST]


def render(
    title: str, answers: Sequence[Answer], shown: Sequence[Shown], note: str, table: str, item: str = "image"
) -> str:
    """The page; `note` says what there is to know of it, `table` is the file with all answers."""
    sure: dict[str, dict[str, list[float]]] = {}
    for answer in answers:
        for label, ranking in answer.labels.items():
            of_class = sure.setdefault(label, {}).setdefault(ranking.classes[0], [])
            of_class.append(ranking.probabilities[0])
    counted = [_count(len(classes), "class", "es") + (label and f" of {label}") for label, classes in sure.items()]
    doubtful = sum(answer.least < 0.5 for answer in answers)
    tiles = [(f"{len(answers):,}", f"{item}s")]
    for label, classes in sure.items():
        mean = float(np.mean([share for shares in classes.values() for share in shares]))
        tiles += [] if label else [(f"{len(classes):,}", "classes they were taken for")]
        tiles += [(percent(mean), f"mean probability of the {label or 'answer'}")]
    tiles += [(f"{doubtful:,}", f"{item}s with an answer below 50 %")]
    sections = [(label.capitalize() or "Classes", _classes(classes, item)) for label, classes in sure.items()]
    sections.append(("The least sure first", _examples(len(answers), shown, note, table)))
    headline = f"{_count(len(answers), item)} taken for {' and '.join(counted)}."
    return document(title, headline, tiles_html(tiles), sections)


def _count(n: int, what: str, several: str = "s") -> str:
    return f"{n:,} {what}{several * (n != 1)}"


def _classes(sure: dict[str, list[float]], item: str) -> str:
    order = sorted(sure, key=lambda name: -len(sure[name]))
    rows = [("", [name, f"{len(sure[name]):,}", percent(float(np.mean(sure[name]))), ""]) for name in order[:ROWS]]
    more = f'<p class="note">And {len(order) - ROWS:,} classes more.</p>' if len(order) > ROWS else ""
    return table_html(["class", f"{item}s", "mean probability", ""], rows) + more


def _examples(count: int, shown: Sequence[Shown], note: str, table: str) -> str:
    told = (
        f"{len(shown):,} of {count:,}; {table} has all of them" if len(shown) < count else f"{table} has these numbers"
    )
    told = f"{told}. {note}".strip()
    layout = " captioned" if any(one.answer.caption for one in shown) else ""
    layout = " pairs" if any(one.evidence is not None for one in shown) else layout
    return f'<p class="note">{escape(told)}</p><div class="looks{layout}">{"".join(map(_figure, shown))}</div>'


def _figure(one: Shown) -> str:
    answer = one.answer
    images = "" if one.picture is None else inline(one.picture, answer.name)
    if one.evidence is not None:
        images += inline(one.evidence, f"{answer.name}: what speaks for the class")
    ranked = "".join(f"<b>{escape(_chosen(label, of))}</b>" for label, of in answer.labels.items())
    rest = [_others(of) for of in answer.labels.values()]
    weighed = "weighs " * bool(answer.shares) + ", ".join(f"{k} {percent(share)}" for k, share in answer.shares.items())
    told = " · ".join(filter(None, [*map(escape, [*rest, weighed]), escape(answer.name)]))
    caption = f"<p>{escape(answer.caption)}</p>" if answer.caption else ""
    return f"<figure>{images}<figcaption>{ranked}{told}{caption}</figcaption></figure>"


def _chosen(label: str, ranking: Ranking) -> str:
    return f"{label and f'{label}: '}{ranking.classes[0]}{',' if label else ':'} {percent(ranking.probabilities[0])}"


def _others(ranking: Ranking) -> str:
    """The second and the third class, where they are not out of the question."""
    pairs = [*zip(ranking.classes, ranking.probabilities, strict=True)][1:3]
    return ", ".join(f"{name}: {percent(share)}" for name, share in pairs if share >= 0.005)
