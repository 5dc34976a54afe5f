"""The digest of a vocabulary is what it is agreed to be, so that files and data made at different times agree."""

import hashlib

from kdjax.vocabulary import vocabulary_of


def test_the_digest_is_of_the_pairs_in_the_order_of_their_numbers():
    digest = "bee3b91a72fed55c82ccaa724cbec62d"
    assert vocabulary_of({"a": 0, "b": 1}) == digest
    assert vocabulary_of({"b": 1, "a": 0}) == digest
    assert hashlib.blake2b(b'[["a", 0], ["b", 1]]', digest_size=16).hexdigest() == digest


def test_other_tokens_numbers_or_letters_have_another():
    same = {"a": 0, "b": 1}
    others = [
        {"a": 1, "b": 0},
        {"a": 0, "b": 2},
        {"a": 0, "c": 1},
        {"a": 0},
        {"a": 0, "b": 1, "c": 2},
        {"ä": 0, "b": 1},
    ]
    assert len({vocabulary_of(vocab) for vocab in (same, *others)}) == 1 + len(others)
