"""Tables of one's own: CSV with a line of column names, or JSON with an object on each line."""

import csv
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

JSON = (".jsonl", ".ndjson")


class Table(NamedTuple):
    columns: tuple[str, ...]
    rows: list[tuple[int, dict[str, Any]]]  # the number of its line, and each row by column
    faults: list[str]


def read(path: Path) -> Table:
    """The rows of a table; of CSV every value is a text without spaces around it."""
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        return Table((), [], [f"{path}: expected a table in UTF-8, but it cannot be read ({error}); mend it"])
    table = _objects(path, content) if path.suffix.lower() in JSON else _cells(path, content)
    if table.rows or table.faults:
        return table
    return table._replace(
        faults=[f"{path}: expected a line of column names and one for each example, found none; add some"]
    )


def _cells(path: Path, content: str) -> Table:
    try:
        reader = csv.reader(io.StringIO(content, newline=""))
        columns = tuple(name.strip() for name in next(reader, []))
        rows = [(reader.line_num, dict(zip(columns, map(str.strip, row), strict=False))) for row in reader if row]
    except csv.Error as error:
        return Table((), [], [f"{path}: expected a table, but it cannot be read ({error}); mend it"])
    return Table(columns, rows, [])


def _objects(path: Path, content: str) -> Table:
    rows, faults, columns = [], [], {}
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            faults.append(f"{path}, line {number}: expected JSON, found none ({error}); mend or remove the line")
            continue
        if not isinstance(row, dict):
            faults.append(f"{path}, line {number}: expected an object {{...}}, found {line.strip()[:40]!r}; mend it")
            continue
        rows.append((number, row))
        columns |= dict.fromkeys(row)
    return Table(tuple(columns), rows, faults)
