"""The results of a run as a table: for the terminal, for a README, and in full for test_results.txt.

`summary` is what the trainer writes as summary.json; a row may lack whatever was not measured. `class_names` name the
ids of the masks where they begin with "background"; they may also name kinds of images, and then are not used.
"""

import math
from html import escape
from typing import Any

HEADINGS = {
    "f1": "F1",
    "auc": "AUC",
    "false_positive_rate": "false positives",
    "dice": "Dice",
    "iou": "IoU",
    "hd95": "HD95",
    "precision": "precision",
    "recall": "recall",
    "specificity": "specificity",
    "pixel_accuracy": "pixel accuracy",
    "macro_f1": "macro F1",
    "knn": "kNN accuracy",
    "probe": "linear probe",
    "ece": "ECE",
    "ece_scaled": "ECE after scaling",
    "nll": "NLL",
    "nll_scaled": "NLL after scaling",
}
DIGITS = {"hd95": 1}  # after the point; the others have 3
SHOWN = ("dice", "iou", "hd95")
MISSING = "–"
CONTROL = "(control: same budget, same labels)"


def text(summary: dict[str, Any]) -> str:
    """For the terminal: aligned columns, a line per model."""
    return aligned(header(summary), [cells(summary, row) for row in summary["rows"]])


def markdown(summary: dict[str, Any]) -> str:
    """As GitHub renders it."""
    head = header(summary)
    lines = [head, ["---", *["---:"] * (len(head) - 2), "---"], *(cells(summary, row) for row in summary["rows"])]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def header(summary: dict[str, Any]) -> list[str]:
    return ["model", "params", *(heading(name) for name in shown(summary)), f"ms/{summary.get('item', 'image')}", ""]


def cells(summary: dict[str, Any], row: dict[str, Any]) -> list[str]:
    """One row under `header`; the last cell is a note."""
    metrics = row.get("metrics") or {}
    ms = row.get("ms_per_image")
    return [
        row["title"],
        f"{row['parameters']:,}" if row.get("parameters") else MISSING,
        *(mean_std(name, metrics.get(name)) for name in shown(summary)),
        MISSING if ms is None else f"{ms:.1f}" if ms >= 1 else f"{ms:.2f}",
        CONTROL if row.get("role") == "control" else "",
    ]


def shown(summary: dict[str, Any]) -> list[str]:
    """The metrics of the short table: those that the summary names, or Dice, IoU and HD95, or three others. The first
    is a student's, and each row has one of its own if there is room."""
    rows = sorted(summary["rows"], key=lambda row: row.get("role") != "student")
    several = [list(row.get("metrics") or {}) for row in rows]
    firsts = [names[0] for names in several if names]
    metrics = list(dict.fromkeys([*firsts, *(name for names in several for name in names)]))
    return [name for name in summary.get("shown") or SHOWN if name in metrics] or metrics[:3]


def over(summary: dict[str, Any]) -> str:
    """What the means are over: "128 test images"."""
    count = summary.get("test_images")
    return summary.get("over") or (f"{count} test images" if count else "")


def heading(name: str) -> str:
    if name.startswith("top") and name[3:].isdigit():
        return f"top-{name[3:]} accuracy"
    # "location_auc" is the AUC of a label, the location.
    measure = max((key for key in HEADINGS if f"_{name}".endswith(f"_{key}")), key=len, default="")
    return name.removesuffix(measure).replace("_", " ") + HEADINGS.get(measure, "")


def mean_std(name: str, value: dict[str, Any] | None, signed: bool = False) -> str:
    """`0.912 ± 0.034`, the spread over the test images or the seeds."""
    if not value or not _finite(value.get("mean")):
        return MISSING
    digits = DIGITS.get(name, 3)
    spread = f" ± {value['std']:.{digits}f}" if _finite(value.get("std")) else ""
    return f"{value['mean']:{'+' * signed}.{digits}f}{spread}"


def results(summary: dict[str, Any]) -> str:
    """Every metric of every model, and of every class where there are several."""
    parts = [f"{summary['name']}: mean ± standard deviation over {over(summary) or f'{MISSING} test images'}"]
    names = summary.get("class_names") or []
    for row in summary["rows"]:
        per_class = row.get("per_class") or {}
        scopes = {"all": row.get("metrics") or {}}
        if len(per_class) > 1:
            scopes |= {class_name(key, names): value for key, value in per_class.items()}
        measured = list(dict.fromkeys(name for scope in scopes.values() for name in scope))
        body = [[heading(m), *(mean_std(m, scope.get(m)) for scope in scopes.values())] for m in measured]
        head = ["", *scopes] if len(scopes) > 1 else ["", "mean ± std"]
        note = f"  {CONTROL}" if row.get("role") == "control" else ""
        parts.append(f"{row['title']}{note}\n{aligned([*head, ''], [[*line, ''] for line in body])}")
    return "\n\n".join(parts) + "\n"


def table_html(head: list[str], rows: list[tuple[str, list[str]]]) -> str:
    """The last column is for notes and shares its line with the name, to leave room on a narrow screen."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head[:-1])
    lines = []
    for role, (name, *values, note) in rows:
        small = f"<small>{escape(note.strip('()'))}</small>" if note else ""
        cells = "".join(f"<td>{escape(value)}</td>" for value in values)
        lines.append(f'<tr class="{escape(role)}"><th scope="row">{escape(name)}{small}</th>{cells}</tr>')
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def class_name(key: str, names: list[str]) -> str:
    """The name of a class by its number; other groups, such as test sets, go by names already."""
    if not key.isdigit():
        return key
    named = names[:1] == ["background"] and int(key) < len(names)
    return names[int(key)] if named else f"class {key}"


def aligned(head: list[str], rows: list[list[str]], left: tuple[int, ...] = (0, -1)) -> str:
    """Names and notes, the columns in `left`, to the left, numbers to the right."""
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    names = [i % len(head) for i in left]
    return "\n".join(
        "  ".join(
            c.ljust(w) if i in names else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def p_value(p: float) -> str:
    return MISSING if not _finite(p) else "below 0.001" if p < 0.001 else f"{p:.3f}"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"
