"""Logs of a CAN bus, CSV, parquet or as `candump -L` writes them, as arrays of messages.

It counts and reports rows that it cannot read.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.config import ConfigError, nearest
from kdjax.data.can import parquet
from kdjax.data.can.fields import MARGIN, NIBBLE, Text
from kdjax.data.can.messages import Faults, Messages, Rows, Signs

BASES = ("auto", "hex", "decimal")
SUFFIXES = (".csv", ".parquet", ".log")  # the last where candump wrote it
BLOCK = 1 << 20  # bytes of a CSV file that are read at a time
COLUMNS = {
    "time": ("timestamp", "time", "time_stamp", "ts"),
    "id": ("arbitration_id", "can_id", "canid", "id"),
    "payload": ("data_field", "data", "payload"),
    "label": ("attack", "label", "flag"),
}
BYTES = tuple(
    tuple(name.format(first + k) for k in range(8))
    for first in (0, 1)
    for name in ("data{}", "d{}", "byte_{}", "byte{}", "data_{}", "data[{}]")
)


CANDUMP = {"time": 0, "id": 2, "payload": 3, "label": None}  # "(1436509052.249713) vcan0 044#2A366C2BBA"
HASH_TO_BLANK = bytes.maketrans(b"#", b" ")


@dataclass(frozen=True)
class Log:
    path: str
    messages: Messages
    faults: Faults
    ids: str  # how its ids are written: "hex", "decimal", or "number" where parquet has them as such
    notes: tuple[str, ...] = ()


def is_log(path: Path) -> bool:
    """Whether a file is one by its name, and a .log by its first character, as there are many others."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES or not path.is_file():
        return False
    with open(path, "rb") as file:
        return suffix != ".log" or file.read(1) == b"("


def read(path: str | Path, *, ids: str = "auto", payload: str = "auto", strict: bool = False) -> Log:
    """One log; see `read_all`."""
    return read_all([path], ids=ids, payload=payload, strict=strict)[0]


def read_all(
    paths: Sequence[str | Path], *, ids: str = "auto", payload: str = "auto", strict: bool = False, workers: int = 0
) -> list[Log]:
    """Logs from one source, so that what one of them tells about the writing of its ids holds for all.

    `ids` is how ids are written, `payload` how eight columns of bytes are (a payload in one column is hex): "hex",
    "decimal", or "auto", which goes by the digits and refuses to guess where nothing tells. `strict` refuses a log at
    its first bad row. `workers` logs are read at the same time, 0 is as many as there are cores.
    """
    _known(ids=ids, payload=payload)
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        scanned = list(pool.map(lambda path: _scan(str(path), strict), paths))
    id_base = _base("ids", ids, {rows.name: rows.id_signs for rows in scanned}, Signs.of_ids)
    byte_base = _base("payload", payload, {rows.name: rows.byte_signs for rows in scanned}, Signs.of_bytes)
    return [_log(rows, id_base, byte_base, ids == "auto") for rows in scanned]


def stream(
    lines: Iterable[str | bytes],
    *,
    name: str = "standard input",
    ids: str = "auto",
    payload: str = "auto",
    strict: bool = False,
    chunk: int = 100,
    told: Callable[[Faults], None] = lambda faults: None,
) -> Iterator[Messages]:
    """The messages of a log that may still be growing, `chunk` lines at a time; `told` gets the bad ones.

    The header of a CSV comes first. The first chunk must show how ids are written, unless `ids` says it.
    An item of `lines` may hold several whole lines.
    """
    rows = Rows(name, strict=strict)

    def fed() -> Iterator[None]:
        csv, source = _Csv(rows), iter(lines)
        while held := list(islice(source, chunk)):
            text = [line.encode() if isinstance(line, str) else line for line in held]
            csv.feed(b"".join(line if line.endswith(b"\n") else line + b"\n" for line in text))
            yield
        csv.end()

    return _in_turn(rows, fed(), ids, payload, told)


def stream_parquet(
    path: str | Path,
    *,
    ids: str = "auto",
    payload: str = "auto",
    strict: bool = False,
    chunk: int = 1 << 14,
    told: Callable[[Faults], None] = lambda faults: None,
) -> Iterator[Messages]:
    """As `stream`, of a parquet file, `chunk` rows at a time."""
    rows = Rows(str(path), "row", strict)
    return _in_turn(rows, parquet.feed(rows, _places, chunk), ids, payload, told)


def _in_turn(
    rows: Rows, fed: Iterator[None], ids: str, payload: str, told: Callable[[Faults], None]
) -> Iterator[Messages]:
    """What `rows` hold after each step of `fed`."""
    _known(ids=ids, payload=payload)
    bases = None
    for _ in fed:
        if len(rows):
            bases = bases or (
                _base("--ids", ids, {rows.name: rows.id_signs}, Signs.of_ids),
                _base("--payload", payload, {rows.name: rows.byte_signs}, Signs.of_bytes),
            )
            yield rows.taken(*bases)
        if rows.faults.count:
            told(rows.faults)
            rows.faults = Faults()


def _known(**bases: str) -> None:
    faults = [f"{key}: no {base!r}; {nearest(base, BASES)}" for key, base in bases.items() if base not in BASES]
    if faults:
        raise ConfigError("\n  ".join(faults))


def _base(option: str, given: str, signs: dict[str, Signs], verdict: Callable[[Signs], str]) -> str:
    """How numbers are written: what the option, of a reader or of the command, says, or what the logs agree on."""
    if given != "auto":
        return given
    verdicts = {name: verdict(s) for name, s in signs.items() if s.rows}
    for base in ("hex", "decimal"):
        if set(verdicts.values()) <= {base, ""} and (base in verdicts.values() or not verdicts):
            return base
    first = {base: name for name, base in reversed(verdicts.items())}
    what = "ids" if option.endswith("ids") else "bytes"
    remedy = f"{option}=hex or {option}=decimal" if option.startswith("-") else f"{option}='hex' or 'decimal'"
    if len(first) == 1:
        raise ConfigError(f"{first['']}: its {what} may be hex or decimal numbers, nothing tells; say {remedy}")
    raise ConfigError(
        f"the {what} of {first['hex']} look hex, those of {first['decimal']} decimal; convert one of them, or say "
        f"{remedy} if they are alike"
    )


def _scan(path: str, strict: bool) -> Rows:
    if not os.path.isfile(path):
        raise ConfigError(f"{path}: expected a log ({' or '.join(SUFFIXES)}), found no such file; see to the path")
    if path.lower().endswith(".parquet"):
        rows = Rows(path, "row", strict)
        for _ in parquet.feed(rows, _places):
            pass
        return rows
    rows = Rows(path, strict=strict)
    csv = _Csv(rows)
    with open(path, "rb") as file:
        rest = b""
        while block := file.read(BLOCK):
            complete, newline, tail = block.rpartition(b"\n")
            if newline:
                csv.feed(rest + complete + newline)
                rest = tail
            else:
                rest = started(rest + block, path)
        csv.feed(rest + b"\n" if rest else b"")
    csv.end()
    return rows


def started(line: bytes, name: str) -> bytes:
    """The beginning of a line, refused where that is longer than any line of a log."""
    if len(line) > BLOCK:
        raise ConfigError(f"{name}: expected lines, found {len(line):,} bytes without an end of line; is it a log?")
    return line


def _log(rows: Rows, id_base: str, byte_base: str, guessed: bool) -> Log:
    messages, notes = rows.taken(id_base, byte_base), []
    if not len(messages):
        raise ConfigError(f"{rows.name}: expected messages, found none that can be read:\n  {rows.faults}")
    base = "number" if rows.numeric else id_base
    if guessed and not rows.numeric:
        notes.append(f"ids were read as {base} numbers, as they look; if that is wrong, say ids='hex' or 'decimal'")
    back = np.flatnonzero(np.diff(messages.time) < 0)
    if len(back):
        where = f"{rows.unit} {messages.line[back[0] + 1]}"
        notes.append(
            f"{rows.name}: time runs backwards {len(back)} times, first at {where}; the order of the file stays"
        )
    if rows.faults.count:
        notes.append(f"{rows.name}: {rows.faults.count} {rows.unit}s skipped:\n  {rows.faults}")
    return Log(rows.name, messages, rows.faults, base, tuple(notes))


# -- columns ---------------------------------------------------------------------------------------------------------


def _places(name: str, header: Sequence[str]) -> dict[str, Any]:
    """Where each column is: {"time": 0, "id": 1, "payload": 2 or eight places, "label": 3 or None}."""
    names = [h.strip().strip("\"'").strip().lower().replace(" ", "_").replace("-", "_") for h in header]
    at: dict[str, Any] = {
        what: next((names.index(known) for known in usual if known in names), None) for what, usual in COLUMNS.items()
    }
    if at["payload"] is None:
        at["payload"] = next(([names.index(k) for k in usual] for usual in BYTES if set(usual) <= set(names)), None)
    faults = [
        f"no {what} column: expected one of {', '.join(COLUMNS[what])}"
        + (f", or eight such as {BYTES[0][0]} to {BYTES[0][-1]}" if what == "payload" else "")
        for what in ("time", "id", "payload")
        if at[what] is None
    ]
    if faults:
        columns = ", ".join(names)[:200]
        raise ConfigError(
            "\n  ".join([f"{name}: expected a log of CAN messages, found the columns {columns}", *faults])
        )
    return at


class _Csv:
    """Feeds whole lines of a CSV log to `rows`; the first of them is the header.

    Without header it may have the form of HCRL's car-hacking set: time, id, number of bytes, the bytes, flag; or that
    of `candump -L`, whose brackets and # are taken for blanks between columns.
    """

    def __init__(self, rows: Rows):
        self.rows, self.line, self.messages = rows, 0, 0
        self.at: dict[str, Any] | None = None  # the columns; empty for HCRL's form
        self.fields, self.comma = 0, ","

    def feed(self, block: bytes) -> None:
        while self.at is None and block:
            header, _, rest = block.partition(b"\n")
            text = header.decode("utf-8-sig", "replace").strip()
            if text and self._begin(text):
                break  # the first line is a message already
            self.line, block = self.line + 1, rest
        if block:
            self._add(block)

    def end(self) -> None:
        if not self.messages:
            actual = "an empty file" if self.at is None else "a header alone"
            raise ConfigError(f"{self.rows.name}: expected a header and messages below it, found {actual}")

    def _begin(self, header: str) -> bool:
        """Finds the columns; true if the line is no header, but a message in HCRL's form."""
        if header.startswith("("):
            self.at, self.fields, self.comma = CANDUMP, len(CANDUMP), " "
            return self._in_hex()
        self.comma = next((c for c in ",;\t" if c in header), ",")
        fields = header.split(self.comma)
        try:
            float(fields[0])
        except ValueError:
            self.at, self.fields = _places(self.rows.name, fields), len(fields)
            return False
        if len(fields) < 4 or fields[2].strip() not in tuple("012345678"):
            raise ConfigError(
                f"{self.rows.name}, line {self.line + 1}: expected a header with names of columns, or HCRL's form "
                f"without one (time, id, number of bytes, the bytes, flag), found {header[:80]!r}"
            )
        self.at = {}
        return self._in_hex()

    def _in_hex(self) -> bool:
        """Of a form without header it is known how its numbers are written."""
        for signs in (self.rows.id_signs, self.rows.byte_signs):
            signs.rows = signs.hex = 1
        return True

    def _add(self, block: bytes) -> None:
        pad = bytes(MARGIN)
        plain = block.replace(b"\r\n", b"\n")
        if self.at is CANDUMP:
            plain = plain.translate(HASH_TO_BLANK, b"()")
        blanks = any(c in plain for c in b" \t\r\"'")
        buffer = np.frombuffer(pad + plain + pad, np.uint8)
        marks = np.flatnonzero((buffer == ord(self.comma)) | (buffer == ord("\n")))
        newline = np.flatnonzero(buffer[marks] == ord("\n"))
        count = np.diff(newline, prepend=-1)  # fields of each line
        first = newline - count + 1
        bounds = np.concatenate([[MARGIN - 1], marks])  # field k of the block lies between bounds k and k + 1
        line = self.line + 1 + np.arange(len(newline))
        self.line += len(newline)

        def column(place: Any) -> Text:
            at = np.minimum(first + place, newline)
            text = Text(buffer, bounds[at] + 1, bounds[at + 1])
            return text.trimmed() if blanks else text

        lone = column(0)
        full = (count > 1) | (lone.end > lone.begin)
        self.messages += int(full.sum())
        if self.at:
            right, places = full & (count == self.fields), self.at
            wanted = np.full(len(line), self.fields)
        else:
            size = column(2)
            digit = NIBBLE[size.left(1)[:, 0]]
            sized = (size.end - size.begin == 1) & (digit <= 8)
            there = np.where(sized, digit, 8).astype(np.int64)
            wanted = np.where(count == 12, 12, there + 4)  # some pad the bytes to eight
            right = full & sized & (count == wanted)
            places = None
        misfits = np.flatnonzero(full & ~right)
        self.rows.skip(line[misfits], lambda i: f"expected {wanted[misfits[i]]} fields, found {count[misfits[i]]}")
        first, newline, line = first[right], newline[right], line[right]
        if places:
            at = places["payload"]
            payload = [column(k) for k in ([at] if isinstance(at, int) else at)]
            label = None if places["label"] is None else column(places["label"])
        else:
            there = there[right]
            payload = [column(3 + k) for k in range(8)]
            payload = [Text(buffer, t.begin, np.where(k < there, t.end, t.begin)) for k, t in enumerate(payload)]
            label = column(newline - first)
        self.rows.add(
            line, column(places["time"] if places else 0), column(places["id"] if places else 1), payload, label
        )
