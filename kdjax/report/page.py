"""report.html: the results of a run on one page that needs nothing else, to open anywhere and to send to others."""

import math
from collections.abc import Iterable
from html import escape
from typing import Any

from kdjax.report import disagreements, tables, verdict
from kdjax.report.figures import curves as figures
from kdjax.report.figures.style import CSS
from kdjax.report.tables import table_html

MADE = '<meta name="generator" content="kdjax">'  # in every page, so that only pages of ours are ever written over


def render(
    summary: dict[str, Any],
    curves: dict[str, list[dict[str, Any]]],
    pictures: dict[str, str],
    config_json: str,
) -> str:
    """The page. `curves` are the records of each stage's metrics.jsonl, `pictures` the sections in HTML that the tasks
    add; `config_json` is shown as it is.
    """
    headline, mood = verdict.verdict(summary)
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
        f'{MADE}<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body><main>"
        f'<header><p class="eyebrow">{escape(title)}</p><h1 class="{mood}">{escape(headline)}</h1>'
        f"{tiles}</header>{body}</main></body></html>\n"
    )


# -- what came out of it ---------------------------------------------------------------------------------------------


def _tiles(summary: dict[str, Any]) -> str:
    student, teacher, control = verdict.cast(summary)
    if student is None:
        return ""
    name = verdict.primary(summary)
    heading = tables.heading(name)
    own = verdict.value(student, name)
    tiles = [] if math.isnan(own) else [(f"{own:.3f}", f"{heading} of the student")]
    gain = verdict.difference(summary, student, control)
    if gain is not None:
        tiles.append((f"{gain:+.3f}", f"{heading} over the control"))
    for key, text in (("parameters", "fewer parameters than the teacher"), ("ms_per_image", "faster than the teacher")):
        ratio = verdict.ratio((teacher or {}).get(key), student.get(key))
        if ratio is not None and ratio > 1.05:
            tiles.append((verdict.times(ratio), text))
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
    if "hd95" in tables.shown(summary):
        size = summary.get("image_size")
        note += f"; HD95 in pixels of the {size} × {size} image that is scored" if size else "; HD95 in pixels"
    note += f"; ms/{summary.get('item', 'image')} of all models measured in turns, a batch at a time."
    notes = [note, *(f"Warning: {text}" for text in summary.get("warnings") or [])]
    table = table_html(head, rows) + "".join(f'<p class="note">{escape(n)}</p>' for n in notes)
    return table + _per_class(summary) + disagreements.html(summary.get("disagreements") or [])


def _per_class(summary: dict[str, Any]) -> str:
    name, names = verdict.primary(summary), summary.get("class_names") or []
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
    return [verdict.primary(summary)] if verdict.primary(summary) in measures else measures[:1]


def figure(heading: str, svg: str, wide: bool = False) -> str:
    kind = ' class="wide"' if wide else ""
    return f"<figure{kind}><figcaption>{escape(heading)}</figcaption>{svg}</figure>" if svg else ""


# -- the small print -------------------------------------------------------------------------------------------------


def _facts(summary: dict[str, Any]) -> str:
    item = summary.get("item", "image")
    head = ["model", "best epoch", "trained parameters", "time", f"{item}s/s", "peak memory", f"MFLOP/{item}", ""]
    rows = [("", [row["title"], *_made(row), ""]) for row in summary["rows"]]
    table = table_html(head, rows) if rows else ""
    last: dict[str, Any] = max(summary["rows"], key=lambda row: row.get("date", ""), default={})
    facts = {
        "Gates": "; ".join(summary.get("gates") or []),
        "Data": "; ".join(summary.get("data") or []),
        "Command": last.get("command"),
        "Date": last.get("date"),
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


def _made(row: dict[str, Any]) -> list[str]:
    """Under the headings of the table: what it took to make a model, and what it takes to use it."""
    epochs, best = row.get("epochs"), row.get("best_epoch")
    texts = {
        "best epoch": f"{best} of {epochs}" if best and epochs else epochs,
        "trained_parameters": (n := row.get("trained_parameters")) and f"{n:,}",
        "seconds": _duration(row["seconds"]) if row.get("seconds") is not None else None,
        "rate": (rate := row.get("rate")) and f"{rate:,.0f}",
        "peak_bytes": (size := row.get("peak_bytes")) and f"{size / 2**20:,.0f} MiB",
        "flops": (flops := row.get("flops_per_image")) and f"{flops / 1e6:,.1f}",
    }
    return [str(text or tables.MISSING) for text in texts.values()]


def _duration(seconds: float | int) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
