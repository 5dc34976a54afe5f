"""What may be printed to a terminal."""

import unicodedata
from typing import Any


def printable(text: Any) -> str:
    """With the control characters of names and headers spelt out, so that a terminal shows them and does nothing."""
    plain = {c: c if c == "\n" or unicodedata.category(c)[0] != "C" else ascii(c)[1:-1] for c in set(str(text))}
    return "".join(plain[c] for c in str(text))
