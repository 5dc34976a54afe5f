import re

import numpy as np

from kdjax.report import classes
from kdjax.report.metrics.classification import per_class

COUNTS = np.array([[3, 1, 0], [2, 2, 0], [0, 0, 0]])


def rows(html):
    return [re.findall(r"<t[hd][^>]*>([^<]*)<", row) for row in re.findall(r"<tr.*?</tr>", html)]


def test_a_line_for_each_class_with_the_other_models_beside():
    html = classes.table({"teacher": 2 * COUNTS.T, "student": COUNTS}, ["cat", "dog <1>", "owl"], "student")
    head, *lines = rows(html)
    assert head == ["class", "examples", "precision of student", "recall of student", "F1 of student", "F1 of teacher"]
    assert lines[0] == ["cat", "4", "0.600", "0.750", "0.667", "0.667"]
    assert lines[1] == ["dog &lt;1&gt;", "4", "0.667", "0.500", "0.571", "0.571"]
    assert lines[2] == ["owl", "0", "–", "–", "–", "–"]
    assert classes.table({"student": 0 * COUNTS}, ["a", "b", "c"], "student") == ""


def test_of_many_classes_the_worst_come_first():
    k = 30
    counts = np.eye(k, dtype=int) * 5
    counts[17, 3] = counts[4, 9] = 2
    counts[17, 17], counts[29] = 0, 0
    short, every = classes.table({"m": counts}, [f"kind {i}" for i in range(k)], "m").split("<details>")
    assert [line[0] for line in rows(short)[1:3]] == ["kind 17", "kind 3"]
    assert len(rows(short)) == 1 + classes.WORST
    assert "kind 29" not in short, "which has no examples"
    assert len(rows(every)) == 1 + k


def test_the_file_has_both_means():
    lines = classes.lines(per_class(COUNTS + np.diag([0, 4, 0])), ["cat", "dog", "owl"])
    assert lines[0] == ["cat", "0.600000", "0.750000", "0.666667", 4]
    assert lines[2] == ["owl", "", "", "", 0]
    mean, weighted = lines[3:]
    assert (mean[0], mean[2], mean[4]) == ("mean over classes", f"{(0.75 + 6 / 8) / 2:.6f}", 12)
    assert (weighted[0], weighted[1]) == ("mean over examples", f"{(4 * 3 / 5 + 8 * 6 / 7) / 12:.6f}")
    assert classes.lines(per_class(0 * COUNTS), ["a", "b", "c"])[3] == ["mean over classes", "", "", "", 0]
