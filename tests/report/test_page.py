import re
from html.parser import HTMLParser

import numpy as np
import pytest
import scipy.stats

from kdjax.report import page, verdict
from kdjax.report.figures.examples import examples_html

VOID = {"meta", "img", "br", "link"}


class Outline(HTMLParser):
    """Raises on a tag that is not closed in its place; collects text, tags, ids and links."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.tags, self.ids, self.links = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [v for k, v in attrs if k == "id"]
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def shown(examples):
    return {"Test images": examples_html(examples, "student, distilled")}


@pytest.fixture
def whole(summary, curves, examples):
    return page.render(summary, curves, shown(examples), '{"name": "sam_distill"}')


def test_the_page_is_whole_and_needs_no_network(whole):
    outline = Outline(whole)
    assert "http" not in whole
    assert "@import" not in whole
    assert "script" not in outline.tags
    assert all(link.startswith(("data:image/webp;base64,", "#")) for link in outline.links)
    assert set(re.findall(r"url\((.)", whole)) == {"#"}
    assert len(outline.ids) == len(set(outline.ids))
    assert outline.tags.count("img") == 3 * 6
    assert outline.tags.count("svg") == 1 + 3 * 2
    assert len(whole) < 3e6


def test_the_page_says_it_in_order(whole):
    text = " ".join(Outline(whole).text)
    said = [
        "The student is 15× smaller than the teacher and keeps 97 % of its Dice (0.884 of 0.912). "
        "Distillation: +0.031 Dice over the control, one seed; no interval is known, so this may be chance.",
        "Results",
        "0.884 ± 0.034",
        "control: same budget, same labels",
        "best",
        "median",
        "worst",
        "Dice on validation images",
        "training loss",
        "gradient norm",
        "9 of 12",
        "4 min 01 s",
        "2 x CPU (a processor)",
        "jax 0.10.2",
        '{"name": "sam_distill"}',
    ]
    places = [text.find(part) for part in said]
    assert -1 not in places
    assert places == sorted(places)


def test_examples_come_best_first_whatever_their_order(summary, examples):
    html = page.render(summary, {}, shown(examples[::-1]), "{}")
    assert html.index("case0") < html.index("case1") < html.index("case2")


def test_everything_that_people_name_is_escaped(summary, curves, examples):
    bad = "<script>alert('x')</script>&\"$"
    for key in ("name", "hardware"):
        summary[key] = bad
    summary["versions"] = {bad: bad}
    summary["rows"][1]["title"] = bad
    for example in examples:
        example["name"] = bad
        example["predictions"] = {bad: example["truth"]}
    curves["student"] = [{**r, f"terms/{bad}": 1.0} if r["split"] == "train" else r for r in curves["student"]]
    curves[bad] = curves["student"]
    html = page.render(summary, curves, shown(examples), bad)
    outline = Outline(html)
    assert "script" not in outline.tags
    assert "alert('x')" in "".join(outline.text)


@pytest.mark.parametrize("missing", ["teacher", "student", "control", "all"])
def test_missing_rows_do_not_break_it(summary, curves, examples, missing):
    curves = {"teacher": curves["teacher"][:3]}
    summary["rows"] = [row for row in summary["rows"] if missing not in (row["role"], "all")]
    text = " ".join(Outline(page.render(summary, curves, shown(examples), "{}")).text)
    expected = {
        "teacher": "Distillation: +0.031 Dice over the control, one seed",
        "student": "Trained without distillation: teacher (SAM, LoRA), student, no teacher.",
        "control": "There was no control run, so what distillation added is not known.",
        "all": "Nothing was trained.",
    }
    assert expected[missing] in text


def test_bare_rows_and_no_curves_do_not_break_it():
    row = {"stage": "a", "role": "student", "title": "a"}
    bare = {"name": "x", "rows": [row, {**row, "role": "teacher"}, {**row, "role": "control"}]}
    Outline(page.render(bare, {}, {}, ""))


def with_dice(summary, student, control, per_image=None):
    for row, dice in zip(summary["rows"][1:], (student, control), strict=True):
        row["metrics"]["dice"]["mean"] = float(np.mean(dice))
        if per_image:
            row["per_image"] = {"dice": dice}
    return verdict.verdict(summary)


def of_images(mean):
    noise = np.random.default_rng(0).normal(size=96) * 0.05
    control = np.linspace(0.6, 0.95, 96)
    return list(control + noise - noise.mean() + mean), list(control)


@pytest.mark.parametrize(
    ("gain", "said", "mood"),
    [
        (-0.02, "Distillation hurt: -0.020 Dice over the control (95 % interval -0.030 to -0.010,", "bad"),
        (0.002, "Distillation made no difference that can be told from chance: +0.002 Dice over the control", "plain"),
        (0.02, "Distillation helped: +0.020 Dice over the control (95 % interval +0.010 to +0.030,", "good"),
    ],
)
def test_the_interval_alone_says_whether_distillation_helped(summary, gain, said, mood):
    headline, news = with_dice(summary, *of_images(gain), per_image=True)
    assert said in headline
    assert headline.endswith("96 test images, one seed).")
    assert news == mood


def test_without_values_of_images_nothing_is_claimed(summary):
    headline, mood = with_dice(summary, 0.84, 0.853)
    assert "Distillation: -0.013 Dice over the control, one seed; no interval is known" in headline
    assert mood == "plain"


def test_the_interval_is_that_of_the_paired_t_test(summary):
    ours, theirs = of_images(0.01)
    with_dice(summary, ours, theirs, per_image=True)
    low, high = verdict.interval(summary, *summary["rows"][1:])
    expected = scipy.stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    np.testing.assert_allclose((low, high), expected, rtol=1e-12)


def test_a_student_that_predicts_nothing_and_a_teacher_that_knows_nothing_come_first(summary):
    summary["rows"][1]["remark"] = "marks nothing in any test image"
    summary["rows"][0]["metrics"]["dice"]["mean"] = 0.055
    headline, mood = with_dice(summary, *of_images(0.02), per_image=True)
    assert headline.startswith("The student marks nothing in any test image.")
    assert "The teacher is no better than the control (-0.720): it had little to teach." in headline
    assert mood == "bad"


def test_a_student_that_beats_its_teacher_and_one_that_is_as_large(summary):
    summary["rows"][1]["parameters"] = 6_179_073
    headline, _ = with_dice(summary, 0.93, 0.85)
    assert headline.startswith("The student is no smaller than the teacher and exceeds its Dice (0.930 against 0.912).")


def test_a_share_just_below_one_is_not_rounded_up_to_it(summary):
    assert "keeps 99.9 % of its Dice (0.912 of 0.912)" in with_dice(summary, 0.9119, 0.85)[0]


def test_the_best_of_several_students_is_measured_against_its_own_control(summary, make_row):
    summary["rows"] += [
        make_row("wide", "student", "wide student", 800_000, 1.0, 0.9),
        make_row("wide_control", "control", "wide, no teacher", 800_000, 1.0, 0.88),
    ]
    headline, _ = verdict.verdict(summary)
    assert "7.7× smaller" in headline
    assert "+0.020 Dice over the control" in headline


def test_classes_have_their_table(summary, metrics_of):
    for row in summary["rows"]:
        row["per_class"] = {"1": metrics_of(0.9), "2": metrics_of(0.7)}
    summary["class_names"] = ["background", "benign", "malignant"]
    text = " ".join(Outline(page.render(summary, {}, {}, "{}")).text)
    assert text.index("Dice of each class") < text.index("malignant") < text.index("0.700 ± 0.034")


def test_a_stage_that_did_not_move_says_so(summary, curves):
    summary["rows"][1]["advice"] = "student: dice stayed at 0.100 in all 30 epochs"
    assert "stayed at 0.100 in all 30 epochs" in " ".join(Outline(page.render(summary, curves, {}, "{}")).text)
