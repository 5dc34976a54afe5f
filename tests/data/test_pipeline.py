import gc
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest

from kdjax.config import ConfigError, Data
from kdjax.data import pipeline
from tests.support import folders

TINY = {"size": 32, "train": 21, "val": 5, "test": 7}


def build(source="ultrasound", **changes) -> pipeline.Dataset:
    options = TINY if source == "ultrasound" else {}
    return pipeline.build(Data(source, **{"image_size": 24, **options, **changes}))


def take(batches, n: int) -> list[dict]:
    return list(itertools.islice(batches, n))


def same(a: dict, b: dict) -> bool:
    return set(a) == set(b) and all(a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in a)


def test_a_batch_is_what_it_says():
    dataset = build(labelled=0.4)
    assert dataset.sizes == {"train": 21, "val": 5, "test": 7}
    assert dataset.image_classes == ("benign", "malignant", "normal")
    assert dataset.num_classes == 2
    assert (dataset.steps_per_epoch(8), dataset.steps_per_epoch(50)) == (2, 1)
    (batch,) = take(dataset.train(8, seed=0), 1)
    assert {k: (v.shape, str(v.dtype)) for k, v in batch.items()} == {
        "image": ((8, 24, 24, 3), "uint8"),
        "mask": ((8, 24, 24), "int32"),
        "class": ((8,), "int32"),
        "mask_known": ((8,), "bool"),
        "class_known": ((8,), "bool"),
        "valid": ((8,), "bool"),
        "index": ((8,), "int32"),
        "view": ((8,), "int32"),
    }
    assert {k: v.shape for k, v in dataset.shapes(8).items()} == {k: v.shape for k, v in batch.items()}
    for row, i in enumerate(batch["index"]):
        example = dataset.resized("train", int(i))
        np.testing.assert_array_equal(batch["image"][row], example["image"])


def test_resizing_is_bilinear_for_the_image_and_nearest_for_the_mask(tmp_path):
    dataset = build("folder", **folders.folder(tmp_path), image_size=16)
    small, large = dataset.resized("train", 0), dataset.example("train", 0)
    assert set(np.unique(small["mask"])) == {0, 1}
    assert small["mask"].mean() == pytest.approx(large["mask"].mean(), abs=0.05)
    assert small["image"].mean() == pytest.approx(large["image"].mean(), abs=3)
    assert small["image"].std() < large["image"].std()


def test_each_epoch_has_every_example_once_in_a_new_order():
    batches = take(build().train(7, seed=3), 9)
    epochs = [np.concatenate([b["index"] for b in batches[k : k + 3]]).tolist() for k in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(21)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    other = np.concatenate([b["index"] for b in take(build().train(7, seed=4), 3)]).tolist()
    assert other != epochs[0]


def test_batches_run_on_over_the_end_of_an_epoch():
    indices = np.concatenate([b["index"] for b in take(build().train(8, seed=0), 21)])
    assert np.bincount(indices, minlength=21).tolist() == [8] * 21


def test_starting_later_gives_the_same_batches():
    dataset = build(labelled=0.5)
    whole = take(dataset.train(8, seed=5), 12)
    for start in (0, 1, 7):
        assert all(map(same, take(dataset.train(8, seed=5, start=start), 12 - start), whole[start:]))
    assert not same(whole[0], whole[1])


@pytest.mark.parametrize("processes", [2, 4])
def test_the_shares_of_processes_make_the_global_batch(processes):
    dataset = build(labelled=0.5)

    def shares(read):
        parts = [take(read(process=p, processes=processes), 4) for p in range(processes)]
        return [{k: np.concatenate([part[k] for part in step]) for k in step[0]} for step in zip(*parts, strict=True)]

    joined = shares(lambda **kw: dataset.train(8, seed=1, start=2, **kw))
    assert all(map(same, joined, take(dataset.train(8, seed=1, start=2), 4)))
    joined = shares(lambda **kw: dataset.evaluate("train", 8, **kw))
    assert all(map(same, joined, take(dataset.evaluate("train", 8), 4)))


def test_a_process_reads_only_its_own_examples(monkeypatch):
    dataset = build(image_size=20)
    read = []
    monkeypatch.setattr(type(dataset._examples.source), "__getitem__", _spy(type(dataset._examples.source), read))
    batches = list(dataset.evaluate("test", 4, process=1, processes=2))
    assert [b["index"].tolist() for b in batches] == [[2, 3], [6, -1]]
    assert sorted(set(read)) == [26 + i for i in (2, 3, 6)]


def _spy(kind, read):
    original = kind.__getitem__

    def getitem(self, i):
        read.append(i)
        return original(self, i)

    return getitem


def test_evaluation_is_one_ordered_pass_with_padding():
    dataset = build()
    batches = list(dataset.evaluate("test", 4))
    assert [b["valid"].tolist() for b in batches] == [[True] * 4, [True] * 3 + [False]]
    assert [b["index"].tolist() for b in batches] == [[0, 1, 2, 3], [4, 5, 6, -1]]
    last = {k: v[3] for k, v in batches[1].items()}
    assert not last["image"].any()
    assert not last["mask"].any()
    assert (last["class"], last["class_known"]) == (-1, False)
    assert batches[0]["class_known"].all()
    assert batches[0]["class"].tolist() == [dataset.example("test", i)["class"] for i in range(4)]


def test_labels_that_may_not_be_used_are_not_in_the_batch():
    dataset = build(labelled=0.3)
    batches = [*take(dataset.train(7, seed=0), 3), *dataset.evaluate("train", 7)]
    seen = {}
    for batch in batches:
        hidden = ~batch["class_known"]
        assert not batch["mask"][hidden].any()
        assert (batch["class"][hidden] == -1).all()
        seen.update(zip(batch["index"].tolist(), batch["class_known"].tolist(), strict=True))
        for i, mask in zip(batch["index"][~hidden], batch["mask"][~hidden], strict=True):
            np.testing.assert_array_equal(mask, dataset.resized("train", int(i))["mask"])
    kinds = np.array([dataset.example("train", i)["class"] for i in range(21)])
    for kind in np.unique(kinds):
        of = np.flatnonzero(kinds == kind)
        assert sum(seen[i] for i in of.tolist()) == max(1, round(0.3 * len(of)))
    fewer = build(labelled=0.1)
    assert {i for i in range(21) if fewer._labelled["train"][i]} < {i for i in seen if seen[i]}
    assert all(b["class_known"].all() for split in ("val", "test") for b in dataset.evaluate(split, 1))


@pytest.mark.long
def test_worker_processes_give_what_threads_give(tmp_path):
    """In a process of its own, as workers start from a fresh interpreter that must find a guarded main module."""
    script = tmp_path / "read.py"
    script.write_text(
        "import itertools, json, zlib\n"
        "from kdjax.config import Data\n"
        "from kdjax.data import pipeline\n"
        "def sums(workers):\n"
        f"    data = Data('ultrasound', image_size=24, workers=workers, labelled=0.5, **{TINY})\n"
        "    batches = itertools.islice(pipeline.build(data).train(4, seed=2, start=3), 6)\n"
        "    return [[zlib.crc32(b[k].tobytes()) for k in sorted(b)] for b in batches]\n"
        "if __name__ == '__main__':\n"
        "    print(json.dumps([sums(0), sums(2)]))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    threads, processes = json.loads(done.stdout.splitlines()[-1])
    assert len(threads) == 6
    assert threads == processes


def test_stages_with_the_same_data_share_one_copy(tmp_path):
    options = folders.folder(tmp_path)
    first, second = build("folder", **options), build("folder", **options, labelled=0.5)
    assert first._examples is second._examples
    assert build("folder", **options, image_size=30)._examples is not first._examples
    folders.picture(tmp_path / "case0.png", 77, size=(20, 24))
    third = build("folder", **options)
    assert third._examples is not first._examples
    images = [third.resized(s, i)["image"].tobytes() for s, n in third.sizes.items() for i in range(n)]
    assert len(images) == len(set(images)) == 20


def test_a_set_that_does_not_fit_is_read_each_time(monkeypatch):
    whole = take(build().train(4, seed=0), 3)
    monkeypatch.setattr("kdjax.data.images.examples.CACHE_BYTES", 1000)
    monkeypatch.setattr("kdjax.data.images.dataset._shared", {})
    dataset = build()
    assert not dataset._examples._cache
    assert all(map(same, take(dataset.train(4, seed=0), 3), whole))


def test_an_iterator_can_be_left_behind():
    batches = build().train(4, seed=0)
    next(batches)
    del batches
    gc.collect()


def test_errors_say_what_to_do():
    for changes, text in (
        ({"source": "ultrasond"}, "no data entry 'ultrasond'; did you mean 'ultrasound'?"),
        ({"trian": 3}, "no option 'trian' of 'ultrasound'; did you mean 'train'"),
        ({"source": "busi"}, "'busi' needs the option 'root'"),
        ({"augment": {"flip": 0.5}}, "augment: no transform 'flip'; did you mean 'vflip' or 'hflip'?"),
        ({"num_classes": 4}, "num_classes: expected 2 (lesion) or 3 (benign, malignant), found 4"),
        ({"train": 0, "domain": "fan"}, "train: expected at least 1, found 0"),
        ({"domain": "linea"}, "domain: no 'linea'; did you mean 'linear'?"),
        ({"size": 8}, "size: expected at least 32 pixels, found 8"),
    ):
        with pytest.raises(ConfigError) as error:
            build(**changes)
        assert text in str(error.value)


def test_an_empty_split_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="split 'test' is empty: 3 examples are too few"):
        build("folder", **folders.folder(tmp_path, n=3))


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match="batch_size 9 does not divide over 2 processes; use a multiple, such as 10"):
        build().train(9, seed=0, processes=2)
