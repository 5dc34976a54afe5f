import numpy as np
import pytest
from scipy import ndimage

from kdjax.data.images.ultrasound import CLASSES, SHARES, Ultrasound, scan, speckle


def small(**changes) -> Ultrasound:
    return Ultrasound(**{"size": 48, "train": 40, "val": 10, "test": 10, **changes})


def equal(a: dict, b: dict) -> bool:
    return a["name"] == b["name"] and np.array_equal(a["image"], b["image"]) and np.array_equal(a["mask"], b["mask"])


def test_an_image_follows_from_seed_split_and_index():
    one, two = small(), small()
    order = np.random.default_rng(0).permutation(60)[:20].tolist()
    backwards = {i: one[i] for i in order[::-1]}
    assert all(equal(two[i], backwards[i]) for i in order)
    assert not np.array_equal(one[0]["image"], small(seed=1)[0]["image"])
    assert not np.array_equal(one[0]["image"], one[1]["image"])


def test_a_split_is_the_beginning_of_a_longer_one_and_knows_nothing_of_the_others():
    short, long = small(), small(train=50, val=12)
    assert all(equal(short[i], long[i]) for i in range(5))
    assert all(equal(short[50 + i], long[62 + i]) for i in range(5))
    assert short.allowed == [("train",)] * 40 + [("val",)] * 10 + [("test",)] * 10
    with pytest.raises(IndexError):
        short[60]


@pytest.mark.parametrize("domain", ["linear", "convex"])
def test_examples_are_whole(domain):
    source = small(domain=domain, num_classes=3)
    for i in range(60):
        example = source[i]
        assert example["image"].shape == (48, 48, 3)
        assert example["image"].dtype == example["mask"].dtype == np.uint8
        assert set(np.unique(example["mask"])) <= {0, example["class"] + 1}
        assert (example["mask"].sum() == 0) == (CLASSES[example["class"]] == "normal")
        assert 20 < example["image"].mean() < 200
        assert example["image"].std() > 12
        assert source.inspect(i).name == example["name"]
        assert source.inspect(i).label == example["class"]


def test_binary_masks_do_not_tell_the_kind():
    assert {int(small()[i]["mask"].max()) for i in range(30)} == {0, 1}


def test_classes_have_their_shares():
    source = small(train=2000)
    labels = [source.inspect(i).label for i in range(2000)]
    np.testing.assert_allclose(np.bincount(labels) / 2000, SHARES, atol=0.035)


def test_a_convex_probe_has_black_corners():
    corners = [small(domain="convex")[i]["image"][-1, [0, -1]].max() for i in range(10)]
    assert max(corners) == 0
    assert max(small(domain="linear")[i]["image"][0].mean() for i in range(10)) > 60


def test_speckle_is_rayleigh_with_the_power_asked_for():
    amplitude = np.full((128, 128), 3.0, np.float32)
    echo = np.abs(np.stack([speckle(np.random.default_rng(i), amplitude) for i in range(20)]))
    assert np.mean(echo**2) == pytest.approx(9.0, rel=0.03)
    assert echo.mean() / echo.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.03)  # 1.91
    for x in (0.5, 1.0, 2.0):  # the cumulative distribution, 1 - exp(-x^2)
        assert np.mean(echo < 3 * x) == pytest.approx(1 - np.exp(-(x**2)), abs=0.02)


def test_speckle_is_correlated_and_wider_with_depth():
    ones = np.ones((128, 128), np.float32)
    echo = np.stack([speckle(np.random.default_rng(i), ones) for i in range(20)])

    def correlation(rows, lag):
        a, b = echo[:, rows, :-lag], echo[:, rows, lag:]
        return abs(np.mean(a * b.conj()) / np.mean(np.abs(a) ** 2))

    top, bottom = slice(0, 32), slice(96, 128)
    assert 0.2 < correlation(top, 2) < correlation(bottom, 2) - 0.1
    assert correlation(top, 12) < 0.05


def scans(label: str, n: int = 60):
    return [scan(np.random.default_rng([7, i]), 96, CLASSES.index(label)) for i in range(n)]


def test_lesions_are_darker_than_what_is_around_them():
    for label in ("benign", "malignant"):
        darker = []
        for image, mask in scans(label, 40):
            ring = ndimage.binary_dilation(mask, iterations=8) & ~ndimage.binary_dilation(mask, iterations=2)
            darker.append(image[mask > 0].mean() < image[ring].mean())
        assert np.mean(darker) > 0.9


def test_malignant_lesions_cast_shadows_and_benign_ones_rather_do_not():
    def behind(label):
        """Brightness below the lesion, against that beside it at the same depth."""
        found = []
        for image, mask in scans(label):
            rows, columns = np.nonzero(mask)
            below = slice(rows.max() + 2, rows.max() + 12)
            if below.stop > 96:
                continue
            middle = int(columns.mean())
            near = image[below, max(middle - 3, 0) : middle + 4].mean()
            away = np.abs(np.arange(96) - middle) > (np.ptp(columns) / 2 + 6)
            found.append(near - image[below][:, away].mean())
        return np.mean(found)

    assert behind("malignant") < -8
    assert behind("benign") > behind("malignant") + 8


def test_malignant_lesions_are_ragged_and_taller():
    def shape(label):
        ragged, tall = [], []
        for _, mask in scans(label):
            edge = (mask - ndimage.binary_erosion(mask)).sum()
            rows, columns = np.nonzero(mask)
            ragged.append(edge / np.sqrt(mask.sum()))
            tall.append(np.ptp(rows) / np.ptp(columns))
        return np.mean(ragged), np.mean(tall)

    (benign, wide), (malignant, tall) = shape("benign"), shape("malignant")
    assert malignant > 1.05 * benign
    assert wide < 0.8
    assert tall > 0.9
