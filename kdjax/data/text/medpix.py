"""MedPix 2.0: CT and MR images with captions (Siragusa et al. 2024, arXiv 2407.02994)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdjax.data import cache as store
from kdjax.data import tables
from kdjax.data.images import files
from kdjax.data.text.source import Record, RecordSource
from kdjax.data.text.tokenizers import LONGEST

MODALITIES = ("CT", "MR")
LOCATIONS = ("Abdomen", "Head", "Reproductive and Urinary System", "Thorax", "Spine and Muscles")
SPLITS = {"train": "train", "dev": "val", "test": "test"}
NEEDED = ("image", "U_id")


class Medpix(RecordSource):
    """MedPix 2.0, images of radiology with captions: `splitted_dataset/descriptions_{train,dev,test}.jsonl` and
    `images/NAME.png` below `root`, or the tables in `root` itself; dev is val.

    Labels are `modality` (CT, MR) and `location` (five); what is null there is missing. The images of a patient stay
    together. `images=False` reads the captions alone, and needs no images; for the other options see `RecordSource`.
    """

    def __init__(
        self,
        root: str,
        images: bool = True,
        tokenizers: Mapping[str, Mapping[str, Any]] | None = None,
        length: int = LONGEST,
        missing: str = "error",
        cache: str = store.AUTO,
        bits: int | None = None,
    ):
        top = Path(root).expanduser()
        where = files.folder(top, "splitted_dataset") or top
        pictures = files.folder(top, "images") or files.folder(where.parent, "images")
        records, faults = [], []
        if not where.is_dir():
            faults.append(files.missing(top, "splitted_dataset/descriptions_{train,dev,test}.jsonl"))
        elif images and pictures is None:
            faults.append(f"{top}: expected a folder of images, found none; unpack it, or read captions: images=False")
        for own, split in SPLITS.items() if where.is_dir() else ():
            path = where / f"descriptions_{own}.jsonl"
            table = tables.read(path)
            faults += table.faults
            for line, row in table.rows:
                at = f"{path}, line {line}"
                if absent := [name for name in NEEDED if not isinstance(row.get(name), str)]:
                    faults.append(f"{at}: expected {' and '.join(NEEDED)}, found no {absent[0]}; mend it")
                    continue
                records.append(_record(row, split, at, pictures if images else None))
        labels = {"modality": MODALITIES, "location": LOCATIONS}
        super().__init__(records, labels, tokenizers, length, missing, cache, faults, bits=bits)


def _record(row: dict[str, Any], split: str, at: str, pictures: Path | None) -> Record:
    caption = caption_of(row)
    labels = {"modality": row.get("Type"), "location": row.get("Location Category")}
    return Record(
        name=row["image"],
        image=str(pictures / f"{row['image']}.png") if pictures else None,
        caption=None if caption is None else str(caption),
        labels={name: None if value is None else str(value) for name, value in labels.items()},
        split=split,
        group=row["U_id"],
        at=at,
    )


def caption_of(row: dict[str, Any]) -> Any:
    description = row.get("Description")
    return description.get("Caption") if isinstance(description, dict) else None
