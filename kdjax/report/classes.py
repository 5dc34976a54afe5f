"""Precision, recall and F1 of each class: as a table of the page, and as the lines of a CSV file."""

from html import escape
from typing import Any

import numpy as np
from jaxtyping import Integer

from kdjax.report import tables
from kdjax.report.metrics.classification import PerClass, per_class

SHORT = 20  # classes up to which all stand on the page at once; of more the worst do
WORST = 10
HEADER = ["class", "precision", "recall", "f1", "support"]
Counts = dict[str, Integer[np.ndarray, "k k"]]  # tables [truth, prediction] by the title of their model


def table(counts: Counts, names: list[str], title: str) -> str:
    """All three measures of the model `title`, and the F1 of the others, of which `counts` hold the confusions."""
    own, others = per_class(counts[title]), {k: per_class(v).f1 for k, v in counts.items() if k != title}
    if not own.support.sum():
        return ""
    lead = f" of {title}" if others else ""
    head = ["class", "examples", f"precision{lead}", f"recall{lead}", f"F1{lead}", *(f"F1 of {k}" for k in others), ""]

    def rows(chosen: Any) -> str:
        lines = []
        for k in chosen:
            measures = (column[k] for column in (own.precision, own.recall, own.f1, *others.values()))
            lines.append(("", [names[k], f"{own.support[k]:,}", *(_share(float(x)) for x in measures), ""]))
        return tables.table_html(head, lines)

    if len(names) <= SHORT:
        return f"<h3>each class</h3>{rows(range(len(names)))}"
    worst = np.argsort(own.f1, kind="stable")[:WORST]  # nan, of classes without examples, comes last
    return (
        f"<h3>the {len(worst)} classes with the lowest F1</h3>{rows(worst)}"
        f"<details><summary>{escape(f'All {len(names)} classes')}</summary>{rows(range(len(names)))}</details>"
    )


def lines(each: PerClass, names: list[str]) -> list[list[Any]]:
    """Under `HEADER` a line for each class, then the means over the classes that have examples: each counted once, and
    each as often as it has examples."""
    there, body = each.support > 0, zip(names, *each, strict=True)
    measures = np.array([each.precision, each.recall, each.f1])[:, there]
    weights = each.support[there]
    plain = measures.mean(axis=1) if len(weights) else np.full(3, np.nan)
    weighted = np.average(measures, axis=1, weights=weights) if len(weights) else plain
    total = int(weights.sum())
    return [
        *([name, *map(_number, numbers), int(support)] for name, *numbers, support in body),
        ["mean over classes", *map(_number, plain), total],
        ["mean over examples", *map(_number, weighted), total],
    ]


def _share(value: float) -> str:
    return f"{value:.3f}" if value == value else tables.MISSING


def _number(value: float) -> str:
    return f"{value:.6f}" if value == value else ""
