"""Records with and without images, captions and labels; the readers of MedPix and of tables of one's own."""

import csv
import itertools
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from kdjax.config import ConfigError, Data
from kdjax.data import cache as store
from kdjax.data import pipeline
from kdjax.data.fields import TokensField
from kdjax.data.text import tokenizers
from kdjax.data.text.source import Record, RecordSource
from kdjax.data.text.tokenizers import Tokenizer, read
from tests.support import folders, records
from tests.support.sources import build, faults

TRAIN = {"": {"train": 60}}
LABELS = {"kind": ("a", "b"), "place": ("x", "y", "z")}
CLASSES = {"modality": 2, "location": 5}


class Told(RecordSource):
    """Forty records in memory, of which some lack an image, a caption or a label."""

    def __init__(self, whole: bool = False, tokenizers=TRAIN, length: int = 256, cache: str = "auto"):
        rng = np.random.default_rng(0)
        made = []
        for i in range(40):
            image = rng.integers(0, 256, (12, 10 + i % 3, 3), np.uint8)
            labels = {"kind": "ab"[i % 2], "place": None if i % 5 == 0 else "xyz"[i % 3]}
            caption = " ".join(rng.choice(records.WORDS, 3 + i % 3))
            lacking = i % 8 if not whole else 8
            made.append(
                Record(
                    f"r{i}",
                    None if lacking == 1 else image,
                    None if lacking == 2 else "  " if lacking == 3 else caption,
                    {} if i % 10 == 0 else labels,
                    group=f"patient {i // 2}",
                )
            )
        super().__init__(made, LABELS, tokenizers, length, "text", cache)


TOLD = "tests.data.text.test_records:Told"


def rows(dataset, split: str = "train"):
    """(record, its row in a batch) of a split."""
    for batch in dataset.evaluate(split, 4):
        for row in np.flatnonzero(batch["valid"]):
            where = int(dataset._where[split][batch["index"][row]])
            yield dataset.records[where], {name: value[row] for name, value in batch.items()}


def test_a_batch_has_what_each_record_has():
    dataset = build(TOLD)
    assert dataset.item == "record"
    assert dataset.facts["labels"] == {"kind": 2, "place": 3}
    assert dataset.label_classes == LABELS
    batch = next(iter(dataset.train(4, seed=0)))
    shapes = dataset.shapes(4)
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {k: (s.shape, s.dtype) for k, s in shapes.items()}
    tokenizer = json.dumps(dataset.keepsakes["tokenizer.json"])
    known = json.loads(tokenizer)["model"]["vocab"]
    seen = 0
    for split in dataset.sizes:
        for i, (record, row) in enumerate(rows(dataset, split)):
            assert dataset.caption(split, i) == (record.caption or "")
            assert row["image_there"] == (record.image is not None) == bool(row["image"].any())
            assert row["text_there"] == bool(record.caption and record.caption.strip())
            if not row["text_there"]:
                assert row["input_ids"][:3].tolist() == [known["[CLS]"], known["[SEP]"], known["[PAD]"]]
                assert row["attention_mask"].sum() == 2
            for label, classes in LABELS.items():
                told = record.labels.get(label)
                assert row[f"{label}_known"] == (told is not None)
                assert row[label] == (-1 if told is None else classes.index(told))
            seen += 1
    assert seen == 40
    assert set(dataset.notes) == {
        "5 of 40 records have no image: their captions alone are read (r1, r9, r17, ...)",
        "10 of 40 records have no caption: their images alone are read (r2, r3, r10, ...)",
        "4 of 40 records have no kind",
        "8 of 40 records have no place",
    }


def test_a_process_that_reads_gets_the_tokens_with_the_data():
    dataset = build(TOLD)
    copied, rows = pickle.loads(pickle.dumps(dataset)), np.array([3, -1, 0])
    for name, values in dataset.batch("train", rows).items():
        np.testing.assert_array_equal(copied.batch("train", rows)[name], values)


def test_padding_reads_as_a_record_without_a_caption():
    dataset = build(TOLD)
    *_, last = dataset.evaluate("train", 16)
    padding = ~last["valid"]
    assert padding.any()
    assert (last["attention_mask"][padding].sum(1) == 2).all()
    assert not last["image_there"][padding].any()
    assert not last["text_there"][padding].any()
    assert (last["kind"][padding] == -1).all()


def test_two_tokenizers_make_two_sets_of_fields(tmp_path):
    teacher = records.table(tmp_path / "large" / "vocab.txt")
    given = {"teacher": {"path": teacher}, "student": {"train": 60}}
    dataset = build(TOLD, tokenizers=given, length=12)
    assert {"input_ids_teacher", "attention_mask_teacher", "input_ids_student"} <= set(dataset.fields)
    assert set(dataset.keepsakes) == {"tokenizer_teacher.json", "tokenizer_student.json"}
    fields = {name: field for name, field in dataset.fields.items() if isinstance(field, TokensField)}
    assert {(f.vocab_size, f.vocabulary) for k, f in fields.items() if k.endswith("teacher")} == {
        (18, tokenizers.read(teacher).vocabulary)
    }
    for name in given:
        path = tmp_path / f"tokenizer_{name}.json"
        path.write_text(json.dumps(dataset.keepsakes[path.name]))
        for record, row in rows(dataset, "test"):
            ids, mask, _ = read(path).rows([record.caption or ""])
            assert row[f"attention_mask_{name}"].sum() == mask.sum()
            assert row[f"input_ids_{name}"][: mask.sum()].tolist() == ids[0].tolist()


def test_a_tokenizer_learns_from_the_training_split_alone():
    def said(splits):
        made = [Record(f"{i}", None, f"word{split} and others", {"class": "ab"[i % 2]}, split) for i, split in splits]
        return RecordSource(made, {"class": ("a", "b")}, TRAIN)

    splits = list(enumerate(["train"] * 8 + ["val"] * 4 + ["test"] * 4))
    source = said(splits)
    tokens = source.captions.tokens(np.arange(8))
    vocab = tokens.keepsakes["tokenizer.json"]["model"]["vocab"]
    assert "wordtrain" in vocab
    assert "wordval" not in vocab
    assert "wordtest" not in vocab
    assert not {"v", "##v"} & set(vocab), "letters of val alone"


def test_rows_are_as_long_as_the_longest_caption_at_most_length(tmp_path):
    path = records.table(tmp_path / "vocab.txt")
    made = [Record(f"{i}", None, "ct " * (2 + i), {"class": "ab"[i % 2]}) for i in range(9)]
    for length, width, notes in ((256, 16, ()), (9, 9, ("3 captions are longer than 9 tokens and are cut",))):
        captions = RecordSource(made, {"class": ()}, {"": {"path": path}}, length).captions
        tokens = captions.tokens(np.arange(5))
        assert tokens.fields["input_ids"].shape == (width,)
        assert tokens.notes == notes
    known = tokenizers.read(path).vocab
    assert tokens.ids[""][8].tolist() == [known["[CLS]"], *[known["ct"]] * 7, known["[SEP]"]]


def test_tokens_are_made_once_and_a_damaged_file_is_made_anew(tmp_path, monkeypatch):
    cache, calls = tmp_path / "kept", []
    encoding = Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", lambda self, texts: calls.append(len(texts)) or encoding(self, texts))

    def ids(**changes):
        return Told(cache=str(cache), **changes).captions.tokens(np.arange(30)).ids[""]

    first = ids()
    (path,) = cache.iterdir()
    np.testing.assert_array_equal(ids(), first)
    assert calls == [41]
    whole = path.read_bytes()
    for damaged in (whole[:-20], b"", whole[:300] + bytes([whole[300] ^ 1]) + whole[301:]):
        path.write_bytes(damaged)
        np.testing.assert_array_equal(ids(), first)
    assert calls == [41] * 4
    ids(length=9), ids(whole=True), ids(tokenizers={"": {"train": 50}})
    assert len(list(cache.iterdir())) == 4

    def full(file, **_):
        raise OSError("no space left")

    monkeypatch.setattr(store.np, "savez", full)
    captions = Told(cache=str(tmp_path / "full")).captions
    assert "the tokens could not be kept in" in captions.tokens(np.arange(30)).notes[0]
    assert len(calls) == 8


class Even(RecordSource):
    """Ten records of each pair of classes."""

    def __init__(self):
        pairs = list(itertools.product("ab", "xyz")) * 10
        made = [Record(f"{i}", None, f"a mass {i}", {"kind": k, "place": p}) for i, (k, p) in enumerate(pairs)]
        super().__init__(made, LABELS, TRAIN)


def test_splits_keep_the_shares_of_all_labels_and_patients_together():
    even = build("tests.data.text.test_records:Even", split=(0.6, 0.2, 0.2), labelled=0.5)
    for split, share in {"train": 6, "val": 2, "test": 2}.items():
        pairs = [tuple(even.records[int(i)].labels.values()) for i in even._where[split]]
        assert {pairs.count(pair) for pair in itertools.product("ab", "xyz")} == {share}
    assert even.label_counts("train")["place"].tolist() == [6, 6, 6]
    grouped = build(TOLD, whole=True)
    groups = {s: {grouped.records[int(i)].group for i in grouped._where[s]} for s in grouped.sizes}
    assert not any(groups[a] & groups[b] for a, b in itertools.combinations(groups, 2))


def test_withheld_labels_are_all_labels_of_an_example():
    dataset = build(TOLD, labelled=0.3)
    told = [(bool(row["kind_known"]), bool(row["place_known"]), record) for record, row in rows(dataset)]
    usable = [record for kind, _, record in told if kind]
    assert 0 < len(usable) < 0.6 * dataset.sizes["train"]
    assert all(place == (kind and record.labels["place"] is not None) for kind, place, record in told if record.labels)
    assert all(bool(row["kind_known"]) == bool(record.labels) for record, row in rows(dataset, "test"))


def test_the_contents_change_with_captions_labels_and_tokens(tmp_path):
    plain = build(TOLD).fingerprints
    assert build(TOLD).fingerprints == plain
    assert build(TOLD, whole=True).fingerprints != plain
    assert build(TOLD, tokenizers={"": {"train": 50}}).fingerprints["test"] != plain["test"]


def test_images_without_captions_and_captions_without_images():
    images = build(TOLD, whole=True, tokenizers={})
    assert {"image", "image_there", "kind", "place"} <= set(images.fields)
    assert "text_there" not in images.fields
    assert images.keepsakes == {}
    made = [Record(f"{i}", None, "a mass of the head", {"class": "ab"[i % 2]}) for i in range(20)]
    source = RecordSource(made, {"class": ("a", "b")})
    assert source.fields.keys() == {"text_there", "class"}
    assert (source.classes, source.num_classes) == (("a", "b"), 2)
    assert [source.inspect(i).label for i in range(3)] == [0, 1, 0]
    assert not source.inspect(0).content, "two records that say the same are two"


def test_what_is_wrong_with_records_is_told_at_once():
    made = [
        Record("one", None, None, {"kind": "c"}, at="list, line 1"),
        Record("two", "/nowhere/two.png", "a caption", {"kind": "a"}),
        Record("three", np.zeros((4, 4, 3), np.uint8), " ", {"kind": "b"}),
    ]
    source = RecordSource(made, {"kind": ("a", "b"), "image_kind": ("a", "b")}, length=2, missing="skip")
    told = "\n".join(source.faults)
    for fault in (
        "list, line 1: expected an image or a caption, found neither; remove it",
        "list, line 1: expected 'kind' as a, b, found 'c'; mend it, or leave it empty where nobody knows",
        "record 'two': expected an image at /nowhere/two.png, found no file; check the folder, or set missing=\"text\"",
        "record 'three': expected a caption, found an empty one; write one, or set missing=\"text\"",
        "missing: expected error or text, found 'skip'",
        "length: expected at least 4 tokens, found 2",
        "labels: image_kind would be called like other fields of a batch; rename them",
    ):
        assert fault in told
    assert "expected records, found none" in RecordSource([], LABELS).faults[0]
    assert "expected two classes of 'kind' at least, found a" in RecordSource([made[1]], {"kind": ()}).faults[0]
    wordless = RecordSource([made[2]], {"kind": ("a", "b")}, TRAIN)
    assert wordless.faults == ["tokenizers: expected captions for them, found none; leave tokenizers out"]


def test_wrong_tokenizers_are_told_before_anything_is_read(tmp_path):
    assert f"tokenizers['']: {tmp_path}: expected tokenizer.json, vocab.txt or a folder" in faults(
        TOLD, tokenizers={"": {"path": str(tmp_path)}}
    )
    assert "no 'trian'; did you mean 'train'" in faults(TOLD, tokenizers={"a": {"trian": 2}})
    assert "tokenizers['']: expected a vocabulary of at least" in faults(TOLD, tokenizers={"": {"train": 9}})
    assert "expected a name of letters" in faults(TOLD, tokenizers={"a b": {"train": 60}})


# -- MedPix ----------------------------------------------------------------------------------------------------------


def test_medpix_is_read_as_it_is_unpacked(tmp_path):
    options = records.medpix(tmp_path, train_0={"Type": None}, dev_1={"Location Category": None})
    dataset = build("medpix", tokenizers=TRAIN, **options)
    assert dataset.sizes == {"train": 12, "val": 5, "test": 4}
    assert dataset.facts["labels"] == CLASSES
    assert dataset.notes == ("1 of 21 records have no modality", "1 of 21 records have no location")
    assert {name: counts.sum() for name, counts in dataset.label_counts("train").items()} == {
        "modality": 11,
        "location": 12,
    }
    record, row = next(rows(dataset, "test"))
    assert (record.name, record.group) == ("MPX17_34", "MPX17")
    image = np.asarray(Image.open(tmp_path / "images" / "MPX17_34.png").convert("RGB"))
    np.testing.assert_array_equal(dataset.example("test", 0)["image"], image)
    assert row["modality"] == 0
    assert row["location"] == 34 % 5
    assert row["image_there"]


def test_medpix_without_images_and_with_some_missing(tmp_path):
    options = records.medpix(tmp_path, images=False)
    alone = build("medpix", images=False, tokenizers=TRAIN, **options)
    assert "image" not in alone.fields
    assert sum(alone.sizes.values()) == 21
    assert alone.original_sizes("train", 3) == []
    assert "expected a folder of images, found none; unpack it" in faults("medpix", **options)
    first = json.loads(records.lines()["train"][0])["image"]
    folders.picture(tmp_path / "images" / f"{first}.png", 1)
    told = faults("medpix", tokenizers=TRAIN, **options)
    assert f"line 2: expected an image at {tmp_path}/images/MPX0_1.png, found no file; check the folder" in told
    assert "train.jsonl, line 1:" not in told
    some = build("medpix", missing="text", tokenizers=TRAIN, **options)
    assert sum(row["image_there"] for split in some.sizes for _, row in rows(some, split)) == 1
    assert any(note.startswith("20 of 21 records have no image") for note in some.notes)


def test_what_is_wrong_with_medpix_is_told_by_file_and_line(tmp_path):
    options = records.medpix(
        tmp_path,
        train_2={"Type": "PET"},
        dev_0={"Location Category": "Neck"},
        test_1={"Description": {"Caption": " "}},
        test_2={"image": None},
    )
    where = tmp_path / "splitted_dataset"
    with open(where / "descriptions_train.jsonl", "a") as file:
        file.write("{broken\n[1]\n")
    (tmp_path / "images" / "MPX0_0.png").write_bytes(b"no image")
    (where / "descriptions_dev.jsonl").rename(where / "dev.jsonl")
    told = faults("medpix", **options)
    for fault in (
        f"{where}/descriptions_train.jsonl, line 3: expected 'modality' as CT, MR, found 'PET'",
        f"{where}/descriptions_train.jsonl, line 13: expected JSON, found none (",
        f"{where}/descriptions_train.jsonl, line 14: expected an object {{...}}, found '[1]'",
        f"{where}/descriptions_test.jsonl, line 2: expected a caption, found an empty one",
        f"{where}/descriptions_test.jsonl, line 3: expected image and U_id, found no image; mend it",
        f"{where}/descriptions_dev.jsonl: expected a table in UTF-8, but it cannot be read",
        f"{tmp_path}/images/MPX0_0.png: expected an image, but it cannot be read",
    ):
        assert fault in told
    (where / "dev.jsonl").rename(where / "descriptions_dev.jsonl")
    assert "line 1: expected 'location' as Abdomen, Head, Reproductive and Urinary System," in faults(
        "medpix", **options
    )
    assert "expected splitted_dataset/descriptions_{train,dev,test}.jsonl" in faults("medpix", root=f"{tmp_path}/no")


@pytest.mark.parametrize("mode", ["RGBA", "I;16", "L"])
def test_images_of_any_kind_are_read_as_elsewhere(tmp_path, mode):
    options = records.medpix(tmp_path)
    grey = np.linspace(0, 65535 if mode == "I;16" else 255, 20 * 20).reshape(20, 20)
    picture = Image.fromarray(grey.astype(np.uint16 if mode == "I;16" else np.uint8))
    (picture if mode == "I;16" else picture.convert(mode)).save(tmp_path / "images" / "MPX0_0.png")
    image = build("medpix", tokenizers=TRAIN, **options).resized("train", 0)["image"]
    assert image.shape == (16, 16, 3)
    assert image.min() < 20
    assert image.max() > 235


@pytest.mark.long
def test_the_real_captions_and_images(reference):
    root = reference / "data" / "medpix20"
    given = {"teacher": {"train": 4000}, "student": {"train": 2000}}
    data = Data("medpix", root=str(root / "full_text"), images=False, tokenizers=given)
    dataset = pipeline.build(data)
    assert dataset.sizes == {"train": 1653, "val": 197, "test": 200}
    assert dataset.label_counts("train")["modality"].tolist() == [878, 775]
    assert dataset.label_counts("train")["location"].tolist() == [264, 742, 127, 263, 257]
    assert dataset.label_counts("test")["location"].tolist() == [32, 76, 11, 41, 40]
    assert dataset.notes == ("3 captions are longer than 256 tokens and are cut for the student",)
    assert dataset.facts["tokens"]["input_ids_teacher"]["vocab_size"] == 4000
    few = pipeline.build(Data("medpix", root=str(root), image_size=32))
    assert few.sizes == {"train": 80, "val": 27, "test": 29}
    assert all(batch["image_there"][batch["valid"]].all() for batch in few.evaluate("test", 8))


# -- tables of one's own ---------------------------------------------------------------------------------------------


def own(root, rows, name="own.csv") -> str:
    path = root / name
    if name.endswith("csv"):
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def row(i: int) -> dict:
    modality = "" if i == 7 else "CT" if i % 2 else "MR"
    return {"picture": f"{i}.png", "words": "ct, of\nthe head", "modality": modality, "level": i % 3}


@pytest.mark.parametrize("name", ["own.csv", "own.jsonl"])
def test_a_table_of_ones_own(tmp_path, name):
    for i in range(20):
        folders.picture(tmp_path / f"{i}.png", i)
    table = own(tmp_path, [row(i) for i in range(20)], name)
    labels = {"modality": ("CT", "MR"), "level": ()}
    options = {"table": table, "labels": labels, "image": "picture", "text": "words", "tokenizers": TRAIN}
    dataset = build("records", **options)
    assert dataset.label_classes == {"modality": ("CT", "MR"), "level": ("0", "1", "2")}
    assert dataset.notes == ("1 of 20 records have no modality",)
    assert sum(dataset.sizes.values()) == 20
    for record, made in rows(dataset):
        i = int(record.name.split(".")[0])
        assert made["level"] == i % 3
        assert made["image_there"]
        assert record.caption == "ct, of\nthe head"
    assert "'picutre' is no column of it; did you mean 'picture'" in faults("records", **options | {"image": "picutre"})
    assert "the label 'kind' is no column of it" in faults("records", **options | {"labels": {"kind": ()}})


def test_a_table_may_have_images_alone_texts_alone_and_splits(tmp_path):
    splits = ["train"] * 6 + ["dev"] * 3 + ["test"] * 3
    texts = [{"text": f"a mass {i}", "class": "ab"[i % 2], "split": split} for i, split in enumerate(splits)]
    dataset = build("records", table=own(tmp_path, texts, "t.jsonl"), labels={"class": ("a", "b")}, num_classes=None)
    assert dataset.sizes == {"train": 6, "val": 3, "test": 3}
    assert (dataset.facts["num_classes"], dataset.image_classes) == (2, ("a", "b"))
    assert dataset.class_counts("train").tolist() == [3, 3]
    for i in range(12):
        folders.picture(tmp_path / "pictures" / f"{i}.png", i)
    images = [{"image": f"pictures/{i}.png", "class": "ab"[i % 2], "group": f"g{i // 2}"} for i in range(12)]
    dataset = build("records", table=own(tmp_path, images), labels={"class": ("a", "b")})
    assert {"image", "class"} <= set(dataset.fields)
    assert "input_ids" not in dataset.fields


def test_what_is_wrong_with_a_table_is_told_by_its_line(tmp_path):
    rows = [{"text": "a mass", "class": "ab"[i % 2], "split": "train"} for i in range(6)]
    rows[1]["class"], rows[2]["split"], rows[3]["text"] = "c", "later", ""
    path = own(tmp_path, rows)
    told = faults("records", table=path, labels={"class": ("a", "b")})
    assert f"{path}, line 3: expected 'class' as a, b, found 'c'" in told
    assert f"{path}, line 4: expected the split train, val or test, found 'later'; mend it" in told
    assert f"{path}, line 5: expected an image or a caption, found neither; remove it" in told
    told = faults("records", table=f"{tmp_path}/nowhere.csv", labels=LABELS)
    assert "nowhere.csv: expected a table in UTF-8" in told
    assert len(told.splitlines()) == 2, "what follows from there being no table is not told"
    other = own(tmp_path, [{"a": "1", "class": "b"}], "other.csv")
    assert "expected a column of images or one of texts, found a, class" in faults(
        "records", table=other, labels={"class": ()}
    )


def test_augmentation_of_records_without_images_is_refused():
    with pytest.raises(ConfigError, match="augment: hflip change images, and this data has none"):
        build("tests.support.records:Texts", augment={"hflip": 0.5})
