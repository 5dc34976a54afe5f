"""report.html: the results of a run on one page that needs nothing else, to open anywhere and to send to others."""

import math
from collections.abc import Iterable
from html import escape
from typing import Any

import numpy as np

from kdjax.report import tables
from kdjax.report.figures import curves as figures
from kdjax.report.figures.style import CSS
from kdjax.report.tables import table_html


def render(
    summary: dict[str, Any],
    curves: dict[str, list[dict[str, Any]]],
    pictures: dict[str, str],
    config_json: str,
) -> str:
    """The page. `curves` are the records of each stage's metrics.jsonl, `pictures` the sections in HTML that the tasks
    add; `config_json` is shown as it is.
    """
    headline, mood = verdict(summary)
    title = f"{summary['name']}, seed {summary.get('seed', 0)}"
    sections = [
        ("Results", _results(summary)),
        *pictures.items(),
        ("Training", _training(summary, curves)),
        ("How it was made", _facts(summary)),
        (
            "Configuration",
            f"<details><summary>Show the whole configuration</summary><pre>{escape(config_json)}</pre></details>",
        ),
    ]
    return document(title, headline, _tiles(summary), sections, mood)


def document(title: str, headline: str, tiles: str, sections: Iterable[tuple[str, str]], mood: str = "plain") -> str:
    """A page that needs nothing else; sections are HTML by their heading, and empty ones are left out."""
    body = "".join(f"<section><h2>{name}</h2>{html}</section>" for name, html in sections if html)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body><main>"
        f'<header><p class="eyebrow">{escape(title)}</p><h1 class="{mood}">{escape(headline)}</h1>'
        f"{tiles}</header>{body}</main></body></html>\n"
    )


# -- what came out of it ---------------------------------------------------------------------------------------------


def verdict(summary: dict[str, Any]) -> tuple[str, str]:
    """One or two sentences, and whether they are "good", "bad" or "plain" news."""
    student, teacher, control = cast(summary)
    if student is None:
        names = ", ".join(row["title"] for row in summary["rows"])
        return (f"Trained without distillation: {names}." if names else "Nothing was trained."), "plain"
    sentences, mood = [], "plain"
    if teacher is not None:
        several = sum(row.get("role") == "student" for row in summary["rows"]) > 1
        who = f"Of several students the best is {student['title']}: it" if several else "The student"
        sentences.append(f"{who} is {_size(student, teacher)} {_kept(summary, student, teacher)}.")
    gain = _difference(summary, student, control)
    if gain is not None:
        name, over = tables.heading(primary(summary)), tables.over(summary)
        if abs(gain) < 2 * _paired_error(summary, student, control):
            where = f"these {over}" if over else "the test images"
            sentences.append(
                f"Against the control, distillation made no difference that {where} can show ({gain:+.3f} {name})."
            )
        elif gain > 0:
            sentences.append(f"Distillation added {gain:+.3f} {name} over the control.")
            mood = "good"
        else:
            sentences.append(f"Distillation did not help: {gain:+.3f} {name} against the control.")
            mood = "bad"
    elif control is None:
        sentences.append("There was no control run, so what distillation added is not known.")
    return " ".join(sentences), mood


def cast(summary: dict[str, Any]) -> tuple[dict | None, dict | None, dict | None]:
    """The best student, the best teacher, and the control of that student; None for who is missing."""

    def best(role: str, among: list[str] | None = None) -> dict | None:
        rows = [row for row in summary["rows"] if row.get("role") == role and (not among or row["stage"] in among)]
        return max(rows, key=lambda row: _value(row, primary(summary), -math.inf), default=None)

    student = best("student")
    controls = [row for row in summary["rows"] if row.get("role") == "control"]
    own = [row for row in controls if student and row["stage"] == f"{student['stage']}_control"]
    named = (student or {}).get("teachers")
    return student, best("teacher", named), next(iter(own or (controls if len(controls) == 1 else [])), None)


def primary(summary: dict[str, Any]) -> str:
    """The measure that the page speaks of."""
    return next(iter(tables.shown(summary)), "dice")


def _value(row: dict[str, Any] | None, name: str, otherwise: float = math.nan) -> float:
    value = ((row or {}).get("metrics") or {}).get(name, {}).get("mean")
    return otherwise if value is None or math.isnan(value) else float(value)


def _difference(summary: dict[str, Any], a: dict | None, b: dict | None) -> float | None:
    gain = _value(a, primary(summary)) - _value(b, primary(summary))
    return None if math.isnan(gain) else gain


def _paired_error(summary: dict[str, Any], a: dict | None, b: dict | None) -> float:
    """The standard error of the mean difference, image by image; 0 where rows have no "per_image" values."""
    ours, theirs = ((row or {}).get("per_image", {}).get(primary(summary), []) for row in (a, b))
    if len(ours) != len(theirs) or len(ours) < 2:
        return 0.0
    differences = np.subtract(ours, theirs)
    return float(np.nanstd(differences, ddof=1) / math.sqrt(len(differences)))


def _size(student: dict[str, Any], teacher: dict[str, Any]) -> str:
    ratio = _ratio(teacher.get("parameters"), student.get("parameters"))
    if ratio is None:
        return "trained"
    return f"{_times(ratio)} smaller than the teacher" if ratio > 1.05 else "no smaller than the teacher"


def _kept(summary: dict[str, Any], student: dict[str, Any], teacher: dict[str, Any]) -> str:
    name = primary(summary)
    share = _ratio(_value(student, name), _value(teacher, name))
    if share is None:
        return "and was not measured against it"
    if share > 1:
        return (
            f"and exceeds its {tables.heading(name)} ({_value(student, name):.3f} against {_value(teacher, name):.3f})"
        )
    return f"and keeps {_percent(share)} of its {tables.heading(name)}"


def _ratio(a: float | int | None, b: float | int | None) -> float | None:
    return a / b if a and b and a > 0 and b > 0 and math.isfinite(a / b) else None


def _times(ratio: float) -> str:
    return f"{ratio:.0f}×" if ratio >= 10 else f"{ratio:.1f}×"


def _percent(share: float) -> str:
    return f"{math.floor(1000 * share) / 10:.1f} %" if share > 0.995 else f"{100 * share:.0f} %"


def _tiles(summary: dict[str, Any]) -> str:
    student, teacher, control = cast(summary)
    if student is None:
        return ""
    name = primary(summary)
    heading = tables.heading(name)
    own = _value(student, name)
    tiles = [] if math.isnan(own) else [(f"{own:.3f}", f"{heading} of the student")]
    gain = _difference(summary, student, control)
    if gain is not None:
        tiles.append((f"{gain:+.3f}", f"{heading} over the control"))
    for key, text in (("parameters", "fewer parameters than the teacher"), ("ms_per_image", "faster than the teacher")):
        ratio = _ratio((teacher or {}).get(key), student.get(key))
        if ratio is not None and ratio > 1.05:
            tiles.append((_times(ratio), text))
    return tiles_html(tiles)


def tiles_html(tiles: Iterable[tuple[str, str]]) -> str:
    """(value, what it is) of each tile."""
    items = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for value, label in tiles)
    return f'<dl class="tiles">{items}</dl>' if items else ""


def _results(summary: dict[str, Any]) -> str:
    head = tables.header(summary)
    rows = [(row.get("role", ""), tables.cells(summary, row)) for row in summary["rows"]]
    over = tables.over(summary)
    note = f"Mean ± standard deviation over {over}" if over else "Mean ± standard deviation"
    note += "; HD95 in pixels." if "hd95" in tables.shown(summary) else "."
    return table_html(head, rows) + f'<p class="note">{escape(note)}</p>' + _per_class(summary)


def _per_class(summary: dict[str, Any]) -> str:
    name, names = primary(summary), summary.get("class_names") or []
    keys = list(dict.fromkeys(k for row in summary["rows"] for k in row.get("per_class") or {}))
    if len(keys) < 2:
        return ""
    head = ["model", *(tables.class_name(k, names) for k in keys), ""]
    parts = []
    for measure in [name, *summary.get("group_measures", [])]:
        rows = []
        for row in summary["rows"]:
            values = [tables.mean_std(measure, (row.get("per_class") or {}).get(k, {}).get(measure)) for k in keys]
            rows.append((row.get("role", ""), [row["title"], *values, ""]))
        heading = f"{tables.heading(measure)} of each {summary.get('group', 'class')}"
        parts.append(f"<h3>{escape(heading)}</h3>{table_html(head, rows)}")
    return "".join(parts)


# -- how it was trained --------------------------------------------------------------------------------------------


def _training(summary: dict[str, Any], curves: dict[str, list[dict[str, Any]]]) -> str:
    titles = {row["stage"]: row["title"] for row in summary["rows"]}
    named = {titles.get(stage, stage): records for stage, records in curves.items()}
    advice: dict[str, list[str]] = {}
    for row in summary["rows"]:
        advice.setdefault(row["title"], []).extend([row["advice"]] if row.get("advice") else [])
    parts = []
    for name in _validated(summary, named):
        heading = f"{tables.heading(name)} on validation {summary.get('item', 'image')}s"
        parts.append(figure(heading, figures.validation_curves(named, name), wide=True))
    for title, records in named.items():
        drawn = "".join(figure(what, svg) for what, svg in figures.learning_curves(records).items())
        if drawn:
            parts.append(f'<h3>{escape(title)}</h3><div class="curves">{drawn}</div>')
        parts += [f'<p class="note">{escape(text)}</p>' for text in advice.get(title, [])]
    return "".join(parts)


def _validated(summary: dict[str, Any], curves: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The measure on validation data to draw: the page's own where it was recorded, else the first one."""
    records = [r for stage in curves.values() for r in stage if r["split"] == "val"]
    measures = [k for k in dict.fromkeys(k for r in records for k in r) if k not in ("step", "split")]
    return [primary(summary)] if primary(summary) in measures else measures[:1]


def figure(heading: str, svg: str, wide: bool = False) -> str:
    kind = ' class="wide"' if wide else ""
    return f"<figure{kind}><figcaption>{escape(heading)}</figcaption>{svg}</figure>" if svg else ""


# -- the small print -------------------------------------------------------------------------------------------------


def _facts(summary: dict[str, Any]) -> str:
    rows = []
    for row in summary["rows"]:
        count, trained = row.get("epochs"), row.get("trained_parameters")
        best = f"{row['best_epoch']} of {count}" if row.get("best_epoch") and count else str(count or tables.MISSING)
        seconds = tables.MISSING if row.get("seconds") is None else _duration(row["seconds"])
        rows.append(("", [row["title"], best, f"{trained:,}" if trained else tables.MISSING, seconds, ""]))
    table = table_html(["model", "best epoch", "trained parameters", "time", ""], rows) if rows else ""
    facts = {
        "Total time": None if summary.get("seconds") is None else _duration(summary["seconds"]),
        "Hardware": summary.get("hardware"),
        "Versions": ", ".join(f"{k} {v}" for k, v in (summary.get("versions") or {}).items()),
        "Seed": summary.get("seed"),
    }
    items = "".join(
        f"<div><dt>{name}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in facts.items()
        if value not in (None, "")
    )
    return f'{table}<dl class="facts">{items}</dl>'


def _duration(seconds: float | int) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
