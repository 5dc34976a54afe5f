"""Records: images with captions and several labels, each of which may be absent."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import UInt8

from kdjax.data import cache as store
from kdjax.data.fields import FLAG, IMAGE_THERE, TEXT_THERE, Field
from kdjax.data.images import files
from kdjax.data.images.files import CLASS, IMAGE
from kdjax.data.source import Facts, own_splits
from kdjax.data.text.tokenizers import LONGEST
from kdjax.data.text.tokens import IDS, MASK, TRAINED, Captions

MISSING = ("error", "text")
NO_IMAGE = np.zeros((8, 8, 3), np.uint8)  # of any size: it becomes that of the others
TAKEN = ("image", "text", "name", "group", "test_set", IDS, MASK)  # which names of labels may not begin with
NAMED = 3  # records that a note names


@dataclass(frozen=True, slots=True)
class Record:
    """An image with its caption and labels, any of which may be absent."""

    name: str
    image: UInt8[np.ndarray, "h w 3"] | str | None = None  # or the file that has it
    caption: str | None = None
    labels: Mapping[str, str | None] = field(default_factory=dict)  # the name of its class, by the name of the label
    split: str = ""  # train, val or test; "" where the data set brings no splits
    group: str = ""  # records of one group (a patient) stay together
    at: str = ""  # what a person calls it where something is wrong: "FILE, line 3"

    @property
    def place(self) -> str:
        return self.at or f"record {self.name!r}"


class RecordSource:
    """A source of records. There is an image in its batches where one of them has an image, and there are tokens where
    one has a caption.

    `labels` names the classes of each label in their order; () takes those that are found, in the order of their names.
    `tokenizers`, `length` and `cache` are those of `Captions`; None trains one on the captions, {} leaves them
    out. What a record lacks though others have it is an error, or with `missing="text"` counted in a note: a missing
    image is then black and `image_there` False, a missing caption empty and `text_there` False. `bits`: see
    `files.read_image`.
    """

    kind: ClassVar[str] = "records"

    def __init__(
        self,
        records: Iterable[Record],
        labels: Mapping[str, Sequence[str]],
        tokenizers: Mapping[str, Mapping[str, Any]] | None = None,
        length: int = LONGEST,
        missing: str = "error",
        cache: str = store.AUTO,
        faults: Sequence[str] = (),
        notes: Sequence[str] = (),
        bits: int | None = None,
    ):
        self.records, self.bits = [_cleared(record) for record in records], bits
        self.faults, self.notes = list(faults), list(notes)
        self.label_classes = {name: tuple(known) or self._found(name) for name, known in labels.items()}
        self.classes = self.label_classes.get("class", ())
        self.num_classes = len(self.classes) or 2
        with_image = any(record.image is not None for record in self.records)
        with_text = tokenizers != {} and any(record.caption is not None for record in self.records)
        self._check(missing, with_image, with_text)
        self.records = [replace(record, image=_there(record.image)) for record in self.records]
        options = ({"": {"train": TRAINED}} if with_text else {}) if tokenizers is None else tokenizers
        self.captions = Captions(tuple(record.caption for record in self.records), options, length, cache)
        self.faults += self.captions.faults()
        if options and self.records and not with_text:
            self.faults.append("tokenizers: expected captions for them, found none; leave tokenizers out")
        self.fields: dict[str, Field] = {
            **({"image": IMAGE, IMAGE_THERE: FLAG} if with_image else {}),
            **({TEXT_THERE: FLAG} if with_text or not with_image else {}),
            **dict.fromkeys(self.label_classes, CLASS),
        }
        stored = [(record.image,) if isinstance(record.image, str) else () for record in self.records]
        self.files: list[tuple[str, ...]] = stored if any(stored) else []
        self.allowed, split_notes = own_splits([record.split for record in self.records])
        self.notes += split_notes

    @property
    def digest(self) -> str:
        """Of all that is known without opening an image."""
        whole = hashlib.blake2b(digest_size=16)
        for record in self.records:
            image = record.image if isinstance(record.image, str) else record.image is None
            told = (record.name, image, record.caption, sorted(record.labels.items()), record.split, record.group)
            whole.update(repr(told).encode("utf-8", "surrogatepass"))
        return whole.hexdigest()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> dict[str, Any]:
        record, example = self.records[i], {}
        if "image" in self.fields:
            example = {"image": self.image(i), IMAGE_THERE: record.image is not None}
        if TEXT_THERE in self.fields:
            example[TEXT_THERE] = record.caption is not None
        return {**example, **self._labels(record), "name": record.name}

    def image(self, i: int) -> UInt8[np.ndarray, "h w 3"]:
        """Black where the record has none."""
        image = self.records[i].image
        if image is None:
            return NO_IMAGE
        return files.read_image(image, bits=self.bits) if isinstance(image, str) else image

    def inspect(self, i: int, decode: bool = True) -> Facts:
        """Examples of several labels are of one class where all of these are the same."""
        record, labels = self.records[i], self._labels(self.records[i])
        example, content = self[i] if decode else None, ""
        if isinstance(record.image, str) and not decode:
            files.upright_size(record.image)
            content = _digest(Path(record.image).read_bytes())
        elif record.image is not None and example is not None:
            content = _digest(repr(example["image"].shape).encode() + example["image"].tobytes())
        combined = 0
        for name, classes in self.label_classes.items():
            own = labels[name]
            combined = combined * (len(classes) + 1) + (0 if own is None else own + 1)
        lacking = tuple(name for name, own in labels.items() if own is None)
        return Facts(record.name, record.group, content, combined - 1, example, lacking)

    def _labels(self, record: Record) -> dict[str, int | None]:
        told = {name: record.labels.get(name) for name in self.label_classes}
        known = {name: own if own in self.label_classes[name] else None for name, own in told.items()}
        return {name: None if own is None else self.label_classes[name].index(own) for name, own in known.items()}

    def _found(self, label: str) -> tuple[str, ...]:
        """The classes that records have, in the order of their names."""
        found = tuple(sorted({own for record in self.records if (own := record.labels.get(label)) is not None}))
        if len(found) < 2 and self.records:
            told = ", ".join(found) or "none"
            self.faults.append(f"labels: expected two classes of {label!r} at least, found {told}; mend the records")
        return found

    def _check(self, missing: str, with_image: bool, with_text: bool) -> None:
        """Adds the faults of all records, and notes on what they lack."""
        if missing not in MISSING:
            self.faults.append(f"missing: expected {' or '.join(MISSING)}, found {missing!r}")
        if not self.records and not self.faults:
            self.faults.append("expected records, found none")
        if not self.label_classes:
            self.faults.append('labels: expected at least one, labels={"NAME": ("CLASS", ...)}, found none')
        if taken := [name for name in self.label_classes if name.startswith(TAKEN)]:
            self.faults.append(f"labels: {', '.join(taken)} would be called like other fields of a batch; rename them")
        imageless, textless, unknown = [], [], Counter()
        for record in self.records:
            image = not with_image or _there(record.image) is not None
            text = not with_text or record.caption is not None
            if not (with_image and image) and not (with_text and text):
                self.faults.append(f"{record.place}: expected an image or a caption, found neither; remove it")
            elif missing != "text":
                self.faults += [] if image else [_imageless(record)]
                self.faults += [] if text else [_textless(record)]
            imageless += [] if image else [record.name]
            textless += [] if text else [record.name]
            for label, classes in self.label_classes.items():
                own = record.labels.get(label)
                unknown[label] += own is None
                if own is not None and own not in classes:
                    self.faults.append(
                        f"{record.place}: expected {label!r} as {', '.join(classes)}, found {own!r}; mend it, or leave "
                        "it empty where nobody knows"
                    )
        total = len(self.records)
        if missing == "text":
            self.notes += _absent(imageless, total, "image: their captions alone are read")
            self.notes += _absent(textless, total, "caption: their images alone are read")
        self.notes += [f"{n:,} of {total:,} records have no {label}" for label, n in unknown.items() if n]


def _cleared(record: Record) -> Record:
    """A caption of nothing but spaces is none."""
    return record if record.caption is None or record.caption.strip() else replace(record, caption=None)


def _there(image: Any) -> Any:
    return None if isinstance(image, str) and not Path(image).is_file() else image


def _imageless(record: Record) -> str:
    remedy = 'or set missing="text", which reads its caption alone'
    if record.image is None:
        return f"{record.place}: expected an image, found none; name one, {remedy}"
    return f"{record.place}: expected an image at {record.image}, found no file; check the folder, {remedy}"


def _textless(record: Record) -> str:
    return f'{record.place}: expected a caption, found an empty one; write one, or set missing="text"'


def _absent(names: list[str], total: int, what: str) -> list[str]:
    more = ", ..." if names[NAMED:] else ""
    return [f"{len(names):,} of {total:,} records have no {what} ({', '.join(names[:NAMED])}{more})"] if names else []


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
