import io
import xml.etree.ElementTree as ET

import numpy as np
from PIL import Image

from kdjax.report.figures import curves as figures


def square(side=40):
    mask = np.zeros((side, side), int)
    mask[10:30, 10:30] = 1
    return mask


def test_an_overlay_changes_the_mask_alone():
    image = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    before, mask = image.copy(), square()
    shown = figures.overlay(image, mask)
    assert shown.dtype == np.uint8
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(shown[mask == 0], image[mask == 0])
    np.testing.assert_array_equal(shown[10, 10:30], np.tile(figures.CLASSES[0], (20, 1)))
    tint = 0.7 * image[20, 20].astype(float) + 0.3 * np.array(figures.CLASSES[0])
    np.testing.assert_allclose(shown[20, 20], tint, atol=0.51)


def test_the_outline_of_the_truth_lies_on_top_and_an_empty_mask_shows_the_image():
    image = np.full((40, 40, 3), 100, np.uint8)
    both = figures.overlay(image, square(), square())
    np.testing.assert_array_equal(both[10, 15], figures.TRUTH)
    np.testing.assert_array_equal(figures.overlay(image, 0 * square(), 0 * square()), image)


def test_classes_have_their_own_colours_and_more_classes_than_colours_still_draw():
    mask = np.repeat(np.arange(40)[None], 40, axis=0) // 4
    shown = figures.overlay(np.zeros((40, 40, 3), np.uint8), mask)
    assert len({tuple(shown[20, 4 * k]) for k in range(1, 7)}) == 6
    np.testing.assert_array_equal(shown[20, 4 * 7], shown[20, 4 * 1])


def test_each_kind_of_error_has_its_colour():
    truth, predicted = np.array([[1, 1, 0, 0, 2]]), np.array([[1, 0, 1, 0, 1]])
    shown = figures.errors(np.zeros((1, 5, 3), np.uint8), predicted, truth)[0].astype(float)
    strengths = {"found": 0.25, "missed": 0.7, "false alarm": 0.7, "wrong class": 0.7}
    for at, kind in ((0, "found"), (1, "missed"), (2, "false alarm"), (4, "wrong class")):
        np.testing.assert_allclose(shown[at], strengths[kind] * np.array(figures.ERRORS[kind]), atol=0.51)
    np.testing.assert_array_equal(shown[3], 0)


def test_resized_masks_keep_their_classes_and_their_place():
    mask = np.zeros((20, 30), int)
    mask[5:15, 5:15], mask[5:15, 15:25] = 1, 3
    got = figures.resize_mask(mask, 90)
    assert got.shape == (60, 90)
    assert set(np.unique(got)) == {0, 1, 3}
    np.testing.assert_array_equal(got[30, [5, 30, 60, 85]], [0, 1, 3, 0])
    assert figures.resize(np.zeros((20, 30, 3), np.uint8), 90).shape == (60, 90, 3)


def test_panels_are_the_image_the_truth_the_models_and_the_students_errors(examples):
    example = examples[0]
    got = figures.panels(example, 64, "student, distilled")
    assert list(got) == ["image", "truth", *example["predictions"], "errors"]
    assert {picture.shape for picture in got.values()} == {(48, 64, 3)}
    other = figures.panels(example, 64, "teacher (SAM, LoRA)")["errors"]
    assert (got["errors"] != other).any()


def test_the_sheet_is_a_picture(examples):
    with Image.open(io.BytesIO(figures.sheet(examples[:2]))) as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > sheet.height > 300


def parse(svg):
    return ET.fromstring(svg.replace("xlink:href", "href"))


def test_curves_per_term_take_the_colours_of_the_page_and_reach_nothing_outside(curves):
    got = figures.learning_curves(curves["student"])
    assert list(got) == ["training loss", "gradient norm"]
    for svg in got.values():
        said = {text.text for text in parse(svg).iter("text")}
        assert {"all terms", "bce", "dice", "kl", "feature", "step"} <= said
        assert "http" not in svg
        assert "var(--series-4)" in svg
        assert "currentColor" in svg
        assert "#010203" not in svg


def test_no_two_figures_share_an_id(curves):
    drawn = [svg for stage in curves.values() for svg in figures.learning_curves(stage).values()]
    ids = [{e.get("id") for e in parse(svg).iter() if e.get("id")} for svg in drawn]
    assert all(ids)
    assert len(set.union(*ids)) == sum(map(len, ids))


def test_names_are_not_read_as_formulas_or_markup():
    svg = figures.svg(
        {"a$b": [(0.0, 1.0), (1.0, 2.0)], "$\\frac{": [(0.0, 1.0)], "_hidden": [(0.0, 1.0)], "<b>&": [(0.0, 2.0)]},
        xlabel="x",
    )
    said = {text.text for text in parse(svg).iter("text")}
    assert {"a$b", "$\\frac{", "hidden", "<b>&"} <= said


def test_validation_curves_leave_out_what_was_not_measured(curves):
    curves["teacher"] = [{"step": 4, "split": "val", "dice": None}, {"step": 8, "split": "val"}]
    said = {text.text for text in parse(figures.validation_curves(curves, "dice")).iter("text")}
    assert "student" in said
    assert "teacher" not in said
    assert figures.validation_curves(curves, "auc") == ""
    assert figures.learning_curves([]) == {}


def test_a_long_curve_is_thinned_and_keeps_its_mean():
    records = [{"step": i, "split": "train", "loss": float(i % 7)} for i in range(5000)]
    points = figures._series(records, "loss")
    assert len(points) == 200
    np.testing.assert_allclose(np.mean([y for _, y in points]), np.mean([i % 7 for i in range(5000)]), rtol=1e-12)
