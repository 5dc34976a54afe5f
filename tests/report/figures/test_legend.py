import numpy as np

from kdjax.report.figures import legend
from kdjax.report.figures.curves import CLASSES
from kdjax.report.figures.examples import examples_html


def test_classes_have_names_and_colours():
    found = legend.colours(9, ["background", *"abcdefgh"])
    assert list(found) == list("abcdefgh")
    assert list(found.values()) == [*CLASSES, *CLASSES[:2]], "from the start again after the last"
    assert list(legend.colours(3)) == ["class 1", "class 2"]
    assert "a &lt;b&gt;</li>" in legend.html({"a <b>": (1, 2, 3)})


def test_a_strip_below_a_picture_names_its_colours():
    picture = np.full((120, 200, 3), 9, np.uint8)
    found = legend.below(picture, legend.colours(3, ["background", "cyst", "tumour"]))
    assert found.shape[1:] == (200, 3)
    assert 130 < len(found) < 170
    np.testing.assert_array_equal(found[:120], picture)
    strip = found[120:].reshape(-1, 3).tolist()
    assert all(strip.count(list(colour)) > 60 for colour in CLASSES[:2])
    many = legend.below(picture, legend.colours(13, ["background", *[f"a long name {i}" for i in range(12)]]))
    assert len(many) > len(found) + 50, "names that do not fit go on below"
    narrow = np.zeros((50, 60, 3), np.uint8)
    assert legend.below(narrow, legend.colours(3)) is narrow


def test_the_report_names_the_classes():
    truth = np.zeros((8, 8), np.int32)
    truth[2:5, 2:5], truth[5:, 5:] = 1, 2
    image = np.zeros((8, 8, 3), np.uint8)
    example = {"name": "x", "image": image, "truth": truth, "predictions": {"student": truth}, "rank": "best"}
    page = examples_html([example], "student", 3, ["background", "cyst", "tumour"])
    assert page.index("cyst</li>") < page.index("tumour</li>") < page.index("outline: truth") < page.index("errors:")
    assert "wrong class" in page
    two = examples_html([example | {"truth": truth % 2, "predictions": {"student": truth % 2}}], "student")
    assert "prediction</li>" in two
    assert "wrong class" not in two
