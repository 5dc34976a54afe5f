"""evaluation.html and the files beside it: all there is to tell of a classifier on its test examples."""

import csv
import io
import json
import math
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from kdjax.report import classes, tables
from kdjax.report.figures import classification, detection
from kdjax.report.figures.drawing import standalone
from kdjax.report.metrics import classification as metrics
from kdjax.report.metrics import outside, statistics
from kdjax.report.page import document, figure, tiles_html

PAGE = "evaluation.html"
SCORES = {"energy": classification.ENERGY, "mahalanobis": "squared Mahalanobis distance", "vim": "ViM score"}
TITLES = {"energy": "energy", "mahalanobis": "Mahalanobis", "vim": "ViM"}
SIDES = ("test", "outside")
TOP = 5  # classes of an example that the table of predictions names
Scores = dict[str, tuple[np.ndarray, np.ndarray]]  # of test examples and of those outside, by the name of the score


@dataclass(frozen=True)
class Outside:
    """Examples of no class that the model knows."""

    place: str
    examples: list[str]
    scores: Scores


@dataclass(frozen=True)
class Evaluation:
    """What is known of the test examples; label -1 is not known."""

    summary: dict[str, Any]  # with a row for each model, the last of which the rest is of
    names: list[str]  # of the classes
    examples: list[str]  # names
    labels: Integer[np.ndarray, " n"]
    logits: Float[np.ndarray, "n k"]
    scaled: Float[np.ndarray, "n k"] | None  # after temperature scaling
    energy: Float[np.ndarray, " n"]
    outside: Outside | None
    facts: dict[str, str]
    mistakes: str = ""  # HTML

    @property
    def row(self) -> dict[str, Any]:
        return self.summary["rows"][-1]

    @property
    def counts(self) -> np.ndarray:
        return metrics.confusion(self.logits, self.labels, len(self.names))

    @property
    def probabilities(self) -> np.ndarray:
        from scipy.special import softmax

        logits = self.logits if self.scaled is None else self.scaled
        return softmax(logits.astype(np.float64), axis=1)


def files(of: Evaluation) -> dict[str, str]:
    """Texts by the names of their files: the page, its pictures and its tables."""
    drawn = pictures(of)
    return {
        "metrics.json": json.dumps(numbers(of), indent=1, allow_nan=False),
        "predictions.csv": _csv(predictions(of)),
        "classification_report.csv": _csv([classes.HEADER, *classes.lines(metrics.per_class(of.counts), of.names)]),
        **({"outside.csv": _csv(outside_lines(of))} if of.outside else {}),
        **{f"{name}.svg": standalone(svg) for name, (_, svg) in drawn.items() if svg},
        PAGE: page(of, drawn),
    }


# -- tables ----------------------------------------------------------------------------------------------------------


def numbers(of: Evaluation) -> dict[str, Any]:
    """All measures; null is what cannot be told."""
    each = metrics.per_class(of.counts)
    per_class = {
        name: {"precision": p, "recall": r, "f1": f, "support": int(n)}
        for name, p, r, f, n in zip(of.names, *each, strict=True)
    }
    rows = {
        row["title"]: {name: value["mean"] for name, value in row["metrics"].items()}
        | {key: row[key] for key in ("temperature", "parameters", "ms_per_image") if key in row}
        for row in of.summary["rows"]
    }
    told = {
        "of": of.summary["name"],
        of.summary["item"] + "s": len(of.labels),
        "labelled": int((of.labels >= 0).sum()),
        "models": rows,
        "classes": per_class,
        "confusion": of.counts.tolist(),
    }
    if of.outside:
        apart = {name: outside.told_apart(*pair) for name, pair in of.outside.scores.items()}
        told["outside"] = {"place": of.outside.place, f"{of.summary['item']}s": len(of.outside.examples), **apart}
    return _finite(told | of.facts)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def predictions(of: Evaluation) -> list[list[Any]]:
    """Under a header a line for each example: its class, what it was taken for and how surely, after temperature
    scaling; its scores of being outside; the most probable classes."""
    p, inside = of.probabilities, {name: pair[0] for name, pair in of.outside.scores.items()} if of.outside else {}
    inside = {"energy": of.energy, **inside}
    best = np.argsort(-p, axis=1, kind="stable")[:, :TOP]
    header = ["name", "class", "predicted", "probability", "probability_of_class", *inside]
    header += [f"{what}_{i + 1}" for i in range(1, best.shape[1]) for what in ("predicted", "probability")]
    lines = []
    for i, (name, label) in enumerate(zip(of.examples, of.labels, strict=True)):
        truth = [of.names[label], f"{p[i, label]:.6f}"] if label >= 0 else ["", ""]
        scores = [f"{values[i]:.6g}" for values in inside.values()]
        others = [cell for k in best[i, 1:] for cell in (of.names[k], f"{p[i, k]:.6f}")]
        lines.append([name, truth[0], of.names[best[i, 0]], f"{p[i, best[i, 0]]:.6f}", truth[1], *scores, *others])
    return [header, *lines]


def outside_lines(of: Evaluation) -> list[list[Any]]:
    """Under a header a line for each test example and each one outside, with its scores."""
    assert of.outside is not None
    lines = []
    for side, (title, examples) in enumerate(zip(SIDES, (of.examples, of.outside.examples), strict=True)):
        scores = [pair[side] for pair in of.outside.scores.values()]
        lines += [[title, name, *(f"{of_score[i]:.6g}" for of_score in scores)] for i, name in enumerate(examples)]
    return [["set", "name", *of.outside.scores], *lines]


def _csv(lines: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(lines)
    return text.getvalue()


# -- pictures --------------------------------------------------------------------------------------------------------


def pictures(of: Evaluation) -> dict[str, tuple[str, str]]:
    """(caption, SVG element) of each picture, by the name of its file."""
    title, pair = of.row["title"], (of.logits, of.labels)
    scaled = {title: (of.scaled, of.labels)} if of.scaled is not None else None
    drawn = {
        "confusions": ("confusions", classification.confusions({title: of.counts}, of.names)),
        "reliability": (
            "how often it is right when it is so sure",
            classification.reliability({title: pair}, scaled),
        ),
        "energies": (
            "energies of what is told rightly and of what is not",
            classification.energies({title: pair}, {title: of.energy}),
        ),
    }
    if not of.outside:
        return drawn
    sets = {}
    for name, (near, far) in of.outside.scores.items():
        sets[TITLES[name]] = np.concatenate([near, far]), np.repeat([0, 1], [len(near), len(far)])
        svg = detection.score_histograms({TITLES[name]: sets[TITLES[name]]}, xlabel=SCORES[name], kinds=SIDES)
        drawn[f"outside_{name}"] = (f"how far outside by {TITLES[name]}", svg)
    drawn["outside_roc"] = ("share of the outside found, by the share of false alarms", detection.roc_curves(sets))
    return drawn


# -- the page --------------------------------------------------------------------------------------------------------


def page(of: Evaluation, drawn: dict[str, tuple[str, str]]) -> str:
    figures = {name: figure(caption, svg, wide=name == "reliability") for name, (caption, svg) in drawn.items()}
    sections = [
        ("Results", results(of)),
        (
            "Classes",
            _columns(figures, "confusions") + classes.table({of.row["title"]: of.counts}, of.names, of.row["title"]),
        ),
        ("Certainty", certainty(of) + figures["reliability"] + _columns(figures, "energies")),
        ("Outside", beyond(of, figures) if of.outside else ""),
        ("Most confident mistakes", of.mistakes),
        ("How it was made", facts(of)),
    ]
    return document(f"{of.row['title']}: an evaluation", headline(of), tiles_html(tiles(of)), sections)


def _columns(figures: dict[str, str], *names: str) -> str:
    return f'<div class="curves">{"".join(figures[name] for name in names)}</div>'


def headline(of: Evaluation) -> str:
    n, value = int((of.labels >= 0).sum()), of.row["metrics"]["accuracy"]["mean"]
    over = f"{n:,} test {of.summary['item']}s"
    if not math.isfinite(value):
        return f"No accuracy is known: {over} have a label, or what the model gives is not finite."
    low, high = statistics.wilson(round(value * n), n)
    return f"{_percent(value)} of {over} are told rightly (95 % interval {_percent(low)} to {_percent(high)})."


def tiles(of: Evaluation) -> list[tuple[str, str]]:
    values = {name: value["mean"] for name, value in of.row["metrics"].items()}
    shown = [
        (f"{values[name]:.3f}", tables.heading(name))
        for name in values
        if name not in ("ece", "nll") and not name.endswith("_scaled")
    ]
    error, told = values["ece"], "calibration error"
    if "ece_scaled" in values:
        error, told = values["ece_scaled"], f"calibration error after temperature scaling, {error:.3f} before"
    scores = of.outside.scores if of.outside else {}
    apart = [
        (f"{outside.told_apart(*pair)['auroc']:.3f}", f"AUROC of what is outside, by {TITLES[name]}")
        for name, pair in scores.items()
    ]
    return [*shown, (f"{error:.3f}", told), *apart]


def results(of: Evaluation) -> str:
    names = list(dict.fromkeys(name for row in of.summary["rows"] for name in row["metrics"]))
    head = ["model", *map(tables.heading, names), f"ms/{of.summary['item']}", ""]
    rows = []
    for row in of.summary["rows"]:
        ms = row.get("ms_per_image")
        cells = [_number(row["metrics"].get(name)) for name in names]
        rows.append((row["role"], [row["title"], *cells, tables.MISSING if ms is None else f"{ms:.2f}", ""]))
    notes = [f"Over {tables.over(of.summary)}."]
    notes += [f"Warning: {text}" for text in of.summary["warnings"]]
    notes += [f"{row['title']} {row['remark']}." for row in of.summary["rows"] if row.get("remark")]
    return tables.table_html(head, rows) + "".join(map(_note, notes))


def certainty(of: Evaluation) -> str:
    if of.scaled is None:
        return _note("No temperature is known: there is no validation data here to find one on.")
    return _note(
        f"Probabilities are those of the logits divided by {of.row['temperature']:.3g}, the temperature that "
        "validation data set. Which class is the most probable stays as it is."
    )


def beyond(of: Evaluation, figures: dict[str, str]) -> str:
    assert of.outside is not None
    head = ["score", "AUROC", "taken for inside, where 95 % of the test images are", ""]
    apart = {name: outside.told_apart(*pair) for name, pair in of.outside.scores.items()}
    rows = [("", [TITLES[k], f"{v['auroc']:.3f}", f"{100 * v['fpr95']:.1f} %", ""]) for k, v in apart.items()]
    item = of.summary["item"]
    count = f"{len(of.labels):,} test {item}s, and {len(of.outside.examples):,} outside, from {of.outside.place}."
    without = "" if len(apart) > 1 else " The model gives no vector of features, which the other scores read."
    drawn = _columns(figures, "outside_roc", *(f"outside_{name}" for name in apart))
    return tables.table_html(head, rows) + _note(count + without) + drawn


def facts(of: Evaluation) -> str:
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in of.facts.items() if v)
    return f'<dl class="facts">{items}</dl>'


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _number(value: dict[str, Any] | None) -> str:
    return f"{value['mean']:.3f}" if value and math.isfinite(value["mean"]) else tables.MISSING


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
