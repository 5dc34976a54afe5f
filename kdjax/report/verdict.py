"""What a run showed, in a few sentences: the student beside its teacher, and what distillation added to its control."""

import math
from typing import Any

import numpy as np
from scipy import stats

from kdjax.report import tables

SURE = 0.95  # of an interval


def verdict(summary: dict[str, Any]) -> tuple[str, str]:
    """The sentences, and whether they are "good", "bad" or "plain" news.

    Whether distillation helped is what the interval of the paired difference says, and nothing else.
    """
    student, teacher, control = cast(summary)
    if student is None:
        names = ", ".join(row["title"] for row in summary["rows"])
        trained = f"Trained without distillation: {names}." if names else "Nothing was trained."
        unreached = [f"{gate[0].upper()}{gate[1:]}." for gate in summary.get("unreached") or []]
        return " ".join([*unreached, trained]), "bad" if unreached else "plain"
    sentences, mood = [], "plain"
    for who, row in (("The student", student), ("The teacher", teacher), ("The control", control)):
        if row and row.get("remark"):
            sentences.append(f"{who} {row['remark']}.")
            mood = "bad"
    if teacher is not None:
        several = sum(row.get("role") == "student" for row in summary["rows"]) > 1
        who = f"Of several students the best is {student['title']}: it" if several else "The student"
        sentences.append(f"{who} is {_size(student, teacher)} {_kept(summary, student, teacher)}.")
        lead = difference(summary, teacher, control)
        if lead is not None and lead <= 0:
            sentences.append(f"The teacher is no better than the control ({lead:+.3f}): it had little to teach.")
            mood = "bad"
    gain = difference(summary, student, control)
    if gain is not None:
        effect, news = _effect(summary, student, control)
        sentences.append(effect)
        mood = mood if mood == "bad" and news == "good" else news
    elif control is None:
        sentences.append("There was no control run, so what distillation added is not known.")
    return " ".join(sentences), mood


def _effect(summary: dict[str, Any], student: dict | None, control: dict | None) -> tuple[str, str]:
    gain = f"{difference(summary, student, control):+.3f} {tables.heading(primary(summary))} over the control"
    between = interval(summary, student, control)
    over = tables.over(summary)
    if between is None:
        return f"Distillation: {gain}, one seed; no interval is known, so this may be chance.", "plain"
    low, high = between
    spread = f"95 % interval {low:+.3f} to {high:+.3f}, {over + ', ' if over else ''}one seed"
    if low > 0:
        return f"Distillation helped: {gain} ({spread}).", "good"
    if high < 0:
        return f"Distillation hurt: {gain} ({spread}).", "bad"
    return f"Distillation made no difference that can be told from chance: {gain} ({spread}).", "plain"


def cast(summary: dict[str, Any]) -> tuple[dict | None, dict | None, dict | None]:
    """The best student, the best teacher, and the control of that student; None for who is missing."""

    def best(role: str, among: list[str] | None = None) -> dict | None:
        rows = [row for row in summary["rows"] if row.get("role") == role and (not among or row["stage"] in among)]
        return max(rows, key=lambda row: value(row, primary(summary), -math.inf), default=None)

    student = best("student")
    return student, best("teacher", (student or {}).get("teachers")), control_of(summary["rows"], student)


def control_of(rows: list[dict[str, Any]], student: dict[str, Any] | None) -> dict[str, Any] | None:
    """The control of a student: its own, or the only one that there is."""
    controls = [row for row in rows if row.get("role") == "control"]
    own = [row for row in controls if student and row["stage"] == f"{student['stage']}_control"]
    return next(iter(own or (controls if len(controls) == 1 else [])), None)


def primary(summary: dict[str, Any]) -> str:
    """The measure that is spoken of."""
    return next(iter(tables.shown(summary)), "dice")


def value(row: dict[str, Any] | None, name: str, otherwise: float = math.nan) -> float:
    mean = ((row or {}).get("metrics") or {}).get(name, {}).get("mean")
    return otherwise if mean is None or math.isnan(mean) else float(mean)


def difference(summary: dict[str, Any], a: dict | None, b: dict | None) -> float | None:
    gain = value(a, primary(summary)) - value(b, primary(summary))
    return None if math.isnan(gain) else gain


def interval(summary: dict[str, Any], a: dict | None, b: dict | None) -> tuple[float, float] | None:
    """Student's t of the mean difference, image by image; None where rows have no "per_image" values, or too few."""
    ours, theirs = ((row or {}).get("per_image", {}).get(primary(summary), []) for row in (a, b))
    if len(ours) != len(theirs):
        return None
    differences = np.subtract(ours, theirs)
    differences = differences[np.isfinite(differences)]
    if len(differences) < 2:
        return None
    error = differences.std(ddof=1) / math.sqrt(len(differences))
    reach = stats.t.ppf((1 + SURE) / 2, len(differences) - 1) * error
    return float(differences.mean() - reach), float(differences.mean() + reach)


def ratio(a: float | int | None, b: float | int | None) -> float | None:
    return a / b if a and b and a > 0 and b > 0 and math.isfinite(a / b) else None


def times(factor: float) -> str:
    return f"{factor:.0f}×" if factor >= 10 else f"{factor:.1f}×"


def _size(student: dict[str, Any], teacher: dict[str, Any]) -> str:
    factor = ratio(teacher.get("parameters"), student.get("parameters"))
    if factor is None:
        return "trained"
    return f"{times(factor)} smaller than the teacher" if factor > 1.05 else "no smaller than the teacher"


def _kept(summary: dict[str, Any], student: dict[str, Any], teacher: dict[str, Any]) -> str:
    name = primary(summary)
    ours, theirs = value(student, name), value(teacher, name)
    share = ratio(ours, theirs)
    if share is None:
        return "and was not measured against it"
    if share > 1:
        return f"and exceeds its {tables.heading(name)} ({ours:.3f} against {theirs:.3f})"
    return f"and keeps {_percent(share)} of its {tables.heading(name)} ({ours:.3f} of {theirs:.3f})"


def _percent(share: float) -> str:
    return f"{math.floor(1000 * share) / 10:.1f} %" if share > 0.995 else f"{100 * share:.0f} %"
