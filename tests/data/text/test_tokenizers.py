"""Tokenizers from files and from captions."""

import json
import subprocess
import sys
import types

import numpy as np
import pytest
import tokenizers as library

from kdjax.config import ConfigError
from kdjax.data.text.tokenizers import SPECIALS, option_faults, read, trained
from tests.support import records

CAPTIONS = (
    "CT of the chest reveals an obstructing mass.",
    "Axial CT shows a mass; the chest is clear.",
    "MRI of the knee, sagittal: torn ligament",
    "Éxamen of the knees",
)


def words(tokenizer, text: str) -> list[str]:
    known = {i: token for token, i in tokenizer.vocab.items()}
    return [known[i] for i in tokenizer.encode([text]).ids.tolist()]


def refused(*args, **options) -> str:
    with pytest.raises(ConfigError) as error:
        read(*args, **options)
    return str(error.value)


def test_a_table_of_tokens_is_read_as_berts(tmp_path):
    path = records.table(tmp_path / "vocab.txt", ("ct", "knee", "##s", "etude", ",", "."))
    plain = read(path)
    assert words(plain, "CT, Étude knees. strange") == [
        *("[CLS]", "ct", ",", "etude", "knee", "##s", ".", "[UNK]", "[SEP]"),
    ]
    assert (plain.length, plain.vocab_size, plain.pad_id) == (256, 11, 0)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false, "model_max_length": 512}')
    assert words(read(tmp_path), "CT knee Étude") == ["[CLS]", "[UNK]", "knee", "[UNK]", "[SEP]"]


def test_what_is_too_long_is_cut_before_its_end(tmp_path):
    tokenizer = read(records.table(tmp_path / "vocab.txt"), length=5)
    encoded = tokenizer.encode(["ct of the head shows a mass", "ct of the", "", "head"])
    assert encoded.lengths.tolist() == [5, 5, 2, 3]
    assert encoded.cut == 1
    rows = tokenizer.padded(encoded, 8)
    known = tokenizer.vocab
    assert rows[0].tolist() == [*(known[w] for w in ("[CLS]", "ct", "of", "the", "[SEP]")), 0, 0, 0]
    assert rows[2].tolist() == [known["[CLS]"], known["[SEP]"], 0, 0, 0, 0, 0, 0]


def test_training_gives_the_same_tokenizer_each_time():
    """The library's own trainer does not: it numbers letters as they come out of a hash table."""
    one, other = trained(CAPTIONS, 80, 32), trained(list(reversed(CAPTIONS)), 80, 32)
    assert one.vocab == other.vocab
    assert [token for token, _ in sorted(one.vocab.items(), key=lambda x: x[1])][:5] == list(SPECIALS)
    assert {"the", "mass", "chest"} <= set(one.vocab)
    assert words(one, "The mass") == ["[CLS]", "the", "mass", "[SEP]"]
    assert one.vocab_size == len(one.vocab) <= 80


@pytest.mark.long
def test_training_gives_the_same_tokenizer_in_every_process():
    code = f"from kdjax.data.text.tokenizers import trained; print(trained({CAPTIONS!r}, 80, 32).vocabulary)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    assert {run.stdout.strip() for run in runs} == {trained(CAPTIONS, 80, 32).vocabulary}


def test_a_vocabulary_has_room_for_every_letter():
    with pytest.raises(ConfigError, match=r"at least \d+ tokens, one for each letter, found 20; set train=\d+ or more"):
        trained(CAPTIONS, 20, 32)
    with pytest.raises(ConfigError, match="captions without a word to train on"):
        trained([" "], 2000, 32)


def test_what_is_left_beside_the_weights_reads_captions_as_training_did(tmp_path):
    tokenizer = trained(CAPTIONS, 80, 12)
    path = tmp_path / "tokenizer_teacher.json"
    path.write_text(json.dumps(tokenizer.keepsake()))
    again = read(path)
    assert (again.length, again.vocabulary, again.pad) == (12, tokenizer.vocabulary, "[PAD]")
    ids, mask, _ = read(path).rows(CAPTIONS)
    encoded = tokenizer.encode(CAPTIONS)
    np.testing.assert_array_equal(ids, tokenizer.padded(encoded, 12))
    np.testing.assert_array_equal(mask.sum(1), encoded.lengths)
    assert ids.dtype == mask.dtype == np.int32
    assert read(path).rows([]).ids.shape == (0, 2)
    plain = library.Tokenizer.from_file(str(path))  # which cuts and pads by itself
    rows = [row.ids for row in plain.encode_batch(list(CAPTIONS))]
    np.testing.assert_array_equal(rows, ids)


def test_files_that_are_no_tokenizer_are_named(tmp_path):
    assert "expected tokenizer.json, vocab.txt or a folder with one" in refused(tmp_path / "nowhere")
    assert "found a folder without them" in refused(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text("{")
    assert f"{path}: expected a tokenizer as the library tokenizers saves it" in refused(tmp_path)
    gpt = library.Tokenizer(library.models.BPE({"a": 0}, []))
    path.write_text(gpt.to_str())
    assert "expected a tokenizer with [PAD] that puts [CLS] before a text" in refused(path)
    table = tmp_path / "vocab.txt"
    table.write_text("a\nb\n[UNK]\n")
    assert "expected BERT's table of tokens, found none of [PAD], [CLS], [SEP]" in refused(table)
    table.write_bytes(b"\xff\xfe")
    assert "expected a token on each line in UTF-8" in refused(table)
    records.table(table)
    (tmp_path / "tokenizer_config.json").write_text("no")
    assert "tokenizer_config.json: expected JSON" in refused(table)


def test_options_are_looked_over():
    assert not option_faults({"path": "a"})
    assert not option_faults({"train": 2000})
    for option in ({}, {"path": "a", "train": 2}, {"path": 3}, {"train": "2"}, {"train": True}, "bert"):
        assert 'expected {"path": FILE, FOLDER or "hf:NAME"} or {"train": SIZE' in option_faults(option)[0]
    assert option_faults({"trian": 3}) == ["no 'trian'; did you mean 'train'?"]


def test_the_hub_and_its_absence(tmp_path, monkeypatch):
    asked = []

    def snapshot_download(repository, revision, allow_patterns):
        asked.append((repository, revision, allow_patterns))
        if repository == "owner/offline":
            raise ConnectionError("no route to host")
        records.table(tmp_path / "vocab.txt")
        return str(tmp_path)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    assert read("hf:owner/name@v1").vocab_size == 18
    assert asked == [("owner/name", "v1", ["tokenizer.json", "vocab.txt", "tokenizer_config.json"])]
    assert "hf:owner/offline: could not be fetched (ConnectionError: no route to host)" in refused("hf:owner/offline")


def test_without_the_extra_its_name_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert refused(tmp_path) == "captions need the package tokenizers: pip install 'kdjax[text]'"


@pytest.mark.long
def test_real_captions_read_as_transformers_reads_them(reference, tmp_path):
    """With BERT's settings, lower case and not, and with tokens of a trained vocabulary."""
    transformers = pytest.importorskip("transformers", reason="no reference data")
    lines = (reference / "data/medpix20/full_text/descriptions_test.jsonl").read_text().splitlines()
    captions = [json.loads(line)["Description"]["Caption"] for line in lines]
    captions += ["Ünïcode  and\ttabs\r\n, 中文字 [SEP] inside", "x" * 150]
    tokenizer = trained(captions, 1500, 64)
    vocab = sorted(tokenizer.vocab, key=tokenizer.vocab.__getitem__)
    (tmp_path / "vocab.txt").write_text("\n".join(vocab) + "\n")
    for lower in (True, False):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
        theirs = transformers.BertTokenizerFast(str(tmp_path / "vocab.txt"), do_lower_case=lower)
        expected = theirs(captions, padding="max_length", truncation=True, max_length=64)
        ours = read(tmp_path, 64)
        np.testing.assert_array_equal(ours.padded(ours.encode(captions), 64), expected["input_ids"])
        theirs.save_pretrained(tmp_path / f"saved_{lower}")
        again = read(tmp_path / f"saved_{lower}", 64)
        assert again.vocabulary == ours.vocabulary
        np.testing.assert_array_equal(again.padded(again.encode(captions), 64), expected["input_ids"])
