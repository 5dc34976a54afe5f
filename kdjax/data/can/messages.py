"""Messages of a CAN bus in arrays, built from columns whose rows are checked one by one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float64, Int8, Int64, Shaped, UInt8

from kdjax.config import ConfigError
from kdjax.data.can import fields as can_fields
from kdjax.data.can.fields import Digits, Text

TOLD = 5  # bad lines that are told one by one
STANDARD = 0x7FF  # the largest identifier of 11 bits
EXTENDED = 0x1FFFFFFF  # and of 29
Check = tuple[Bool[np.ndarray, " n"], Callable[[int], str]]  # where a row is good, and what is wrong where it is not
Column = Text | Shaped[np.ndarray, " n"]


@dataclass(frozen=True)
class Messages:
    """The messages of a log, in its order."""

    time: Float64[np.ndarray, " n"]  # seconds
    id: Int64[np.ndarray, " n"]
    data: UInt8[np.ndarray, "n 8"]  # zeros after the last byte
    length: UInt8[np.ndarray, " n"]  # bytes that there were
    label: Int8[np.ndarray, " n"]  # 0 normal, 1 attack; -1 where the log does not say
    line: Int64[np.ndarray, " n"]  # counted from 1, in CSV with the header, in parquet without

    def __len__(self) -> int:
        return len(self.time)

    def __getitem__(self, which: "slice | Shaped[np.ndarray, ' k']") -> "Messages":
        return Messages(*(getattr(self, f.name)[which] for f in fields(self)))

    @staticmethod
    def joined(parts: Sequence["Messages"]) -> "Messages":
        return Messages(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Messages)))


@dataclass(frozen=True)
class Faults:
    """Lines that were skipped: how many, and the first few with file, line number and reason."""

    count: int = 0
    first: tuple[str, ...] = ()

    def __add__(self, other: "Faults") -> "Faults":
        return Faults(self.count + other.count, (self.first + other.first)[:TOLD])

    def __str__(self) -> str:
        more = f"\n  and {self.count - len(self.first)} more" if self.count > len(self.first) else ""
        return "\n  ".join(self.first) + more


@dataclass
class Signs:
    """What tells hex from decimal numbers, over all rows so far."""

    rows: int = 0
    hex: int = 0  # rows with a digit above 9 or the prefix 0x
    padded: int = 0  # rows with a zero in front
    widest: int = 0  # digits
    largest: int = 0  # read as hex

    def see(self, digits: Digits) -> None:
        self.rows += int(digits.good.sum())
        self.hex += int(digits.letters.sum())
        self.padded += int(digits.padded.sum())
        self.widest = max(self.widest, int(digits.width[digits.good].max(initial=0)))
        self.largest = max(self.largest, int(digits.packed[digits.good].max(initial=0)))

    def of_ids(self) -> str:
        """Loggers pad hex ids; and where all are standard ones as decimal numbers but not as hex, they are decimal.

        A letter in one row of a thousand may be a slip of the line. "" is where nothing tells.
        """
        if self.hex + self.padded:
            return "hex" if self.hex + self.padded > self.rows / 100 else ""
        if can_fields.decimal(np.array([self.largest]))[0] <= STANDARD < self.largest:
            return "decimal"
        return "hex" if self.largest < 10 else ""  # below ten both say the same

    def of_bytes(self) -> str:
        if self.hex:
            return "hex" if self.hex > self.rows / 100 else ""
        if self.widest > 2:
            return "decimal"
        return "hex" if self.padded or self.largest < 10 else ""


class Rows:
    """Collects the rows of a log. Only all rows together may show how its numbers are written."""

    def __init__(self, name: str, unit: str = "line", strict: bool = False):
        self.name, self.unit, self.strict = name, unit, strict
        self.id_signs, self.byte_signs = Signs(), Signs()
        self.numeric = False  # ids are numbers, not text
        self.faults = Faults()
        self.parts: list[tuple[np.ndarray, ...]] = []

    def __len__(self) -> int:
        return sum(len(part[0]) for part in self.parts)

    def add(
        self,
        line: Int64[np.ndarray, " n"],
        time: Column,
        id: Column,
        payload: Sequence[Column],
        label: Column | None,
    ) -> None:
        """A block of rows; `payload` is one column of text in hex digits, or eight columns of bytes."""
        checks: list[Check] = []

        def check(good: Bool[np.ndarray, " n"], column: Column, expected: str) -> None:
            checks.append((good, lambda i: f"expected {expected}, found {_shown(column, i)}"))

        if isinstance(time, Text):
            seconds, good = can_fields.times(time)
        else:
            seconds = time.astype(np.float64)
            good = np.isfinite(seconds)
        check(good, time, "a time in seconds")
        packed, good = self._ids(id)
        check(good, id, "an id")
        if len(payload) == 1 and isinstance(payload[0], Text):
            read = can_fields.payload(payload[0])
            data, length = read.data, read.length
            check(read.hex, payload[0], "a payload of hex digits")
            check(read.even, payload[0], "a payload of whole bytes (an even number of hex digits)")
            check(read.short, payload[0], "a payload of at most 8 bytes")
        else:
            data, length = np.zeros((len(line), 8), np.int64), np.zeros(len(line), np.uint8)
            for k, column in enumerate(payload):
                data[:, k], good, there = self._bytes(column)
                check(good, column, f"byte {k + 1} of the payload as a number from 0 to 255")
                check(~there | (length == k), column, f"nothing after the payload's end ({k} bytes or less)")
                length += there.astype(np.uint8)
        classes, good = _labels(label, len(line))
        if label is not None:
            check(good, label, "a label (0 or 1, R or T, normal or attack)")

        good = self._passed(line, checks)
        part = (seconds, packed, data, length, classes.astype(np.int8), line)
        self.parts.append(part if good.all() else tuple(column[good] for column in part))

    def taken(self, id_base: str, byte_base: str) -> Messages:
        """The messages so far, with ids and bytes written in these bases ("hex" or "decimal")."""
        time, packed, data, length, label, line = (np.concatenate(column) for column in zip(*self.parts, strict=True))
        self.parts = []
        id, fine = _read(packed, "hex" if self.numeric else id_base, EXTENDED)
        kind = "at most 29 bits" if self.numeric else f"at most 29 bits as a {id_base} number"
        checks = [(fine, lambda i: f"expected an id of {kind}, found {packed[i]:X}")]
        if data.dtype != np.uint8:
            data, fine = _read(data, byte_base, 255)
            fine = np.logical_and.reduce(fine, axis=1)
            checks.append((fine, lambda i: f"expected bytes from 0 to 255 as {byte_base} numbers"))
            data = data.astype(np.uint8)
        good = self._passed(line, checks)
        messages = Messages(time, id, data, length, label, line)
        return messages if good.all() else messages[good]

    def _passed(self, line: Int64[np.ndarray, " n"], checks: Sequence[Check]) -> Bool[np.ndarray, " n"]:
        """Which rows pass all checks; the others are counted, each for the first that it fails."""
        good = np.logical_and.reduce([mask for mask, _ in checks])
        bad = np.flatnonzero(~good)
        self.skip(line[bad], lambda i: next(reason(int(bad[i])) for mask, reason in checks if not mask[bad[i]]))
        return good

    def skip(self, line: Int64[np.ndarray, " n"], reason: Callable[[int], str]) -> None:
        """Counts bad rows; `reason` says what is wrong with the i-th of them."""
        first = tuple(f"{self.name}, {self.unit} {line[i]}: {reason(i)}" for i in range(min(len(line), TOLD)))
        self.faults += Faults(len(line), first)
        if self.strict and first:
            raise ConfigError(f"{first[0]}; mend it, or leave strict out to skip such rows")

    def _ids(self, column: Column) -> tuple[np.ndarray, np.ndarray]:
        if isinstance(column, Text):
            digits = can_fields.digits(column, widest=10)
            self.id_signs.see(digits)
            return digits.packed, digits.good
        self.numeric = True
        return column.astype(np.int64), column >= 0

    def _bytes(self, column: Column) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Packed digits, where the field is empty or a number, and where it is not empty."""
        if isinstance(column, Text):
            there = column.end > column.begin
            digits = can_fields.digits(column, widest=3)
            self.byte_signs.see(digits)
            return digits.packed, digits.good | ~there, there
        there = column >= 0
        return np.where(there, column, 0).astype(np.int64), column <= 255, there


def _read(packed: Int64[np.ndarray, "..."], base: str, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """Values of packed digits, and which are numbers of that base up to `largest`."""
    if base == "hex":
        return packed, packed <= largest
    letters = packed & (packed << 1 | packed << 2) & 0x8888888888  # a nibble of 10 or more
    value = can_fields.decimal(packed)
    return value, (letters == 0) & (value <= largest)


def _labels(column: Column | None, n: int) -> tuple[np.ndarray, np.ndarray]:
    if column is None:
        return np.full(n, -1), np.ones(n, bool)
    if isinstance(column, Text):
        return can_fields.labels(column)
    return column.astype(np.int64), (column == 0) | (column == 1)


def _shown(column: Column, i: int) -> str:
    text = column[i] if isinstance(column, Text) else str(column[i])
    return repr(text if len(text) <= 40 else text[:37] + "...")
