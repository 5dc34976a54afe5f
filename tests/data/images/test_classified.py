"""Sources of images with a class: folders, CIFAR, TFDS, the digits of scikit-learn."""

import pickle
import subprocess
import sys

import numpy as np

from kdjax.data.images.cifar import Cifar
from tests.support import folders
from tests.support.sources import build, faults


def names(dataset) -> dict[str, set[str]]:
    return {split: {dataset.example(split, i)["name"] for i in range(n)} for split, n in dataset.sizes.items()}


def test_a_batch_of_classes_has_no_mask(tmp_path):
    dataset = build("classes", **folders.classes(tmp_path))
    batch = next(iter(dataset.train(4, seed=0)))
    assert set(batch) == set(dataset.fields) == {"image", "class", "class_known", "valid", "index", "view"}
    assert dataset.image_classes == ("cat", "dog")
    assert dataset.facts == {"num_classes": 2}
    assert {"cat/0.png", "dog/deeper/3.png"} <= set.union(*names(dataset).values())


def test_classes_in_splits_of_their_own(tmp_path):
    for k, split in enumerate(("Train", "test")):
        folders.classes(tmp_path / split, n=6 - 2 * k)
        for i, path in enumerate(sorted((tmp_path / split).rglob("*.png"))):
            folders.picture(path, 100 * k + i)
    dataset = build("classes", root=str(tmp_path))
    assert dataset.sizes == {"train": 10, "val": 2, "test": 8}
    assert "no val split of its own: taken from train" in dataset.notes[0]
    assert all(name.startswith("test/") for name in names(dataset)["test"])


def test_images_without_labels_are_read_and_told_apart(tmp_path):
    """Alone, and in a union where a teacher may speak of them."""
    options = folders.unlabelled(tmp_path / "a")
    dataset = build("unlabelled", **options)
    assert all((dataset.labels(split) == -1).all() for split in dataset.sizes)
    assert not dataset.labelled("train").any()
    batch = next(iter(dataset.evaluate("test", 4)))
    assert not batch["class_known"].any()
    assert "no such folder" in faults("unlabelled", root=str(tmp_path / "none"))
    assert "does not tell how many classes" in faults("unlabelled", num_classes=None, **options)
    sources = [{"source": "unlabelled", **options}, {"source": "classes", **folders.classes(tmp_path / "b")}]
    union = build("union", sources=sources)
    assert union.image_classes == ("cat", "dog")
    of_folder = [name.startswith("0-unlabelled/") for name in union.called("train")[1]]
    assert 0 < sum(of_folder) < len(of_folder)
    np.testing.assert_array_equal(union.labels("train") == -1, of_folder)


def test_a_union_with_images_that_have_no_mask(tmp_path):
    folders.busi(tmp_path / "a")
    folders.classes(tmp_path / "b", n=6)
    sources = [{"source": "busi", "root": str(tmp_path / "a")}, {"source": "classes", "root": str(tmp_path / "b")}]
    dataset = build("union", sources=sources)
    assert dataset.image_classes == ("benign", "malignant", "normal", "cat", "dog")
    for batch in dataset.evaluate("train", 4):
        for row in np.flatnonzero(batch["valid"]):
            name = dataset.resized("train", int(batch["index"][row]))["name"]
            assert batch["mask_known"][row] == name.startswith("0-busi/")
            kind = dataset.image_classes[batch["class"][row]]
            assert batch["class_known"][row]
            assert f"/{kind}/" in name


class Reader:
    """Images that say themselves to which test set they belong, where they do."""

    allowed = [("train",)] * 4 + [("val",)] * 2 + [("test",)] * 6

    def __len__(self):
        return 12

    def __getitem__(self, i):
        own = {"test_set": "ab"[i % 2]} if i < 10 else {}
        return {"image": np.full((16, 16, 3), i, np.uint8), "class": i % 2, "name": str(i), **own}


def test_test_images_have_a_test_set():
    dataset = build("tests.data.images.test_classified:Reader")
    assert dataset.groups == ("a", "b", "a", "b", "test", "test")
    assert "test_set" not in dataset.fields
    union = build("union", sources=[{"source": "tests.data.images.test_classified:Reader"}])
    assert union.groups == dataset.groups


def test_what_is_wrong_with_folders_of_classes(tmp_path):
    options = folders.classes(tmp_path)
    assert "num_classes: expected 2, as many as there are classes (cat, dog), found 5" in faults(
        "classes", num_classes=5, **options
    )
    assert "'cat/deeper/1.png'" not in faults("classes", group="x", **options)
    assert "does not fit the pattern of groups 'x'" in faults("classes", group="x", **options)
    folders.picture(tmp_path / "loose.png", 5)
    (tmp_path / "bird").mkdir()
    (tmp_path / "cat" / "0.png").write_bytes(b"none")
    message = faults("classes", **options)
    assert f"{tmp_path}: expected images in a folder for each class, found loose.png beside them" in message
    assert f"{tmp_path}/bird: expected images of the class 'bird', found an empty folder" in message
    assert f"{tmp_path}/cat/0.png: expected an image, but it cannot be read" in message
    assert "found no such folder" in faults("classes", root=f"{tmp_path}/nowhere")


def test_a_class_that_only_the_test_data_has(tmp_path):
    folders.classes(tmp_path / "train")
    folders.picture(tmp_path / "test" / "bird" / "0.png", 77)
    message = faults("classes", root=str(tmp_path), num_classes=3)
    assert "train: no folder for the classes bird, which val or test has" in message


def test_digits_are_grey_images_of_ten_classes():
    dataset = build("digits", num_classes=10)
    assert sum(dataset.sizes.values()) == 1797
    example = dataset.example("train", 0)
    assert example["image"].shape == (8, 8, 3)
    assert (example["image"] == example["image"][..., :1]).all()
    images = np.stack([dataset.example("test", i)["image"] for i in range(dataset.sizes["test"])])
    assert (images.min(), images.max()) == (0, 255)
    counts = np.bincount(dataset.labels("test"), minlength=10)
    assert counts.min() > 20
    assert "num_classes: expected 10, as many as there are classes" in faults("digits", num_classes=2)


# -- CIFAR -----------------------------------------------------------------------------------------------------------


def test_cifar_lays_its_channels_last(tmp_path):
    options = folders.cifar(tmp_path)
    dataset = build("cifar", **options)
    assert dataset.sizes["test"] == 4
    assert dataset.sizes["train"] + dataset.sizes["val"] == 20
    assert names(dataset)["test"] == {f"test_batch_{i:05d}" for i in range(4)}
    assert dataset.image_classes[3] == "kind 3"
    record = pickle.loads((tmp_path / "cifar-10-batches-py" / "test_batch").read_bytes())
    source = Cifar(str(tmp_path / "cifar-10-batches-py"))
    np.testing.assert_array_equal(source[20]["image"][5, 7], record[b"data"][0].reshape(3, 32, 32)[:, 5, 7])
    assert source[23]["class"] == 3


def test_cifar_100_has_fine_and_coarse_classes(tmp_path):
    rng = np.random.default_rng(0)
    where = tmp_path / "cifar-100-python"
    where.mkdir()
    for part, n in (("train", 30), ("test", 5)):
        record = {"data": rng.integers(0, 256, (n, 3072), np.uint8), "fine_labels": [i % 100 for i in range(n)]}
        (where / part).write_bytes(pickle.dumps(record | {"coarse_labels": [i % 20 for i in range(n)]}, protocol=2))
    meta = {"fine_label_names": [f"f{k}" for k in range(100)], "coarse_label_names": [f"c{k}" for k in range(20)]}
    (where / "meta").write_bytes(pickle.dumps(meta, protocol=2))
    assert build("cifar", root=str(tmp_path), num_classes=100).image_classes[27] == "f27"
    assert build("cifar", root=str(tmp_path), num_classes=20, coarse=True).image_classes == tuple(
        meta["coarse_label_names"]
    )


class Dangerous:
    def __reduce__(self):
        return print, ("this must not run",)


def test_a_pickle_that_would_run_something_is_refused(tmp_path, capsys):
    options = folders.cifar(tmp_path)
    where = tmp_path / "cifar-10-batches-py"
    (where / "data_batch_2").write_bytes(pickle.dumps({b"data": Dangerous(), b"labels": []}, protocol=2))
    (where / "data_batch_3").write_bytes((where / "data_batch_3").read_bytes()[:-50])
    (where / "data_batch_4").unlink()
    (where / "data_batch_5").write_bytes(pickle.dumps({b"data": np.zeros((2, 5), np.uint8), b"labels": [0, 1]}))
    message = faults("cifar", **options)
    assert "must not run" not in capsys.readouterr().out
    for line in (
        "data_batch_2: expected a pickle of CIFAR, but it would run __builtin__.print; extract the archive again",
        "data_batch_3: expected a pickle of CIFAR, but",
        "data_batch_4: expected this file of CIFAR, found none",
        "data_batch_5: expected uint8 [2, 3072], found uint8 [2, 5]",
    ):
        assert line in message
    assert "expected the folder cifar-10-batches-py or cifar-100-python" in faults("cifar", root=str(tmp_path / "x"))


# -- TFDS ------------------------------------------------------------------------------------------------------------


def test_tfds_by_random_access(tmp_path, monkeypatch):
    options = folders.tfds(tmp_path)
    dataset = build("tfds", **options)
    assert dataset.sizes["test"] == 4
    assert dataset.sizes["train"] + dataset.sizes["val"] == 12
    assert dataset.image_classes == ("a", "b", "c")
    assert dataset.notes[1] == "the splits extra are left out"
    for i in range(4):
        example = dataset.example("test", i)
        number = int(example["name"].removeprefix("test_"))
        assert example["image"].shape == (9, 8, 3)
        assert 0 <= number < 4
    monkeypatch.setattr("kdjax.data.images.examples.DECODED", 5)
    undecoded = build("tfds", **options, workers=1)  # another entry in memory
    assert [undecoded.labels(s).tolist() for s in undecoded.sizes] != [[], [], []]
    assert sorted(undecoded.labels("test")) == sorted(dataset.labels("test"))
    wrong = options | {"label": "lable"}
    assert "tiny: no feature 'lable'; did you mean 'label'" in faults("tfds", **wrong)
    assert "tfds has no data set 'tinny'" in faults("tfds", **options | {"name": "tinny"})


def test_tfds_loads_no_tensorflow(tmp_path):
    folders.tfds(tmp_path)
    script = (
        "import sys; from kdjax.data.images.tfds import Tfds\n"
        f"source = Tfds('tiny', data_dir={str(tmp_path)!r}); source[0]; source.inspect(1, decode=False)\n"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=100)
