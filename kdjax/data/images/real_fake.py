"""Real images and generated ones of one's own, in folders or named by a table: class 0 is real, 1 is fake."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

from kdjax.data import tables
from kdjax.data.fields import Field
from kdjax.data.images import files
from kdjax.data.images.files import Entry, Images
from kdjax.data.images.folders import SPLIT_FOLDERS, split_tops

CLASSES = ("real", "fake")
FOLDERS = {"0_real": 0, "real": 0, "1_fake": 1, "fake": 1}
LABELS = {"0": 0, "1": 1, **FOLDERS}  # in tables
SPLIT_NAMES = {"": "", **{name: split for split, names in SPLIT_FOLDERS.items() for name in names}}  # in tables
NAMED = 3  # of the images that lie nowhere


class RealFake(Images):
    """Real and generated images in folders, `{train,val}/{0_real,1_fake}` and `test/SET/{0_real,1_fake}`.

    `real` and `fake` mean the same. Folders between `test` and these name the test set: "reddit", "stylegan/ffhq".
    Images lie in them at any depth; without train, val and test they are dealt out by shares.
    """

    fields: ClassVar[dict[str, Field]] = {"image": files.IMAGE, "class": files.CLASS}

    def __init__(self, root: str):
        top = Path(root).expanduser()
        tops = split_tops(top)
        entries, elsewhere = [], []
        for path in files.listing(top):
            split = next((split for split, where in tops.items() if where in path.parents), None)
            inside = () if split is None else path.relative_to(tops[split]).parts[:-1]
            at = next((i for i, name in enumerate(inside) if name.lower() in FOLDERS), None)
            name = path.relative_to(top).as_posix()
            if split is None or at is None:
                elsewhere.append(name)
                continue
            label, test_set = FOLDERS[inside[at].lower()], "/".join(inside[:at]) or "test"
            entries.append(Entry(str(path), (), name, label, split=split, test_set=test_set))
        faults = _one_sided(top, entries)
        if elsewhere:
            faults.append(
                f"{top}: expected images in folders 0_real and 1_fake, or real and fake, of {', '.join(tops) or top}, "
                f"found {len(elsewhere)} elsewhere ({', '.join(elsewhere[:NAMED])}"
                f"{', ...' if elsewhere[NAMED:] else ''}); move or remove them"
            )
        elif not entries:
            faults.append(files.missing(top, "images in folders 0_real and 1_fake, in train, val and test or without"))
        super().__init__(entries, CLASSES, len(CLASSES), faults)


class RealFakeTable(Images):
    """Real and generated images in a table `csv`, with the columns path and label (0 or real, 1 or fake).

    A relative path begins at the folder of the table. A column `split` says train, val or test, without it the images
    are dealt out by shares; a column `set` names the test set of an image.
    """

    fields: ClassVar[dict[str, Field]] = {"image": files.IMAGE, "class": files.CLASS}

    def __init__(self, csv: str):
        table = Path(csv).expanduser()
        rows, faults = _rows(table)
        entries: list[Entry] = []
        lines: dict[str, int] = {}
        for line, row in rows:
            entry, row_faults = _entry(table.parent, row)
            if (first := lines.setdefault(entry.image, line)) != line and entry.name:
                row_faults.append(f"{entry.name} is already on line {first}; keep one of the two")
            faults += [f"{table}, line {line}: {fault}" for fault in row_faults]
            entries += [] if row_faults else [entry]
        super().__init__(entries, CLASSES, len(CLASSES), faults or _one_sided(table, entries))


def _one_sided(where: Path, entries: Iterable[Entry]) -> list[str]:
    """The faults of splits and of test sets in which all images are real, or all are fake."""
    labels: dict[str, list[int]] = defaultdict(list)
    for entry in entries:
        named = entry.split == "test" and entry.test_set != "test"
        place = f"test set {entry.test_set!r}" if named else entry.split
        labels[f"{where}, {place}" if place else f"{where}"].append(entry.label)
    return [
        f"{place}: expected real and fake images, found {len(own)}, all of them {CLASSES[own[0]]}; add some that are "
        f"{CLASSES[1 - own[0]]}, or take these out"
        for place, own in sorted(labels.items())
        if len(set(own)) == 1
    ]


def _rows(path: Path) -> tuple[list[tuple[int, dict[str, str]]], list[str]]:
    """The line and the content of each row, column names in small letters, and the fault of an unusable table."""
    table = tables.read(path)
    columns = [name.lower() for name in table.columns]
    rows = [(line, {name.lower(): value for name, value in row.items()}) for line, row in table.rows]
    if columns and not {"path", "label"} <= set(columns):
        return [], [f"{path}: expected the columns path and label, found {', '.join(columns)}; name them"]
    return rows, table.faults


def _entry(folder: Path, row: Mapping[str, str]) -> tuple[Entry, list[str]]:
    """The image that a row names, and what is wrong with the row."""
    faults = []
    path, label, split = (row.get(name, "") for name in ("path", "label", "split"))
    image = folder / Path(path).expanduser()
    if not path:
        faults.append("expected the path of an image, found none; add it, or remove the line")
    elif not image.is_file():
        faults.append(f"expected an image at {image}, found none; mend the path, or remove the line")
    if label.lower() not in LABELS:
        faults.append(f"expected the label 0 or real, 1 or fake, found {label!r}; mend it")
    if split.lower() not in SPLIT_NAMES:
        faults.append(f"expected the split train, val or test, found {split!r}; mend it")
    label, split = LABELS.get(label.lower(), 0), SPLIT_NAMES.get(split.lower(), "")
    return Entry(str(image), (), path, label, split=split, test_set=row.get("set") or "test"), faults
