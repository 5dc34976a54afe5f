import base64
import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from kdjax.report.figures import classification as figures


def parse(svg):
    root = ET.fromstring(svg.replace("xlink:href", "href"))
    assert "http" not in svg
    assert not re.search("#01020[34]", svg)
    return root


def texts(svg):
    return [text.text for text in parse(svg).iter("text")]


def names(k):
    return [f"kind {i}" for i in range(k)]


def drawn(n=200, k=4, certainty=2.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    return rng.normal(size=(n, k)) + certainty * np.eye(k)[labels], labels


def test_few_classes_have_their_numbers_in_the_cells():
    said = texts(figures.confusions({"teacher": np.array([[9, 1], [2, 6]])}, ["benign", "a malignant lesion of the"]))
    assert {"9", "90.0 %", "25.0 %", "teacher", "benign", "a malignant…", "truth", "prediction"} <= set(said)


@pytest.mark.parametrize(("k", "label"), [(9, "kind 8"), (30, "kind 29"), (31, "30"), (100, "90")])
def test_many_classes_are_shades(k, label):
    counts = np.eye(k, dtype=int) * 3
    counts[1, 2] = 1
    svg = figures.confusions({"teacher": counts, "student": counts.T, "untested": 0 * counts}, names(k))
    said = texts(svg)
    assert {"teacher", "student", "100 %", label} <= set(said)
    assert "untested" not in said
    assert ("kind 1" in said) == (k <= 30)
    assert len(svg) < 60_000
    for picture, place in zip(parse(svg).iter("image"), ((1, 2), (2, 1)), strict=False):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.get("href").partition(",")[2]))))
        step = pixels.shape[0] / k
        at = [pixels[int((row + 0.5) * step), int((column + 0.5) * step), 3] for row, column in ((0, 0), place, (0, 1))]
        assert at[0] > at[1] > at[2] == 0, "the paper shows where nothing is"


def test_reliability_names_the_error_of_each_model():
    logits, labels = drawn()
    sure = np.where(np.eye(4)[(labels + 1) % 4] == 1, 99.0, 0.0)  # of the wrong class, always
    svg = figures.reliability(
        {"student $1": (logits, labels), "liar": (sure, labels), "blind": (logits[:0], labels[:0])}
    )
    said = texts(svg)
    assert {"liar, ECE 1.000", "as sure as right", "confidence", "accuracy", "share"} <= set(said)
    assert any(re.fullmatch(r"student \$1, ECE 0\.\d\d\d", text) for text in said if text)
    assert not any("blind" in text for text in said if text)


def test_temperature_scaling_stands_beside():
    logits, labels = drawn()
    models = {"student": (logits, labels), "teacher": (9 * logits, labels)}
    said = texts(figures.reliability(models, {"teacher": (2 * logits, labels)}))
    assert {"as it is", "after temperature scaling"} <= set(said)
    assert sum(bool(text and re.fullmatch(r"teacher, ECE 0\.\d+ → 0\.\d+", text)) for text in said) == 1
    assert sum(bool(text and re.fullmatch(r"student, ECE 0\.\d+", text)) for text in said) == 1


def test_energies_of_what_is_told_rightly_and_wrongly():
    logits, labels = drawn()
    wrong = int((logits.argmax(1) != labels).sum())
    labels[:20] = -1
    unknown = int((logits.argmax(1) != labels).sum()) - 20
    said = texts(figures.energies({"student": (logits, labels)}))
    assert 0 < unknown <= wrong
    assert {f"student: {180 - unknown} told rightly, {unknown} told wrongly", "told rightly", figures.ENERGY} <= set(
        said
    )
    assert figures.energies({"a": (logits[:0], labels[:0])}) == ""


def test_where_there_is_nothing_there_is_no_picture():
    assert figures.confusions({}, names(3)) == ""
    for k in (2, 9):
        assert figures.confusions({"a": np.zeros((k, k), int)}, names(k)) == ""
    assert figures.reliability({}) == ""
    assert figures.reliability({"a": (np.zeros((3, 2)), np.full(3, -1))}) == ""


def test_no_two_drawings_share_an_id():
    counts = np.eye(9, dtype=int)
    several = [figures.confusions({title: counts}, names(9)) for title in ("a", "b")]
    several += [figures.reliability({"a": drawn(seed=seed)}) for seed in (0, 1)]
    several += [figures.energies({"a": drawn(seed=seed)}) for seed in (0, 1)]
    ids = [set(re.findall(r' id="([^"]*)"', svg)) for svg in several]
    assert all(ids)
    assert len(set.union(*ids)) == sum(map(len, ids))
