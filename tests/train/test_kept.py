"""What a run keeps comes back as it was written, or not at all."""

import json
import re

import pytest

from kdjax.train import kept


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "value.json"
    kept.write_json(path, {"b": [1, 0.1 + 0.2, None, "ä"], "a": {"3": True}})
    return path


def test_a_value_comes_back(file):
    assert kept.read_json(file, "") == {"b": [1, 0.1 + 0.2, None, "ä"], "a": {"3": True}}
    assert list(file.parent.iterdir()) == [file]


def test_every_flipped_bit_is_noticed_or_changes_nothing(file):
    before, value, noticed = file.read_bytes(), kept.read_json(file, ""), 0
    for bit in range(8 * len(before)):
        content = bytearray(before)
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)
        said = ""
        try:
            found = kept.read_json(file, "do this")
        except kept.Damaged as error:
            said = str(error)
        if said:
            assert re.fullmatch(rf"(?s){file}: expected .*; do this", said)
            noticed += 1
        else:
            assert {name: found.get(name) for name in value} == value, "only the name of the checksum, or a blank"
    assert noticed > 0.75 * 8 * len(before)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"3", b"\xff\xfe", b"null"])
def test_other_content_ends_in_words(file, content):
    file.write_bytes(content)
    with pytest.raises(kept.Damaged, match=r"value.json: expected .*; do this"):
        kept.read_json(file, "do this")


def test_what_an_earlier_version_wrote_opens_as_before(file):
    file.write_text(json.dumps({"epochs": 3}))
    assert kept.read_json(file, "") == {"epochs": 3}


def test_a_file_is_compared_with_what_is_noted(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"weights")
    noted = kept.checksums(tmp_path, ["model", "nothing"])
    assert list(noted) == ["model"]
    assert not kept.fault(path, noted["model"])
    path.write_bytes(b"Weights")
    assert "model: expected the file that this run wrote, found 7 bytes" in kept.fault(path, noted["model"])
    path.unlink()
    assert kept.fault(path, noted["model"]).endswith("cannot read it (No such file or directory)")
