"""New images with captions, either of which a record may lack: from --images, --captions or both."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from kdjax.config import ConfigError
from kdjax.data import tables
from kdjax.data.fields import IMAGE_THERE, TEXT_THERE
from kdjax.data.images import files
from kdjax.data.images.resize import resize
from kdjax.data.text.medpix import caption_of
from kdjax.data.text.source import NO_IMAGE, Record
from kdjax.data.text.tokens import IDS
from kdjax.deploy import pictures
from kdjax.deploy.predict import Kept
from kdjax.deploy.tokens import reader_of

TEXTS = ("text", "caption")  # columns of captions; MedPix has them inside its column Description
DESCRIPTION = "Description"


class Given(NamedTuple):
    """Records of which each has an image, a caption or both."""

    records: list[Record]
    top: Path | None  # which the names of images begin below
    notes: list[str]  # what there is to tell of them
    faults: list[str]


def given(loaded: Kept, model: Any, images: str, captions: str) -> Given:
    """The records that are to be predicted; refuses what the model does not read."""
    sees, reads = "image" in model.inputs, IDS in model.inputs
    if not sees and (images or not captions):
        more = " and no --images" if images else ""
        raise ConfigError(f"{loaded.path}: the model reads text alone; it needs --captions=FILE{more}")
    if not reads and (captions or not images):
        more = " and no --captions" if captions else ""
        raise ConfigError(f"{loaded.path}: the model reads images alone; it needs --images=FOLDER{more}")
    if not images and not captions:
        raise ConfigError(f"{loaded.path}: the model reads images with captions; give --images, --captions or both")
    place = Path(images).expanduser() if images else None
    paths = pictures.listed(place) if place else []
    top = place.parent if place and place.is_file() else place
    rows, faults = captioned(Path(captions).expanduser()) if captions else ([], [])
    found = paired(rows, paths, top, faults)
    unreadable = pictures.faults_of(paths, pictures.bits_of(loaded.stage))
    strange = [files.unwritable(str(path)) for path in paths if files.as_utf8(str(path)) != str(path)]
    return found._replace(faults=[*found.faults, *filter(None, unreadable.values()), *strange])


def captioned(path: Path) -> tuple[list[Record], list[str]]:
    """A record of each line of a table, whose image is what the line calls it, and what is wrong with them."""
    if not path.is_file():
        seen = "a folder" if path.is_dir() else "no such file"
        raise ConfigError(f"--captions={path}: expected a table, .jsonl or .csv, found {seen}")
    table = tables.read(path)
    records, faults = [], list(table.faults)
    if table.columns and not {*TEXTS, DESCRIPTION} & {*table.columns}:
        listed = ", ".join(table.columns)
        faults.append(f"{path}: expected a column {' or '.join(TEXTS)}, found {listed}; rename that of the captions")
        return [], faults
    for line, row in table.rows:
        at = f"{path}, line {line}"
        told = [row[name] for name in TEXTS if name in row] or [caption_of(row)]
        image, caption = row.get("image"), told[0]
        if strange := [value for value in (image, caption) if not _is_text(value)]:
            faults.append(f"{at}: expected an image and a caption as texts, found {strange[0]!r}; mend it")
            continue
        caption = caption if caption and caption.strip() else None
        if not image and caption is None:
            faults.append(f"{at}: expected an image or a caption, found neither; remove the line")
            continue
        records.append(Record(image or f"line {line}", image or None, caption, at=at))
    return records, faults


def _is_text(value: Any) -> bool:
    """One that tokenizers and tables can hold, or none."""
    return value is None or (isinstance(value, str) and files.as_utf8(value) == value)


def paired(rows: list[Record], paths: list[Path], top: Path | None, faults: list[str]) -> Given:
    """Each caption with the image that it names by its place below `top`, with its suffix or without."""
    by_name: dict[str, list[Path]] = {}
    for path in paths:
        place = path.relative_to(top) if top else path
        for name in dict.fromkeys((place.as_posix(), place.with_suffix("").as_posix())):
            by_name.setdefault(name, []).append(path)
    records, taken = [], set()
    for row in rows:
        fitting = by_name.get(PurePosixPath(row.name).as_posix(), []) if row.image else []
        if row.image and top and len(fitting) != 1:
            among = ", ".join(path.name for path in fitting)
            remedy = f"found {among}; name it with its suffix" if among else "found none; put it there or mend the line"
            faults.append(f"{row.at}: expected one image {row.name!r} in {top}, {remedy}")
            continue
        path = fitting[0] if fitting else None
        taken.add(path)
        if path is None and row.caption is None:
            faults.append(f"{row.at}: expected a caption, as no --images are given, found none; remove the line")
            continue
        name = path.relative_to(top).as_posix() if path and top else row.name
        records.append(Record(name, str(path) if path else None, row.caption, at=row.at))
    for path in paths:
        if path not in taken:
            records.append(Record(path.relative_to(top).as_posix() if top else path.name, str(path)))
    textless, imageless = (sum(getattr(one, what) is None for one in records) for what in ("caption", "image"))
    notes = [f"{textless:,} of {len(paths):,} images have no caption and are read alone"] if textless else []
    notes += [f"{imageless:,} of {len(rows):,} captions have no image and are read alone"] if imageless and top else []
    return Given(records, top, notes, faults)


class Batches(NamedTuple):
    """The fields of a batch that a model reads of records."""

    records: list[Record]
    side: int
    bits: int | None
    tokens: Mapping[str, np.ndarray]  # a row for each record
    names: Mapping[str, str]  # of inputs in a batch, where they are called otherwise
    inputs: tuple[str, ...]

    def read(self, i: int) -> tuple[Record, dict[str, Any]]:
        record, side = self.records[i], self.side
        values: dict[str, Any] = {name: rows[i] for name, rows in self.tokens.items()}
        values |= {IMAGE_THERE: np.bool_(record.image is not None), TEXT_THERE: np.bool_(record.caption is not None)}
        if "image" in self.inputs:
            image = files.read_image(record.image, bits=self.bits) if isinstance(record.image, str) else NO_IMAGE
            values["image"] = resize(image, (side, side))
        return record, {self.names.get(name, name): values[name] for name in self.inputs}


def batches(loaded: Kept, model: Any, records: list[Record]) -> tuple[Batches, list[str]]:
    """And a note where captions were cut."""
    tokens, notes, stage = {}, [], loaded.stage
    if IDS in model.inputs:
        reader = reader_of(loaded, model)
        tokens, cut = reader.read([record.caption or "" for record in records])
        longer = f"{cut:,} of {len(records):,} captions are longer than {reader.tokenizer.length} tokens and are cut"
        notes = [longer] if cut else []
    side, bits = stage.data.image_size, pictures.bits_of(stage)
    return Batches(records, side, bits, tokens, stage.inputs, tuple(model.inputs)), notes
