"""Where of two models one is right and the other is not, by McNemar's test: the student beside its teachers and beside
its control, for each accuracy of which every example is known."""

from html import escape
from typing import Any

import numpy as np

from kdjax.report import tables, verdict
from kdjax.report.metrics.mcnemar import mcnemar

LEVEL = 0.05  # of p, below which a difference is told from chance


def disagreements(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each pair of models and each accuracy: their titles ("first", "second"), "measure", "n" examples, how
    many only the one and only the other is right about, and p."""
    lines = []
    for first, second in pairs(rows):
        ours, theirs = first.get("per_image") or {}, second.get("per_image") or {}
        for name in ours:
            if not name.endswith("accuracy") or len(ours[name]) != len(theirs.get(name, [])):
                continue
            right = [np.asarray(values) > 0 for values in (ours[name], theirs[name])]
            b, c, p = mcnemar(*right)
            titles = {"first": first["title"], "second": second["title"]}
            lines.append({**titles, "measure": name, "n": len(right[0]), "only_first": b, "only_second": c, "p": p})
    return lines


def pairs(rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each student beside its teachers, then each beside its control."""
    students = [row for row in rows if row.get("role") == "student"]
    taught = [
        (student, row)
        for student in students
        for row in rows
        if row.get("role") == "teacher" and row["stage"] in student.get("teachers", [])
    ]
    return taught + [(row, control) for row in students if (control := verdict.control_of(rows, row))]


def html(lines: list[dict[str, Any]]) -> str:
    """As a table of the report; "" where there is nothing to compare."""
    if not lines:
        return ""
    head = ["two models", "examples", "only the first is right", "only the second is right", "p", "which is better", ""]
    rows = [
        (
            "",
            [
                f"{line['first']} against {line['second']}",
                *(f"{line[key]:,}" for key in ("n", "only_first", "only_second")),
                tables.p_value(line["p"]),
                better(line),
                tables.heading(line["measure"]),
            ],
        )
        for line in lines
    ]
    note = (
        "McNemar's test looks at the examples that one model is right about and the other is not: p is how often they "
        "fall apart so unevenly, or more so, where both models are right equally often; chance is an unlikely reason "
        f"below {LEVEL:g}. Each line is taken for itself"
    )
    several = ": among equal models one in twenty is below that" if len(lines) > 1 else ""
    table = tables.table_html(head, rows)
    return f'<h3>Where they disagree</h3>{table}<p class="note">{escape(note + several)}.</p>'


def better(line: dict[str, Any]) -> str:
    if line["only_first"] == line["only_second"]:
        return "neither"
    if not line["p"] < LEVEL:
        return "may be chance"
    return "the first" if line["only_first"] > line["only_second"] else "the second"
