"""Two folders of masks, compared image by image."""

import csv

import numpy as np
import pytest
from PIL import Image

from kdjax.config import ConfigError
from kdjax.deploy import mask_folders
from kdjax.report.metrics import segmentation as metrics
from tests.report.metrics.test_segmentation import blob


def save(folder, masks):
    folder.mkdir(exist_ok=True)
    for name, mask in masks.items():
        Image.fromarray(np.asarray(mask, np.uint8)).save(folder / name)
    return folder


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_folders_of_binary_masks(tmp_path):
    predicted = {f"case{i}_pred.png": 255 * blob(i) for i in range(3)}
    truth = {f"case{i}_mask.png": blob(i + 10) for i in range(3)}  # ids 0 and 1, where the others are 0 and 255
    images = {f"case{i}.png": np.full((23, 31, 3), (9, 8, 7)) for i in range(3)}
    a = save(tmp_path / "a", predicted | {"case0_overlay.png": images["case0.png"]})
    b = save(tmp_path / "b", truth | images)
    got = mask_folders.compare_folders(a, b, tmp_path / "new" / "out.csv")
    assert got["images"] == 3
    expected = [metrics.segmentation(blob(i), blob(i + 10), 2) for i in range(3)]
    assert got["metrics"] == metrics.summarise(expected)
    lines = table(tmp_path / "new" / "out.csv")
    assert [line["image"] for line in lines] == ["case0", "case1", "case2", "mean", "std", "n"]
    assert float(lines[1]["hd95"]) == pytest.approx(expected[1][1]["hd95"], rel=1e-5)
    assert float(lines[3]["dice"]) == pytest.approx(np.mean([e[1]["dice"] for e in expected]), rel=1e-5)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["out.csv"]


def test_folders_of_several_classes_have_a_line_per_class(tmp_path):
    a = save(tmp_path / "a", {"x.png": blob(0, classes=3), "y.png": np.zeros((23, 31))})
    b = save(tmp_path / "b", {"x.png": blob(1, classes=3), "y.png": np.zeros((23, 31))})
    got = mask_folders.compare_folders(a, b, tmp_path / "out.csv", num_classes=3, empty="skip")
    lines = table(tmp_path / "out.csv")
    keys = [(line["image"], line["class"]) for line in lines]
    assert keys == [(i, k) for i in ("x", "y", "mean", "std", "n") for k in ("all", "1", "2")]
    assert lines[keys.index(("y", "1"))]["dice"] == ""
    assert lines[keys.index(("n", "2"))]["dice"] == "1"
    x = metrics.segmentation(blob(0, classes=3), blob(1, classes=3), 3)
    assert float(lines[keys.index(("mean", "2"))]["dice"]) == pytest.approx(x[2]["dice"], rel=1e-5)
    assert got["per_class"]["2"]["dice"]["n"] == 1


def test_everything_that_is_wrong_with_the_folders_comes_at_once_and_the_old_table_stays(tmp_path):
    good = np.zeros((4, 4))
    a = save(
        tmp_path / "a", {"only_here.png": good + 9, "size.png": np.zeros((4, 5)), "ids.png": good + 3, "cut.png": good}
    )
    b = save(tmp_path / "b", {"only_there.png": good, "size.png": good, "ids.png": good, "cut.png": good})
    save(b, {"two_mask.png": good, "two_pred.png": good})
    save(a, {"two.png": good})
    (a / "cut.png").write_bytes((a / "cut.png").read_bytes()[:40])
    out = tmp_path / "out.csv"
    out.write_text("yesterday's\n")
    with pytest.raises(ConfigError) as error:
        mask_folders.compare_folders(a, b, out)
    said = str(error.value)
    for text in (
        "only_here.png: no true mask of that name",
        "only_there.png: no prediction of that name",
        "expected equal sizes, found 5x4 and 4x4",
        f"{a}, its masks: expected 2 values, one for each class and the background, found 0, 3, 9; mend the masks, or "
        "say how many classes there are with num_classes",
        "cut.png: expected an image, but it cannot be read",
        "expected one mask for 'two', found two_mask.png, two_pred.png",
    ):
        assert text in said
    assert out.read_text() == "yesterday's\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "out.csv"]


def test_an_empty_and_a_missing_folder_are_named(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(ConfigError, match=r"(?s)a: expected masks .*found none.*b: expected a folder of masks"):
        mask_folders.compare_folders(tmp_path / "a", tmp_path / "b", tmp_path / "out.csv")


def test_masks_of_floats_are_refused(tmp_path):
    """Their fractions would be taken for background."""
    for side in ("a", "b"):
        (tmp_path / side).mkdir()
        Image.fromarray(np.full((4, 5), 0.5, np.float32)).save(tmp_path / side / "1.tif")
    with pytest.raises(
        ConfigError, match=r"1\.tif: expected 8 or 16 bits a pixel, found floats; make it whole numbers"
    ):
        mask_folders.compare_folders(tmp_path / "a", tmp_path / "b", tmp_path / "out.csv")


def test_a_full_disk_leaves_the_old_table(tmp_path, monkeypatch):
    a = save(tmp_path / "a", {"x.png": blob(0)})
    out = tmp_path / "out.csv"
    out.write_text("yesterday's\n")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mask_folders, "_cells", full)
    with pytest.raises(OSError, match="No space"):
        mask_folders.compare_folders(a, a, out)
    assert out.read_text() == "yesterday's\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "out.csv"]


LEVELS, COLOURS = np.array([0, 127, 255]), np.array([(0, 0, 0), (0, 160, 0), (200, 0, 0)])


@pytest.mark.parametrize("written", [LEVELS, COLOURS], ids=["levels", "colours"])
@pytest.mark.parametrize("predicted", ["as ids", "alike", "without the second class"])
def test_values_that_stand_for_classes_are_read_as_a_reader_of_images_does(tmp_path, written, predicted):
    planes = {f"{i}.png": np.kron(blob(i, (9, 9), classes=3), np.ones((4, 4), int)) for i in range(2)}
    guesses = {name: np.roll(plane, 3, 1) for name, plane in planes.items()}
    if predicted == "without the second class":
        guesses = {name: np.minimum(plane, 1) for name, plane in guesses.items()}
    ours = {name: plane if predicted == "as ids" else written[plane] for name, plane in guesses.items()}
    truth = save(tmp_path / "truth", {name: written[plane] for name, plane in planes.items()})
    got = mask_folders.compare_folders(save(tmp_path / "ours", ours), truth, tmp_path / "out.csv", num_classes=3)
    expected = metrics.summarise([metrics.segmentation(guesses[name], planes[name], 3) for name in planes])
    assert got["metrics"] == expected


def test_a_soft_edge_is_no_fault(tmp_path):
    plane = np.clip(255 - 40 * np.abs(np.arange(23)[:, None] - 11 + 0 * np.arange(31)), 0, 255)
    a = save(tmp_path / "a", {"x.png": plane})
    b = save(tmp_path / "b", {"x.png": plane > 127})
    assert mask_folders.compare_folders(a, b, tmp_path / "out.csv")["metrics"]["dice"]["mean"] == 1
