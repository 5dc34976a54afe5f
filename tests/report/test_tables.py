import math

from kdjax.report import tables

CONTROL = "(control: same budget, same labels)"
TEXT = f"""\
model                   params           Dice            IoU       HD95  ms/image
teacher (SAM, LoRA)  6,179,073  0.912 ± 0.034  0.832 ± 0.041  2.6 ± 2.5      12.3
student, distilled     412,345  0.884 ± 0.034  0.804 ± 0.041  3.5 ± 2.5      0.87
student, no teacher    412,345  0.853 ± 0.034  0.773 ± 0.041  4.4 ± 2.5      0.87  {CONTROL}"""

MARKDOWN = """\
| model | params | Dice | IoU | HD95 | ms/image |  |
| --- | ---: | ---: | ---: | ---: | ---: | --- |
| teacher \\| SAM | 6,179,073 | 0.912 ± 0.034 | 0.832 ± 0.041 | 2.6 ± 2.5 | 12.3 |  |"""

RESULTS = """\
sam_distill: mean ± standard deviation over 96 test images

student, no teacher  (control: same budget, same labels)
                       all        class 1        class 2
Dice         0.853 ± 0.034  0.853 ± 0.034  0.700 ± 0.034
IoU          0.773 ± 0.041  0.773 ± 0.041  0.620 ± 0.041
HD95             4.4 ± 2.5      4.4 ± 2.5      9.0 ± 2.5
precision    0.853 ± 0.050  0.853 ± 0.050  0.700 ± 0.050
recall       0.853 ± 0.060  0.853 ± 0.060  0.700 ± 0.060
specificity  0.990 ± 0.004  0.990 ± 0.004  0.990 ± 0.004
"""


def test_the_text_table(summary):
    assert tables.text(summary) == TEXT


def test_the_markdown_table(summary):
    summary["rows"] = summary["rows"][:1]
    summary["rows"][0]["title"] = "teacher | SAM"
    assert tables.markdown(summary) == MARKDOWN


def test_what_was_not_measured_is_a_dash(summary):
    del summary["rows"][0]["metrics"]["iou"], summary["rows"][0]["ms_per_image"]
    summary["rows"][0]["metrics"]["dice"] = {"mean": math.nan, "std": math.nan, "n": 0}
    summary["rows"].append({"stage": "bare", "role": "other", "title": "bare"})
    lines = tables.text(summary).splitlines()
    assert lines[1].count(tables.MISSING) == 3
    assert lines[4].split() == ["bare", *[tables.MISSING] * 5]


def test_another_kind_of_task_shows_its_own_metrics(summary):
    for row in summary["rows"]:
        row["metrics"] = {k: {"mean": 0.5, "std": 0.1, "n": 3} for k in ("auc", "accuracy", "f1", "brier")}
    assert tables.header(summary) == ["model", "params", "AUC", "accuracy", "F1", "ms/image", ""]


def test_the_full_results_have_a_column_per_class(summary, metrics_of):
    summary["rows"] = summary["rows"][2:]
    summary["rows"][0]["per_class"]["2"] = metrics_of(0.7)
    summary["class_names"] = ["background", "benign", "malignant"]
    assert "malignant" in tables.results(summary)
    summary["class_names"] = ["benign", "malignant", "normal"]  # kinds of images, not of pixels
    assert tables.results(summary) == RESULTS


def test_a_summary_may_name_its_measures_and_a_label_stands_before_its_measure(summary):
    names = ("macro_f1", "a_accuracy", "b_accuracy", "b_auc", "a_macro_f1", "c_accuracy")
    summary["rows"] = [
        {**row, "metrics": {k: {"mean": 0.5, "std": math.nan} for k in names}} for row in summary["rows"]
    ]
    summary["shown"] = ["macro_f1", "a_accuracy", "b_accuracy", "c_accuracy"]
    assert tables.header(summary)[2:-2] == ["macro F1", "a accuracy", "b accuracy", "c accuracy"]
    assert [tables.heading(name) for name in ("b_auc", "a_macro_f1", "knn", "top5", "of_f1_2")] == [
        "b AUC",
        "a macro F1",
        "kNN accuracy",
        "top-5 accuracy",
        "of f1 2",
    ]
    assert [tables.p_value(p) for p in (0.0002, 0.04, 1.0, math.nan)] == ["below 0.001", "0.040", "1.000", "–"]
