"""Which of two models is right where the other is not: whom a student is held against, and in what words."""

import pytest
from scipy.stats import binomtest

from kdjax.report.disagreements import better, disagreements, html, pairs


def row(stage: str, role: str, right: str, teachers=()) -> dict:
    """`right` has a 1 for each example that the model is right about."""
    values = [float(x) for x in right]
    measures = {"accuracy": values, "macro_f1": values}
    return {"stage": stage, "title": f"the {stage}", "role": role, "teachers": list(teachers), "per_image": measures}


ROWS = [
    row("teacher", "teacher", "1111110000"),
    row("aside", "teacher", "1111111111"),
    row("small", "student", "1111111101", ["teacher"]),
    row("smaller", "student", "0000000001", ["teacher"]),
    row("small_control", "control", "0000000010"),
]


def test_a_student_stands_beside_its_own_teachers_and_its_own_control():
    assert [(a["stage"], b["stage"]) for a, b in pairs(ROWS)] == [
        ("small", "teacher"),
        ("smaller", "teacher"),
        ("small", "small_control"),
        ("smaller", "small_control"),
    ]
    assert pairs(ROWS[:2]) == []


def test_lines_count_who_alone_is_right():
    lines = disagreements(ROWS)
    assert [line["measure"] for line in lines] == ["accuracy"] * 4, "of macro F1 nobody is right or wrong"
    assert (lines[0]["first"], lines[0]["second"], lines[0]["n"]) == ("the small", "the teacher", 10)
    assert (lines[0]["only_first"], lines[0]["only_second"]) == (3, 0)
    assert lines[2]["p"] == pytest.approx(binomtest(1, 10).pvalue)
    assert [better(line) for line in lines] == ["may be chance", "may be chance", "the first", "neither"]


def test_models_of_other_test_data_are_not_compared():
    elsewhere = [row("t", "teacher", "111"), row("s", "student", "11", ["t"])]
    assert disagreements(elsewhere) == []
    elsewhere[0].pop("per_image")
    assert disagreements(elsewhere) == []
    assert html([]) == ""


def test_the_table_says_it_in_words():
    lines = disagreements([row("<t>", "teacher", "0" * 40), row("s", "student", "1" * 40, ["<t>"])])
    shown = html(lines)
    assert "the s against the &lt;t&gt;<small>accuracy</small>" in shown
    assert "<td>40</td><td>40</td><td>0</td><td>below 0.001</td><td>the first</td>" in shown
    assert "one in twenty" not in shown, "of a single line"
    assert "one in twenty" in html(lines * 2)
    assert better({"only_first": 3, "only_second": 3, "p": 1.0}) == "neither"
