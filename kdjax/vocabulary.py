"""Which vocabulary a text is written in: a model and the data that it reads have to mean the same by a number."""

import hashlib
import json
from collections.abc import Mapping


def vocabulary_of(vocab: Mapping[str, int]) -> str:
    """The digest of a tokenizer's table, token -> id: 32 hexadecimal digits, whatever order the table is in."""
    table = sorted(vocab.items(), key=lambda entry: entry[1])
    return hashlib.blake2b(json.dumps(table).encode(), digest_size=16).hexdigest()
