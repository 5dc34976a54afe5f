import csv
import math

import numpy as np
import pytest
from PIL import Image

from kdjax.config import ConfigError
from kdjax.report.metrics import segmentation as metrics

BOTH = np.zeros((6, 8), int), np.zeros((6, 8), int)


def blob(seed, shape=(23, 31), classes=2):
    """Smooth random regions, which touch the borders of the image now and then."""
    noise = np.random.default_rng(seed).normal(size=shape)
    for axis in (0, 1):
        noise = sum(np.roll(noise, s, axis) for s in (-2, -1, 0, 1, 2))
    cuts = np.quantile(noise, np.linspace(0.5, 1, classes)[:-1])
    return np.digitize(noise, cuts)


def brute_force(predicted, truth, k):
    """From the definitions, pixel by pixel in Python."""
    height, width = truth.shape
    count = {"tp": 0, "fp": 0, "fn": 0, "tn": 0}
    for y in range(height):
        for x in range(width):
            p, t = predicted[y, x] == k, truth[y, x] == k
            count["tp" if p and t else "fp" if p else "fn" if t else "tn"] += 1

    def border(mask):
        inside = {(y, x) for y in range(height) for x in range(width) if mask[y, x] == k}
        around = ((0, 1), (1, 0), (0, -1), (-1, 0))
        return [(y, x) for y, x in inside if any((y + dy, x + dx) not in inside for dy, dx in around)]

    a, b = border(predicted), border(truth)
    distances = [min(math.dist(i, j) for j in b) for i in a] + [min(math.dist(i, j) for j in a) for i in b]
    distances.sort()
    place = 0.95 * (len(distances) - 1)
    low = math.floor(place)
    high = min(low + 1, len(distances) - 1)
    tp, fp, fn, tn = count["tp"], count["fp"], count["fn"], count["tn"]
    return {
        "dice": 2 * tp / (2 * tp + fp + fn),
        "iou": tp / (tp + fp + fn),
        "hd95": distances[low] + (place - low) * (distances[high] - distances[low]),
        "precision": tp / (tp + fp),
        "recall": tp / (tp + fn),
        "specificity": tn / (tn + fp),
        "pixel_accuracy": (tp + tn) / (tp + fp + fn + tn),
    }


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("classes", [2, 3])
def test_metrics_are_those_of_the_definitions(seed, classes):
    predicted, truth = blob(seed, classes=classes), blob(seed + 100, classes=classes)
    got = metrics.segmentation(predicted, truth, classes)
    assert list(got) == list(range(1, classes))
    for k in got:
        assert got[k] == pytest.approx(brute_force(predicted, truth, k), rel=1e-12)


def test_a_hand_made_case():
    truth = np.array([[1, 1, 0, 0], [1, 1, 0, 0]])
    predicted = np.array([[0, 1, 1, 0], [0, 1, 1, 0]])
    got = metrics.segmentation(predicted, truth, 2)[1]
    assert got == {
        "dice": 0.5,
        "iou": 1 / 3,
        "hd95": 1.0,
        "precision": 0.5,
        "recall": 0.5,
        "specificity": 0.5,
        "pixel_accuracy": 0.5,
    }


def test_exchanging_the_masks_exchanges_precision_and_recall_alone():
    a, b = blob(1), (blob(2, classes=3) == 1).astype(int)
    forth, back = metrics.segmentation(a, b, 2)[1], metrics.segmentation(b, a, 2)[1]
    for name in ("dice", "iou", "hd95", "pixel_accuracy"):
        assert forth[name] == back[name]
    assert (forth["precision"], forth["recall"]) == (back["recall"], back["precision"])
    assert forth["precision"] != forth["recall"]


@pytest.mark.parametrize("shift", [0, 1, 7])
def test_a_shifted_bar_is_as_far_as_the_shift(shift):
    """All border pixels of a bar one pixel wide are `shift` away from the other bar."""
    truth, predicted = np.zeros((40, 30), int), np.zeros((40, 30), int)
    truth[5:35, 10] = 1
    predicted[5:35, 10 + shift] = 1
    assert metrics.segmentation(predicted, truth, 2)[1]["hd95"] == shift


def test_equal_masks_are_perfect_even_at_the_edge_of_the_image():
    full = np.ones((5, 7), int)
    assert set(metrics.segmentation(full, full, 2)[1].values()) == {0.0, 1.0}
    assert metrics.segmentation(full, full, 2)[1]["hd95"] == 0.0
    assert metrics.segmentation(full, full, 2)[1]["specificity"] == 1.0


def one(where):
    mask = np.zeros((6, 8), int)
    mask[2:4, 2:4] = where
    return mask


NAN = math.nan
CASES = {  # empty -> case -> (dice, precision, recall, hd95)
    "original": {"both": (1, 1, 1, 0), "no claim": (0, 0, 0, 8), "none there": (0, 0, 0, 8)},
    "diagonal": {"both": (1, 1, 1, 0), "no claim": (0, 0, 0, 10), "none there": (0, 0, 0, 10)},
    "skip": {"both": (NAN, NAN, NAN, NAN), "no claim": (0, NAN, 0, NAN), "none there": (0, 0, NAN, NAN)},
}
MASKS = {"both": (one(0), one(0)), "no claim": (one(0), one(1)), "none there": (one(1), one(0))}


@pytest.mark.parametrize("empty", CASES)
@pytest.mark.parametrize("case", MASKS)
def test_each_convention_for_empty_masks(empty, case):
    got = metrics.segmentation(*MASKS[case], 2, empty=empty)[1]
    found = tuple(got[name] for name in ("dice", "precision", "recall", "hd95"))
    assert found == pytest.approx(CASES[empty][case], nan_ok=True)
    assert got["iou"] == pytest.approx(got["dice"], nan_ok=True)
    assert got["specificity"] == {"both": 1, "no claim": 1, "none there": 44 / 48}[case]
    assert got["pixel_accuracy"] == (1 if case == "both" else 44 / 48)


def test_an_unknown_convention_is_refused():
    with pytest.raises(ConfigError, match="expected one of original, diagonal, skip, found 'zero'"):
        metrics.segmentation(one(1), one(1), 2, empty="zero")


def test_the_summary_leaves_nan_out_and_counts_what_it_kept():
    rows = [metrics.segmentation(*MASKS[case], 2, empty="skip") for case in MASKS]
    rows.append(metrics.segmentation(one(1), one(1), 2, empty="skip"))
    got = metrics.summarise(rows)
    assert got["dice"] == pytest.approx({"mean": 1 / 3, "std": math.sqrt(2) / 3, "n": 3})
    assert got["hd95"] == {"mean": 0.0, "std": 0.0, "n": 1}
    nothing = metrics.summarise(rows[:1])["dice"]
    assert math.isnan(nothing["mean"])
    assert math.isnan(nothing["std"])
    assert nothing["n"] == 0


def test_an_image_counts_with_the_mean_of_its_classes():
    rows = [
        {1: dict.fromkeys(metrics.NAMES, a), 2: dict.fromkeys(metrics.NAMES, b)} for a, b in ((0.2, 0.4), (0.6, 1.0))
    ]
    assert metrics.summarise(rows)["dice"] == pytest.approx({"mean": 0.55, "std": 0.25, "n": 2})
    of_class = metrics.summarise_classes(rows)
    assert of_class["1"]["dice"] == pytest.approx({"mean": 0.4, "std": 0.2, "n": 2})
    assert of_class["2"]["dice"] == pytest.approx({"mean": 0.7, "std": 0.3, "n": 2})


# -- two folders -----------------------------------------------------------------------------------------------------


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
    got = metrics.compare_folders(a, b, tmp_path / "new" / "out.csv")
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
    got = metrics.compare_folders(a, b, tmp_path / "out.csv", num_classes=3, empty="skip")
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
        tmp_path / "a", {"only_here.png": good, "size.png": np.zeros((4, 5)), "ids.png": good + 3, "cut.png": good}
    )
    b = save(tmp_path / "b", {"only_there.png": good, "size.png": good, "ids.png": good, "cut.png": good})
    save(b, {"two_mask.png": good, "two_pred.png": good, "colour.png": np.full((4, 4, 3), (1, 0, 0))})
    save(a, {"two.png": good, "colour.png": good})
    (a / "cut.png").write_bytes((a / "cut.png").read_bytes()[:40])
    out = tmp_path / "out.csv"
    out.write_text("yesterday's\n")
    with pytest.raises(ConfigError) as error:
        metrics.compare_folders(a, b, out)
    said = str(error.value)
    for text in (
        "only_here.png: no true mask of that name",
        "only_there.png: no prediction of that name",
        "expected equal sizes, found 5x4 and 4x4",
        "ids.png: expected ids 0..1 (or 0 and 255), found 3",
        "cut.png: cannot be read as an image",
        "expected one mask for 'two', found two_mask.png, two_pred.png",
        "colour.png: expected class ids in one channel, found colours",
    ):
        assert text in said
    assert out.read_text() == "yesterday's\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "out.csv"]


def test_an_empty_and_a_missing_folder_are_named(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(ConfigError, match=r"(?s)a: expected masks .*found none.*b: expected a folder of masks"):
        metrics.compare_folders(tmp_path / "a", tmp_path / "b", tmp_path / "out.csv")


def test_masks_of_floats_are_refused(tmp_path):
    """Their fractions would be taken for background."""
    for side in ("a", "b"):
        (tmp_path / side).mkdir()
        Image.fromarray(np.full((4, 5), 0.5, np.float32)).save(tmp_path / side / "1.tif")
    with pytest.raises(ConfigError, match=r"1.tif: expected whole numbers, one for each class, found floats"):
        metrics.compare_folders(tmp_path / "a", tmp_path / "b", tmp_path / "out.csv")


def test_a_full_disk_leaves_the_old_table(tmp_path, monkeypatch):
    a = save(tmp_path / "a", {"x.png": blob(0)})
    out = tmp_path / "out.csv"
    out.write_text("yesterday's\n")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(metrics, "_cells", full)
    with pytest.raises(OSError, match="No space"):
        metrics.compare_folders(a, a, out)
    assert out.read_text() == "yesterday's\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "out.csv"]
