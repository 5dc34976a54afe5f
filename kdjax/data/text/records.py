"""Images with captions and labels of one's own, told by a table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdjax.config import nearest
from kdjax.data import cache as store
from kdjax.data import tables
from kdjax.data.images.real_fake import SPLIT_NAMES
from kdjax.data.text.source import Record, RecordSource
from kdjax.data.text.tokenizers import LONGEST

COLUMNS = {"image": "image", "text": "text", "split": "split", "group": "group"}  # which may be left out
SPLITS = {**SPLIT_NAMES, "dev": "val"}


class Records(RecordSource):
    """Images with captions and labels of one's own, told by a table, CSV or JSONL.

    Its columns are image (a path, relative to the table), text, split (train, val, test) and group, of which image or
    text has to be there, and one for each label.

    `labels={"modality": ("CT", "MR"), "location": ()}` names the columns of labels and their classes; () takes those
    that are found. `image`, `text`, `split` and `group` name the columns where they are called otherwise. An empty cell
    is a missing label; for the other options see `RecordSource`.
    """

    def __init__(
        self,
        table: str,
        labels: Mapping[str, Sequence[str]],
        image: str = COLUMNS["image"],
        text: str = COLUMNS["text"],
        split: str = COLUMNS["split"],
        group: str = COLUMNS["group"],
        tokenizers: Mapping[str, Mapping[str, Any]] | None = None,
        length: int = LONGEST,
        missing: str = "error",
        cache: str = store.AUTO,
        bits: int | None = None,
    ):
        path = Path(table).expanduser()
        named = {"image": image, "text": text, "split": split, "group": group}
        read = tables.read(path)
        faults = [*read.faults, *_column_faults(path, read.columns, named, labels)]
        records = []
        for line, row in read.rows:
            at, told = f"{path}, line {line}", {k: _text(row.get(column)) for k, column in named.items()}
            if (own := told["split"].lower()) not in SPLITS:
                faults.append(f"{at}: expected the split train, val or test, found {told['split']!r}; mend it")
            records.append(
                Record(
                    name=told["image"] or f"{path.stem} {line}",
                    image=str(path.parent / Path(told["image"]).expanduser()) if told["image"] else None,
                    caption=told["text"] or None,
                    labels={name: _text(row.get(name)) or None for name in labels},
                    split=SPLITS.get(own, ""),
                    group=told["group"],
                    at=at,
                )
            )
        known = {name: tuple(map(str, classes)) for name, classes in labels.items()}
        super().__init__(records, known, tokenizers, length, missing, cache, faults, bits=bits)


def _column_faults(
    path: Path, columns: Sequence[str], named: Mapping[str, str], labels: Mapping[str, Sequence[str]]
) -> list[str]:
    if not columns:
        return []
    faults = [
        f"{path}: {option}={column!r} is no column of it; {nearest(column, columns)}"
        for option, column in named.items()
        if column not in columns and column != COLUMNS[option]
    ]
    faults += [
        f"{path}: the label {label!r} is no column of it; {nearest(label, columns)}"
        for label in labels
        if label not in columns
    ]
    if not {named["image"], named["text"]} & set(columns):
        faults.append(f"{path}: expected a column of images or one of texts, found {', '.join(columns)}; name one")
    return faults


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()
