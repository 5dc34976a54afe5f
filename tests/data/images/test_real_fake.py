"""Real and generated images in folders and in tables."""

import shutil
from collections import Counter

import pytest

from kdjax.data.images.real_fake import RealFake, RealFakeTable
from tests.support import folders
from tests.support.sources import build, faults

PLAIN = [
    ("train/0_real", "train/1_fake", "test/0_real", "test/1_fake"),
    ("Train/Real", "Train/Fake", "test/real", "test/fake"),
]


def table(path, *lines, header="path,label"):
    path.write_text("\n".join([header, *lines]) + "\n")
    return str(path)


def test_folders_tell_split_class_and_test_set(tmp_path):
    dataset = build("real_fake", **folders.real_fake(tmp_path))
    assert dataset.image_classes == ("real", "fake")
    assert dataset.sizes == {"train": 6, "val": 6, "test": 12}
    assert Counter(dataset.groups) == {"reddit": 6, "stylegan/ffhq": 6}
    for i, test_set in enumerate(dataset.groups):
        name = dataset.resized("test", i)["name"]
        assert name.startswith(f"test/{test_set}/{('0_real', '1_fake')[dataset.labels('test')[i]]}/")
    batch = next(dataset.train(6, seed=0))
    assert sorted(batch["class"]) == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("where", PLAIN)
def test_one_test_set_needs_no_name(tmp_path, where):
    for k, folder in enumerate(where):
        for i in range(4):
            folders.picture(tmp_path / folder / f"{i}.png", 100 * k + i)
    dataset = build("real_fake", root=str(tmp_path), split=(0.5, 0.5, 0.0))
    assert dataset.sizes == {"train": 4, "val": 4, "test": 8}
    assert set(dataset.groups) == {"test"}
    assert dataset.labels("test").sum() == 4


def test_folders_without_splits_are_dealt_out(tmp_path):
    for k, folder in enumerate(("real", "fake")):
        for i in range(20):
            folders.picture(tmp_path / folder / f"{i}.png", 100 * k + i)
    dataset = build("real_fake", root=str(tmp_path))
    assert dataset.sizes == {"train": 28, "val": 6, "test": 6}
    assert [dataset.labels(split).sum() for split in dataset.sizes] == [14, 3, 3]
    assert set(dataset.groups) == {"test"}


def test_what_is_wrong_with_folders_of_real_and_fake(tmp_path):
    options = folders.real_fake(tmp_path)
    shutil.rmtree(tmp_path / "test" / "reddit" / "0_real")
    shutil.rmtree(tmp_path / "val" / "1_fake")
    folders.picture(tmp_path / "test" / "midjourney" / "ai" / "0.png", 999)
    folders.picture(tmp_path / "extra" / "0_real" / "0.png", 998)
    told = faults("real_fake", **options)
    assert f"{tmp_path}, test set 'reddit': expected real and fake images, found 3, all of them fake; add" in told
    assert f"{tmp_path}, val: expected real and fake images, found 3, all of them real; add" in told
    assert "of train, val, test, found 2 elsewhere (extra/0_real/0.png, test/midjourney/ai/0.png); move" in told
    (tmp_path / "empty").mkdir()
    told = faults("real_fake", root=f"{tmp_path}/empty")
    assert (
        "empty: expected images in folders 0_real and 1_fake, in train, val and test or without, found an empty" in told
    )
    assert "found no such folder" in faults("real_fake", root=f"{tmp_path}/nowhere")


def test_an_unreadable_image_is_told_by_its_name(tmp_path):
    options = folders.real_fake(tmp_path)
    (tmp_path / "train" / "1_fake" / "0.png").write_bytes(b"none")
    assert f"{tmp_path}/train/1_fake/0.png: expected an image, but it cannot be read" in faults("real_fake", **options)


def test_a_training_image_that_is_in_test_too_is_left_out_by_name(tmp_path):
    options = folders.real_fake(tmp_path)
    shutil.copy(tmp_path / "test" / "reddit" / "0_real" / "0.png", tmp_path / "train" / "0_real" / "2.png")
    dataset = build("real_fake", **options)
    assert dataset.sizes == {"train": 5, "val": 6, "test": 12}
    assert dataset.notes == (
        "1 images of train are left out, as the same image or patient is also in test: train/0_real/2.png",
    )


def test_a_table_is_read_from_where_it_lies(tmp_path):
    dataset = build("real_fake_table", **folders.real_fake_table(tmp_path))
    assert sum(dataset.sizes.values()) == 24
    for split, n in dataset.sizes.items():
        for i in range(n):
            number = int(dataset.resized(split, i)["name"].removeprefix("listed/").removesuffix(".png"))
            assert dataset.labels(split)[i] == number % 2


def test_a_table_may_tell_splits_and_test_sets(tmp_path):
    folders.real_fake_table(tmp_path)
    places = ["train,", "valid,", "test,reddit", "test,", ",x"]
    lines = [f"{tmp_path}/listed/{i}.png,{i % 2},{places[i // 2 % 5]}" for i in range(20)]
    own = table(tmp_path / "own.csv", *lines, "", header="\ufeffpath, Label ,split,SET")
    entries = RealFakeTable(own).entries
    assert Counter((e.split, e.test_set) for e in entries) == {
        ("train", "test"): 4,
        ("val", "test"): 4,
        ("test", "reddit"): 4,
        ("test", "test"): 4,
        ("", "x"): 4,
    }
    assert all(int(e.image.split("/")[-1].removesuffix(".png")) % 2 == e.label for e in entries)
    assert set(build("real_fake_table", csv=own).groups) <= {"reddit", "test", "x"}


def test_all_that_is_wrong_with_a_table_is_told_by_its_line(tmp_path):
    folders.real_fake_table(tmp_path)
    lines = [
        "listed/0.png,0,",
        "gone/1.png,1,",
        "listed/2.png,maybe,",
        ",0,",
        "listed/4.png,1,dev",
        "listed/0.png,1,",
        "a.png",
    ]
    told = faults("real_fake_table", csv=table(tmp_path / "own.csv", *lines, header="path,label,split"))
    for line, fault in {
        3: f"expected an image at {tmp_path}/gone/1.png, found none; mend the path, or remove the line",
        4: "expected the label 0 or real, 1 or fake, found 'maybe'; mend it",
        5: "expected the path of an image, found none; add it, or remove the line",
        6: "expected the split train, val or test, found 'dev'; mend it",
        7: "listed/0.png is already on line 2; keep one of the two",
        8: f"expected an image at {tmp_path}/a.png, found none; mend the path, or remove the line",
    }.items():
        assert f"{tmp_path}/own.csv, line {line}: {fault}\n" in f"{told}\n"
    assert "expected the label 0 or real, 1 or fake, found ''" in told


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "found none; add some"),
        (b"image;label\na;1\n", "expected the columns path and label, found image;label; name them"),
        (b"path,label\n", "expected a line of column names and one for each example, found none; add some"),
        (b"path,label\n\xff\xfe\n", "expected a table in UTF-8, but it cannot be read ("),
        (
            b"path,label\nlisted/1.png,1\nlisted/3.png,1\n",
            "expected real and fake images, found 2, all of them fake",
        ),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path, content, fault):
    folders.real_fake_table(tmp_path)
    (tmp_path / "own.csv").write_bytes(content)
    assert fault in faults("real_fake_table", csv=f"{tmp_path}/own.csv")
    assert (
        "nowhere.csv: expected a table in UTF-8, but it cannot be read"
        in RealFakeTable(f"{tmp_path}/nowhere.csv").faults[0]
    )


def test_readers_of_folders_end_where_links_go_round(tmp_path):
    options = folders.real_fake(tmp_path)
    (tmp_path / "train" / "0_real" / "round").symlink_to(tmp_path)
    assert len(RealFake(**options)) == 24
