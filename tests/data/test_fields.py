"""What a reader of one's own holds becomes the fields of the batches."""

import itertools

import numpy as np
import pytest

from kdjax.config import ConfigError, Data
from kdjax.data import pipeline
from kdjax.data.fields import Field, known


class Pairs:
    """Two views of a thing, of which one is without a class in every third, and without a number in every second."""

    def __init__(self, n: int = 30, spoil: str = ""):
        self.n, self.spoil = n, spoil

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        rng = np.random.default_rng(i)
        example = {
            "image": rng.integers(0, 256, (12, 14, 3), np.uint8),
            "image_2": rng.integers(0, 256, (9, 9, 3), np.uint8),
            "class": None if i % 3 == 0 else i % 2,
            "vector": rng.normal(size=4),
        }
        if i % 2:
            example["weight"] = i / 10
        if self.spoil:
            example[self.spoil] = np.zeros((2, 2), np.complex64)
        return example


class Declared(Pairs):
    fields = {"image": Field((0, 0, 3), "uint8", "image"), "vector": Field((5,), "float32", "array")}


def build(reader=Pairs, **options) -> pipeline.Dataset:
    return pipeline.build(Data(f"{__name__}:{reader.__name__}", image_size=8, batch_size=4, **options))


def faults(reader=Pairs, **options) -> str:
    with pytest.raises(ConfigError) as error:
        build(reader, **options)
    return str(error.value)


def test_fields_follow_from_the_types_of_examples():
    dataset = build()
    kinds = {name: (field.kind, field.shape, field.dtype) for name, field in dataset.fields.items()}
    assert kinds == {
        "image": ("image", (8, 8, 3), "uint8"),
        "image_2": ("image", (8, 8, 3), "uint8"),
        "class": ("class", (), "int32"),
        "vector": ("array", (4,), "float32"),
        "weight": ("number", (), "float32"),
        **{known(name): ("flag", (), "bool") for name in ("class", "vector", "weight")},
        "valid": ("flag", (), "bool"),
        "index": ("number", (), "int32"),
        "view": ("number", (), "int32"),
    }
    (batch,) = itertools.islice(dataset.train(4, seed=0), 1)
    for name, spec in dataset.shapes(4).items():
        assert batch[name].shape == spec.shape
        assert spec.dtype == batch[name].dtype
    assert dataset.image_classes == ("0", "1")


def test_each_label_has_its_own_flag():
    dataset = build()
    classes = 0
    for split in dataset.sizes:
        for batch in dataset.evaluate(split, 4):
            for row in np.flatnonzero(batch["valid"]):
                example = dataset.example(split, int(batch["index"][row]))
                assert batch["class_known"][row] == (example["class"] is not None)
                assert batch["weight_known"][row] == ("weight" in example)
                assert batch["class"][row] == (-1 if example["class"] is None else example["class"])
                assert batch["weight"][row] == pytest.approx(example.get("weight", 0.0))
                np.testing.assert_allclose(batch["vector"][row], example["vector"], rtol=1e-6)
                classes += batch["class_known"][row]
            assert not batch["vector_known"][~batch["valid"]].any()
    assert classes == 20


def test_withheld_labels_are_those_of_examples_that_have_one():
    dataset = build(labelled=0.2)
    train = [b for b in dataset.evaluate("train", 4)]
    seen = np.concatenate([b["vector_known"] for b in train])
    assert 0 < seen.sum() < dataset.sizes["train"] / 2
    assert all(b["vector_known"][b["valid"]].all() for b in dataset.evaluate("test", 4))
    only = itertools.islice(dataset.train(4, seed=0, labelled_only=True), 5)
    assert all(b["vector_known"].all() for b in only)


def test_a_view_counts_how_often_an_example_was_dealt_out():
    for views in (0, 2):
        dataset = build()
        dataset.views = views
        n = dataset.sizes["train"]
        batches = list(itertools.islice(dataset.train(6, seed=1), n))  # six passes
        order = [(int(i), int(v)) for b in batches for i, v in zip(b["index"], b["view"], strict=True)]
        counts = dict.fromkeys(range(n), 0)
        for index, view in order:
            assert view == (counts[index] % views if views else counts[index])
            counts[index] += 1
        assert set(counts.values()) == {6}
        later = next(iter(dataset.train(6, seed=1, start=9)))
        np.testing.assert_array_equal(later["view"], batches[9]["view"])
        halves = [next(iter(dataset.train(6, seed=1, start=9, process=p, processes=2)))["view"] for p in (0, 1)]
        np.testing.assert_array_equal(np.concatenate(halves), later["view"])
        assert not any(b["view"].any() for b in dataset.evaluate("train", 4))


def test_two_views_of_an_example_are_two_rows_with_one_index():
    dataset = build()
    batch = dataset.batch("train", np.array([3, 3, 1]))
    np.testing.assert_array_equal(batch["image"][0], batch["image"][1])
    pool = np.array([2, 5])
    batch = next(iter(dataset.train(4, seed=0, pool=pool)))
    assert sorted(batch["index"].tolist()) == [2, 2, 5, 5]
    assert sorted(batch["view"].tolist()) == [0, 0, 1, 1]


def test_the_copies_of_an_example_are_rows_of_one_batch_and_never_one_view():
    dataset, rows = build(copies=2, augment={"hflip": 0.5}), 6
    n = dataset.sizes["train"]
    assert dataset.steps_per_epoch(rows) == n // 3
    batches = list(itertools.islice(dataset.train(rows, seed=1), 2 * n))
    for batch in batches:
        np.testing.assert_array_equal(batch["index"][:3], batch["index"][3:])
        assert len(set(batch["index"][:3])) == 3 or n < 6
        assert (batch["view"][:3] != batch["view"][3:]).all()
    seen = [pair for b in batches for pair in zip(b["index"].tolist(), b["view"].tolist(), strict=True)]
    assert len(set(seen)) == len(seen)
    assert {i for i, _ in seen} == set(range(n))
    parts = [next(iter(dataset.train(rows, seed=1, start=4, process=p, processes=2))) for p in (0, 1)]
    np.testing.assert_array_equal(np.concatenate([part["view"] for part in parts]), batches[4]["view"])


def test_mixing_adds_the_fields_that_it_writes():
    dataset = build(augment={"mixup": 0.5})
    shapes = dataset.shapes(4)
    assert shapes["target"].shape == (4, 2)
    assert shapes["clean_image"].shape == shapes["clean_image_2"].shape == (4, 8, 8, 3)
    batch = next(iter(dataset.train(4, seed=0)))
    np.testing.assert_array_equal(batch["target"], batch["class"][:, None] == np.arange(2))
    np.testing.assert_array_equal(batch["target_known"], batch["class_known"])


def test_what_is_not_as_declared_is_named():
    assert "'vector' as float32 [5], found [4]; pad or cut it" in faults(Declared)
    found = faults(spoil="phase")
    assert "'phase': expected uint8 [h, w, 3] (an image)" in found
    assert "found complex64 [2, 2]; convert it, or declare it in the reader's `fields`" in found
    assert "expected 'image' as uint8 [h, w, 3], found complex64 [2, 2]" in faults(NoImage)
    assert "fields valid have a meaning of their own" in faults(Taken)
    assert "num_classes: expected more than the largest class, 7, found 2" in faults(Taken)


class NoImage(Pairs):
    fields = {"image": Field((0, 0, 3), "uint8", "image")}

    def __getitem__(self, i):
        return {"image": np.zeros((2, 2), np.complex64)}


class Taken(Pairs):
    def __getitem__(self, i):
        return {**super().__getitem__(i), "class": 7, "valid": 1}


class Drawn(Pairs):
    """Images with a mask, which `form` writes down; the first `bare` of them have none."""

    def __init__(self, form: str = "uint8", value: int = 1, bare: int = 0, image: str = "uint8"):
        super().__init__()
        self.form, self.value, self.bare, self.image = form, value, bare, image

    def __getitem__(self, i):
        mask = np.zeros((12, 14), self.form)
        mask[2:6, 3:9] = self.value
        image = super().__getitem__(i)["image"].astype(self.image)
        return {"image": image} | ({"mask": mask} if i >= self.bare else {})


@pytest.mark.parametrize("form", ["uint8", "int64", "bool"])
def test_a_mask_is_whole_numbers_of_any_kind(form):
    dataset = build(Drawn, form=form)
    assert dataset.fields["mask"] == Field((8, 8), "int32", "mask")
    assert set(np.unique(next(iter(dataset.train(4, seed=0)))["mask"])) == {0, 1}


def test_a_label_that_comes_late_is_found():
    assert {"mask", "mask_known"} <= set(build(Drawn, bare=20).fields)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"value": 255},
            "example 0: expected class ids 0 to 1 in 'mask', found 255; renumber them, or",
        ),
        ({"form": "int8", "value": -1}, "expected class ids 0 to 1 in 'mask', found -1"),
        ({"form": "float32"}, "whole numbers [h, w] named mask, a number or an array of numbers, found float32"),
        ({"image": "float32"}, "'image': expected uint8 [h, w, 3] (an image), "),
    ],
)
def test_a_mask_or_an_image_in_another_form_is_refused(options, said):
    assert said in faults(Drawn, **options)
