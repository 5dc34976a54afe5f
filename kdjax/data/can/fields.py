"""Columns of text to numbers, many rows at a time, over the bytes of a file."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped, UInt8

MARGIN = 64  # bytes that a buffer has before its first field and after its last
NIBBLE = np.full(256, 255, np.uint8)  # what a character is worth as a hex digit; 255 is none
NIBBLE[np.frombuffer(b"0123456789", np.uint8)] = range(10)
NIBBLE[np.frombuffer(b"abcdef", np.uint8)] = NIBBLE[np.frombuffer(b"ABCDEF", np.uint8)] = range(10, 16)
LOWER = np.frombuffer(bytes(range(256)).lower(), np.uint8)
WORDS = {  # of labels
    **dict.fromkeys((b"0", b"r", b"n", b"normal", b"benign", b"regular", b"false", b"0.0"), 0),
    **dict.fromkeys((b"1", b"t", b"a", b"attack", b"injected", b"true", b"1.0"), 1),
}
WIDEST_WORD = 8


@dataclass(frozen=True)
class Text:
    """A column: field i is `buffer[begin[i]:end[i]]`."""

    buffer: UInt8[np.ndarray, " m"]
    begin: Int64[np.ndarray, " n"]
    end: Int64[np.ndarray, " n"]

    def __getitem__(self, i: int) -> str:
        return self.buffer[self.begin[i] : self.end[i]].tobytes().decode("utf-8", "replace")

    def rows(self, which: Shaped[np.ndarray, " k"]) -> "Text":
        return Text(self.buffer, self.begin[which], self.end[which])

    def trimmed(self) -> "Text":
        """Without the blanks and quotes around the fields."""
        begin, end = self.begin.copy(), self.end.copy()
        for edge, at, step in ((begin, 0, 1), (end, -1, -1)):
            while (blank := (begin < end) & _BLANK[self.buffer[edge + at]]).any():
                edge += step * blank
        return Text(self.buffer, begin, end)

    def left(self, width: int) -> UInt8[np.ndarray, "n w"]:
        """The first characters of each field, and what follows it."""
        return np.lib.stride_tricks.sliding_window_view(self.buffer, width)[self.begin]

    def right(self, width: int) -> UInt8[np.ndarray, "n w"]:
        """The last characters of each field, and what precedes it."""
        return np.lib.stride_tricks.sliding_window_view(self.buffer, width)[self.end - width]


_BLANK = np.zeros(256, bool)
_BLANK[np.frombuffer(b" \t\r\"'", np.uint8)] = True


@dataclass(frozen=True)
class Digits:
    """Numbers of which it may not be known yet whether they are hex or decimal: a hex digit to every four bits."""

    packed: Int64[np.ndarray, " n"]
    good: Bool[np.ndarray, " n"]
    width: Int64[np.ndarray, " n"]
    letters: Bool[np.ndarray, " n"]  # has a digit above 9, or the prefix 0x
    padded: Bool[np.ndarray, " n"]  # begins with a zero that it does not need


def digits(text: Text, widest: int) -> Digits:
    """Up to `widest` hex digits each, with or without the prefix 0x."""
    start = text.left(2)
    prefixed = (start[:, 0] == ord("0")) & (LOWER[start[:, 1]] == ord("x")) & (text.end - text.begin > 2)
    text = Text(text.buffer, text.begin + 2 * prefixed, text.end) if prefixed.any() else text
    width = text.end - text.begin
    packed = np.zeros(len(width), np.int64)
    good, letters = (width > 0) & (width <= widest), prefixed
    span = int(np.clip(width.max(initial=1), 1, widest))
    nibbles = NIBBLE[text.right(span)]
    for j in range(span):
        nibble = np.where(span - j <= width, nibbles[:, j], np.uint8(0))
        good &= nibble < 16
        letters = letters | (nibble > 9)
        packed = packed << 4 | (nibble & 15)
    first = NIBBLE[text.left(1)[:, 0]]
    return Digits(packed, good, width, letters & good, (first == 0) & (width > 1) & good)


def decimal(packed: Int64[np.ndarray, "..."]) -> Int64[np.ndarray, "..."]:
    """What packed digits 0 to 9 say as a decimal number."""
    value, power, rest = np.zeros_like(packed), 1, packed
    while rest.any():
        value = value + (rest & 15) * power
        rest, power = rest >> 4, power * 10
    return value


def times(text: Text) -> tuple[Float64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Numbers, correctly rounded, and where there was one that is finite."""
    width = text.end - text.begin
    span = int(np.clip(width.max(initial=1), 1, 20))
    characters = text.right(span)
    mantissa, decimals = np.zeros(len(width), np.int64), np.zeros(len(width), np.int64)
    plain, seen = (width > 0) & (width <= span), np.zeros(len(width), bool)
    for j in range(span):
        inside, character = span - j <= width, characters[:, j]
        dot = inside & (character == ord("."))
        digit = character - np.uint8(ord("0"))
        mantissa = np.where(inside & ~dot, mantissa * 10 + digit, mantissa)
        plain &= ~inside | (digit < 10) | (dot & ~seen)
        decimals += inside & seen
        seen |= dot
    plain &= (width > seen) & (width - seen <= 18) & (mantissa < 2**53)  # so that both sides of the division are exact
    value = mantissa / 10.0 ** np.clip(decimals, 0, 22)
    for i in np.flatnonzero(~plain).tolist():  # signs, exponents, more digits than a float64 has
        try:
            value[i] = float(text[i].replace("_", "?"))  # which Python would take
        except ValueError:
            value[i] = np.nan
    return value, np.isfinite(value)


@dataclass(frozen=True)
class Payload:
    data: UInt8[np.ndarray, "n 8"]  # zeros after the last byte
    length: UInt8[np.ndarray, " n"]
    hex: Bool[np.ndarray, " n"]  # nothing but hex digits
    even: Bool[np.ndarray, " n"]
    short: Bool[np.ndarray, " n"]  # eight bytes at most


def payload(text: Text) -> Payload:
    """Up to 16 hex digits; none is a message without data."""
    width = text.end - text.begin
    inside = np.arange(16)[None, :] < width[:, None]
    nibbles = np.where(inside, NIBBLE[text.left(16)], np.uint8(0))
    data = nibbles[:, ::2] << 4 | nibbles[:, 1::2]
    length = (np.minimum(width, 16) // 2).astype(np.uint8)
    return Payload(data, length, np.max(nibbles, axis=1) < 16, width % 2 == 0, width <= 16)


def labels(text: Text) -> tuple[Int64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """0 normal, 1 attack, and where there was one of the words for them."""
    width = text.end - text.begin
    value, good = np.zeros(len(width), np.int64), np.zeros(len(width), bool)
    span = int(np.clip(width.max(initial=1), 1, WIDEST_WORD))
    characters = LOWER[text.left(span)]
    for word, means in WORDS.items():
        if len(word) <= span:
            same = width == len(word)
            for j, character in enumerate(word):
                same &= characters[:, j] == character
            value, good = np.where(same, means, value), good | same
    return value, good
