"""What a report shows of models that give several labels to an example: tables as HTML, and examples."""

import textwrap
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Integer

from kdjax.report import tables
from kdjax.report.figures import records
from kdjax.report.page import figure

SHOWN = 12  # examples
LETTERS = 480  # of a caption
UNTOLD = ("nll",)  # measures that stand in test_results.txt alone, and what temperature scaling makes of any

Rows = list[dict[str, Any]]
Classes = Mapping[str, Integer[np.ndarray, " n"]]  # of each example, -1 where there is none, by label


def measures(label: str, rows: Rows, n: int, item: str) -> str:
    """All measures of a label, a line for each model, and how many of n test examples lack it."""
    mine = f"{label}_"
    whole = list(dict.fromkeys(name for row in rows for name in row["metrics"] if name.startswith(mine)))
    names = [name for name in whole if not name.endswith("_scaled") and name.removeprefix(mine) not in UNTOLD]
    head = ["model", *(tables.heading(name.removeprefix(mine)) for name in names), ""]
    lines = [
        (row["role"], [row["title"], *(tables.mean_std("", row["metrics"].get(name)) for name in names), ""])
        for row in rows
    ]
    without = max((row.get("unlabelled", {}).get(label, 0) for row in rows), default=0)
    note = f"{without:,} of {n:,} test {item}s have no {label}, and do not count here." if without else ""
    return tables.table_html(head, lines) + (f'<p class="note">{escape(note)}</p>' if note else "")


def parts(rows: Rows) -> str:
    """What models that read several parts measure with one part alone; "" without such a model."""
    several = [row for row in rows if row.get("robustness")]
    if not several:
        return ""
    headings = list(dict.fromkeys(heading for row in several for heading in row["robustness"]))
    lines = []
    for row in several:
        for reads in next(iter(row["robustness"].values())):
            values = [row["robustness"].get(heading, {}).get(reads) for heading in headings]
            cells = [tables.mean_std("", {"mean": value}) for value in values]
            lines.append((row["role"], [row["title"], *cells, reads]))
    note = "Every test example once more, with all parts absent but the one; nothing was trained for that."
    return tables.table_html(["model", *headings, ""], lines) + f'<p class="note">{escape(note)}</p>'


def shares(models: Mapping[str, Float[np.ndarray, "n p"]], truth: Classes, names: Mapping[str, list[str]]) -> str:
    """How much of what a fusion makes is the image's and how much the text's: a histogram, and the mean for each class;
    "" where no model tells."""
    images = {title: values[:, 0] for title, values in models.items() if np.isfinite(values).all() and len(values)}
    if not images:
        return ""
    drawn = figure("share of the image; the rest is the text's", records.shares(images), wide=True)
    head, lines = ["class", "examples", *(f"image's share in {title}" for title in images), ""], []
    for label, labels in truth.items():
        for k, name in enumerate(names[label]):
            if (chosen := labels == k).any():
                spread = ({"mean": of[chosen].mean(), "std": of[chosen].std()} for of in images.values())
                cells = [f"{int(chosen.sum()):,}", *(tables.mean_std("", values) for values in spread)]
                lines.append(("", [name, *cells, label]))
    return drawn + tables.table_html(head, lines)


def examples(dataset: Any, truth: Classes, answers: Mapping[str, Classes], names: Mapping[str, list[str]]) -> str:
    """Test examples with image, caption, labels and every model's answers, those first about which these differ."""
    order = np.argsort(-differences(truth, answers), kind="stable")[:SHOWN]
    if not len(order):
        return ""
    batch, called = dataset.batch("test", order, slice(None)), dataset.called("test")[1]
    caption = getattr(dataset, "caption", lambda split, i: "")

    def named(classes: Classes, i: int) -> dict[str, str]:
        return {label: names[label][of[i]] if of[i] >= 0 else "" for label, of in classes.items()}

    shown = [
        records.Record(
            called[i],
            batch["image"][row] if "image" in batch and batch.get("image_there", batch["valid"])[row] else None,
            textwrap.shorten(caption("test", i), LETTERS, placeholder=" …"),
            named(truth, i),
            {title: named(classes, i) for title, classes in answers.items()},
        )
        for row, i in enumerate(order.tolist())
    ]
    return records.html(shown, dataset.item, len(called))


def differences(truth: Classes, answers: Mapping[str, Classes]) -> Int[np.ndarray, " n"]:
    """How many labels of each example are answered in more than one way, those that are known counted twice."""
    counts = np.zeros(len(next(iter(truth.values()))), np.int64)
    for label, labels in truth.items():
        several = np.array([classes[label] for classes in answers.values()])
        counts += (several != several[0]).any(axis=0) * (1 + (labels >= 0))
    return counts
