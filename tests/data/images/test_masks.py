"""What the numbers in masks mean: ids, black and white, or values that are counted and named."""

import numpy as np
import pytest
from PIL import Image

from kdjax.config import ConfigError, Data
from kdjax.data import pipeline
from kdjax.data.images.dataset import class_weights
from kdjax.data.images.folders import Folder
from tests.support import folders


def draw(root, *planes, soft=False):
    """A folder of images whose masks have squares of these values, a mask for each list of them, and seven like the
    first."""
    for i, values in enumerate([*planes, *[planes[0]] * 7]):
        folders.picture(root / f"{i}.png", i)
        mask = np.zeros((20, 24), np.uint8)
        for k, value in enumerate(values):
            mask[2 + 6 * (k // 3) :, 2 + 7 * (k % 3) :][:5, :5] = value
        if soft:
            mask[0] = np.linspace(0, 255, 24)
        Image.fromarray(mask).save(root / f"{i}_mask.png")
    return {"root": str(root)}


def build(**options):
    return pipeline.build(Data("folder", image_size=16, **options))


def faults(**options) -> str:
    with pytest.raises(ConfigError) as error:
        build(**options)
    return str(error.value)


@pytest.mark.parametrize(
    ("planes", "num_classes", "names"),
    [
        (([255], []), 2, ()),
        (([1], []), 2, ()),
        (([127], []), 2, ()),
        (([127, 255], [255]), 3, ("background", "value 127", "value 255")),
        (([1, 2], [3]), 4, ()),
        (([1, 3], [3]), 3, ("background", "value 1", "value 3")),
        (([], []), 2, ()),
    ],
)
def test_the_values_in_the_masks_are_the_classes(tmp_path, planes, num_classes, names):
    dataset = build(num_classes=None, **draw(tmp_path, *planes))
    assert dataset.num_classes == dataset.facts["num_classes"] == num_classes
    assert dataset.mask_classes == names
    masks = [dataset.resized(split, i)["mask"] for split, n in dataset.sizes.items() for i in range(n)]
    assert set(np.unique(masks)) == set(range(num_classes if planes[0] else 1))


def test_names_say_how_many_classes_there_are(tmp_path):
    options = draw(tmp_path, [127, 255], [255])
    dataset = build(classes=("cyst", "tumour"), **options)
    assert dataset.mask_classes == ("background", "cyst", "tumour")
    assert Data("folder", classes=("a", "b")).num_classes == 3
    told = faults(classes=("cyst", "tumour", "vessel"), **options)
    assert "the masks: expected 4 values, one for each class and the background, found 0, 127, 255" in told
    assert told.count("\n") == 1
    ids = draw(tmp_path / "ids", [1, 3], [3])
    assert build(classes=("a", "b", "c"), **ids).num_classes == 4, "of ids, one may not occur"
    assert Folder(**ids, num_classes=4, mask_names=("a", "b", "c"))[0]["mask"].max() == 3


def test_a_soft_edge_is_no_class_and_a_picture_no_mask(tmp_path):
    assert build(num_classes=None, **draw(tmp_path / "soft", [255], [255], soft=True)).num_classes == 2
    several = faults(num_classes=None, **draw(tmp_path / "several", [100, 255], soft=True))
    assert "0_mask.png: expected the values of the other masks, 0, 100, 255, found 11, 22" in several
    many = [list(range(1 + 6 * i, 7 + 6 * i)) for i in range(12)]
    assert "the masks: expected at most 64 classes, found 0, 1, 2" in faults(
        num_classes=None, **draw(tmp_path / "many", *many)
    )


def paint(root, *masks):
    """A folder of images whose masks have squares of these colours or grey levels, and nine more that have none."""
    for i, colours in enumerate([*masks, *[()] * 9]):
        folders.picture(root / f"{i}.png", i)
        grey = all(isinstance(colour, int) for colour in colours)
        mask = np.zeros((20, 24) if grey else (20, 24, 3), np.uint8)
        for k, colour in enumerate(colours):
            mask[2:8, 2 + 7 * k :][:, :6] = colour
        Image.fromarray(mask).save(root / f"{i}_mask.png")
    return {"root": str(root)}


GREEN, RED, BLUE, WHITE = (0, 128, 0), (200, 0, 0), (0, 0, 128), (255, 255, 255)


def test_colours_are_classes_by_their_rising_numbers(tmp_path):
    options = paint(tmp_path, (RED, GREEN), (BLUE, WHITE), (255,))
    dataset = build(num_classes=None, **options)
    assert dataset.mask_classes == ("background", "#000080", "#008000", "#c80000", "#ffffff")
    source = Folder(**options)
    classes = {e["name"]: set(np.unique(e["mask"])) for e in map(source.__getitem__, range(len(source)))}
    assert [classes[str(i)] for i in range(4)] == [{0, 2, 3}, {0, 1, 4}, {0, 4}, {0}]
    named = build(classes=("sea", "wood", "house", "cloud"), **options)
    assert named.mask_classes == ("background", "sea", "wood", "house", "cloud")
    told = faults(num_classes=5, **options)
    assert "0_mask.png: expected a mask of class ids, found colours; store one number per pixel, 0 for none, or" in told
    assert "set num_classes=None in the data if each colour is a class" in told


def test_one_colour_has_soft_edges_and_several_have_none(tmp_path):
    one = paint(tmp_path / "one", (RED,), (RED,))
    edge = np.zeros((20, 24, 3), np.uint8)
    edge[5:15, :, 0] = np.clip(np.arange(24) * 20 - 100, 0, 200)
    Image.fromarray(edge).save(tmp_path / "one" / "0_mask.png")
    assert build(num_classes=None, **one).num_classes == 2
    source = Folder(**one)
    found = next(e["mask"] for e in map(source.__getitem__, range(len(source))) if e["name"] == "0")
    np.testing.assert_array_equal(found, edge[..., 0] > 100)
    several = paint(tmp_path / "several", (RED, GREEN))
    edge[..., 1] = 7
    Image.fromarray(edge).save(tmp_path / "several" / "1_mask.png")
    told = faults(num_classes=None, **several)
    assert "1_mask.png: expected the values of the other masks, #000000, #000700, #008000, #c80000, #c80700, fo" in told


def test_photographs_are_no_masks(tmp_path):
    options = folders.folder(tmp_path)
    for i in range(20):
        colours = np.random.default_rng(i).integers(0, 256, (5, 6, 3), np.uint8)
        Image.fromarray(np.kron(colours, np.ones((4, 4, 1), np.uint8))).save(tmp_path / f"case{i}_mask.png")
    told = faults(num_classes=None, **options)
    assert "the masks: expected at most 64 classes, found #000000, #0" in told
    assert told.count("\n") == 1


def test_names_need_masks_and_each_one_its_class():
    with pytest.raises(ConfigError, match=r"classes: a, b would name the classes of masks, and this data has none"):
        pipeline.build(Data("digits", classes=("a", "b"), image_size=8))


@pytest.mark.parametrize(("source", "num_classes"), [("digits", 10), ("classes", 2), ("busi", 2), ("ultrasound", 2)])
def test_every_reader_tells_how_many_classes_it_has(tmp_path, source, num_classes):
    options = {k: v for k, v in folders.BUILDERS[source](tmp_path).items() if k != "num_classes"}
    data = Data(source, image_size=8, num_classes=None, **options)
    assert pipeline.build(data).num_classes == num_classes
    assert data.num_classes is None, "what a person wrote stays"


class Untold:
    """A reader that says nothing of itself."""

    def __len__(self):
        return 12

    def __getitem__(self, i):
        return {"image": np.full((8, 8, 3), i, np.uint8), "mask": np.zeros((8, 8), np.uint8)}


def test_a_reader_that_does_not_tell_is_asked_for_it():
    with pytest.raises(ConfigError, match="num_classes: this reader does not tell how many classes there are; set it"):
        pipeline.build(Data("tests.data.images.test_masks:Untold", image_size=8, num_classes=None))


def test_class_weights_have_mean_one_over_the_pixels(tmp_path):
    dataset = build(num_classes=None, **draw(tmp_path, [127, 255], [255]))
    counts = dataset.class_counts("train")
    assert counts.sum() == 256 * dataset.sizes["train"]
    weights = dataset.fact("class_weights")
    assert weights == class_weights(counts)
    assert np.dot(weights, counts) / counts.sum() == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(weights[2] / weights[0], np.sqrt(counts[0] / counts[2]), rtol=1e-3)
    assert class_weights(np.array([90, 10, 0]))[2] == 1.0
    with pytest.raises(ConfigError, match="the data do not tell clas_weights; known: num_classes"):
        dataset.fact("clas_weights")
