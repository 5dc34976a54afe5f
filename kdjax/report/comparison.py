"""Runs beside each other; those that differ in their seed alone are one, with mean and spread over the seeds."""

from html import escape
from statistics import mean, stdev
from typing import Any

from kdjax.report import tables
from kdjax.report.page import document

PAIRED = ("student", "control")  # roles; the rows of teachers from files go by the student's stage too
Folded = dict[str, Any]  # what `fold` makes of the summaries of one experiment


def fold(summaries: list[dict[str, Any]]) -> Folded:
    """Every model's test metrics over the seeds, of each test set too where there are several, and the paired gain over
    the control in the first measure of the table. A model that a seed did not train has fewer values."""
    first = summaries[0]
    shown = tables.shown(first)
    columns: dict[tuple, list[dict]] = {}
    for summary in summaries:
        for row in summary["rows"]:
            columns.setdefault((row["stage"], row["title"]), []).append(row)
    rows = []
    for of_seeds in columns.values():
        groups = of_seeds[0]["per_class"] if first.get("group") else {}
        rows.append(
            {
                **{k: of_seeds[0].get(k) for k in ("stage", "title", "role", "parameters")},
                **{metric: spread([row["metrics"][metric]["mean"] for row in of_seeds]) for metric in shown},
                **{
                    f"{metric} of {group}": spread([row["per_class"][group][metric]["mean"] for row in of_seeds])
                    for group in groups
                    for metric in shown
                },
            }
        )
    return {
        "name": first["name"],
        "seeds": [summary["seed"] for summary in summaries],
        "measures": shown,
        **{k: first.get(k) for k in ("test_images", "hardware", "versions")},
        "seconds": spread([s["seconds"] for s in summaries]),
        "rows": rows,
        "gain_over_control": gains(summaries, shown[0]) if shown else {},
    }


def gains(summaries: list[dict[str, Any]], measure: str) -> dict[str, dict]:
    """What each student has over its control, seed by seed, where both were trained."""
    pairs: dict[str, list[float]] = {}
    for summary in summaries:
        values = {r["stage"]: r["metrics"][measure]["mean"] for r in summary["rows"] if r["role"] in PAIRED}
        for stage in values:
            if f"{stage}_control" in values:
                pairs.setdefault(stage, []).append(values[stage] - values[f"{stage}_control"])
    return {stage: spread(of_stage) for stage, of_stage in pairs.items()}


def spread(values: list[float]) -> dict[str, Any]:
    return {"mean": mean(values), "std": stdev(values) if len(values) > 1 else None, "values": values}


def header(runs: dict[str, Folded]) -> list[str]:
    return ["run", "seeds", "model", "params", *map(tables.heading, measures(runs)), "over control"]


def measures(runs: dict[str, Folded]) -> list[str]:
    return list(dict.fromkeys(measure for folded in runs.values() for measure in folded["measures"]))


def cells(runs: dict[str, Folded]) -> list[tuple[str, list[str]]]:
    """(role, the cells under `header`) of every model of every run; what repeats the line above is left out."""
    lines = []
    for name, folded in runs.items():
        seeds = ", ".join(map(str, folded["seeds"]))
        for i, row in enumerate(folded["rows"]):
            gain = folded["gain_over_control"].get(row["stage"]) if row["role"] == "student" else None
            of_run = ["", ""] if i else [name, seeds]
            size = f"{row['parameters']:,}" if row["parameters"] else tables.MISSING
            values = [tables.mean_std(measure, row.get(measure)) for measure in measures(runs)]
            over = tables.mean_std(folded["measures"][0], gain, signed=True) if gain else ""
            lines.append((row["role"], [*of_run, row["title"], size, *values, over]))
    return lines


def text(runs: dict[str, Folded], differing: dict[str, list[str]]) -> str:
    """For the terminal. `differing` says how the configs differ, by a heading for each."""
    table = tables.aligned(header(runs), [line for _, line in cells(runs)], left=(0, 2))
    return "\n".join([table, "", note(runs), *(f"{name}: {'; '.join(lines)}" for name, lines in differing.items())])


def html(runs: dict[str, Folded], differing: dict[str, list[str]]) -> str:
    """A page that needs nothing else: in its table a run is a line of its own, above those of its models."""
    head = header(runs)[2:]
    rows: list[tuple[str, list[str]]] = []
    for role, (name, of_seeds, *values) in cells(runs):
        if name:
            label = f"seed {of_seeds}" if of_seeds.isdigit() else f"seeds {of_seeds}"
            rows.append(("run", [name, *[""] * (len(head) - 1), label]))
        rows.append((role, [*values, ""]))
    lists = [
        f"<h3>{escape(name)}</h3><ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
        for name, lines in differing.items()
    ]
    count = sum(len(folded["seeds"]) for folded in runs.values())
    sections = [
        ("Results", tables.table_html([*head, ""], rows) + f'<p class="note">{escape(note(runs))}</p>'),
        ("How their configs differ", "".join(lists)),
    ]
    return document("Runs compared", f"{_several(count, 'run')} of {_several(len(runs), 'config')}", "", sections)


def _several(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def note(runs: dict[str, Folded]) -> str:
    several = any(len(folded["seeds"]) > 1 for folded in runs.values())
    spread_over = "mean ± standard deviation over the seeds" if several else "one seed each, so that no spread is known"
    return f"Means over the test data; {spread_over}."
