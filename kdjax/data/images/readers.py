"""Readers of published breast-ultrasound sets, and several sets as one; what files have in common is in `files`."""

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from kdjax.config import ConfigError
from kdjax.data.fields import LABELS
from kdjax.data.images import files
from kdjax.data.images.files import Entry, Images
from kdjax.data.images.folders import IMAGE_FOLDERS, MASK_FOLDERS, split_folders, two_folders
from kdjax.data.images.masks import BINARY, ids
from kdjax.data.source import Facts, complete, open_source

LESIONS = ("benign", "malignant", "normal")


class Lesions(Images):
    """Masks that show where a lesion is; with three classes its kind (benign 1, malignant 2) comes from the image."""

    def decode(self, entry: Entry, planes: list[np.ndarray]) -> tuple[UInt8[np.ndarray, "h w"], int]:
        masks = [ids(plane, BINARY, path) for plane, path in zip(planes, entry.masks, strict=True)]
        value = 1 if self.num_classes == BINARY else entry.label + 1
        return np.maximum.reduce(masks) * np.uint8(value), entry.label


class Busi(Lesions):
    """BUSI: folders benign, malignant and normal with `X.png`, `X_mask.png` and further masks `X_mask_1.png`, ...

    Al-Dhabyani et al., Dataset of breast ultrasound images, Data in Brief 28, 2020. Several masks of an image are
    joined. Normal images need no mask. The set names no patients and has copies; copies stay on one side of a split.
    """

    def __init__(self, root: str, stretch_masks: bool = False, num_classes: int = 2):
        top = files.folder(root, "dataset_busi_with_gt") or Path(root).expanduser()
        entries, faults = [], _at_most_three(num_classes)
        for label, name in enumerate(LESIONS):
            where = files.folder(top, name)
            paths, deeper = files.flat(where) if where else ([], [])
            faults += deeper
            if where is None or not paths:
                if name != "normal":
                    faults.append(
                        files.missing(where or top, f"images in a folder {name!r} (of benign, malignant, normal)")
                    )
                continue
            masks = [p for p in paths if re.search(r"_mask(_\d+)?$", p.stem)]
            pairs, unpaired = files.pair(set(paths) - set(masks), masks, (where, where), of=r"(.+?)_mask(?:_\d+)?")
            faults += unpaired
            for image, own in pairs:
                if not own and name != "normal":
                    faults.append(files.unmasked(image, f"{image.stem}_mask{image.suffix}"))
                entries.append(Entry(str(image), tuple(map(str, own)), f"{name}/{image.stem}", label))
        super().__init__(entries, LESIONS, num_classes, faults, stretch_masks=stretch_masks)


class BusBra(Lesions):
    """BUS-BRA: `Images/bus_0001-l.png`, `Masks/mask_0001-l.png`; both sides of a patient stay together.

    Gómez-Flores et al., Medical Physics 51, 2024. `bus_data.csv` tells benign from malignant. Lists such as
    `train.txt` or `busbra_train.txt` beside the folders, where there are any, give the splits.
    """

    def __init__(self, root: str, stretch_masks: bool = False, num_classes: int = 2):
        top = files.folder(root, "busbra", "bus-bra") or Path(root).expanduser()
        kinds, faults = _pathology(top / "bus_data.csv")
        faults += _at_most_three(num_classes)
        if num_classes > BINARY and not kinds:
            faults.append(f"{top / 'bus_data.csv'}: three classes need this table to tell benign from malignant")
        splits, list_faults = _lists(top)
        faults += list_faults
        images, masks = files.folder(top, *IMAGE_FOLDERS), files.folder(top, *MASK_FOLDERS)
        entries, unlisted = [], 0
        if images is None or masks is None:
            faults.append(files.missing(top, "the folders Images and Masks"))
        else:
            (paths, deeper), (own_masks, too) = files.flat(images), files.flat(masks)
            pairs, unpaired = files.pair(paths, own_masks, (images, masks), r"bus_(.+)", r"mask_(.+)")
            faults += [*deeper, *too, *unpaired]
            if not pairs:
                faults.append(files.missing(images, "images bus_*.png"))
            for image, own in pairs:
                case = image.stem.removeprefix("bus_")
                if not own:
                    faults.append(files.unmasked(image, f"mask_{case}.png"))
                if splits and case not in splits:
                    unlisted += 1
                    continue
                if kinds and case not in kinds:
                    faults.append(f"{image}: not in bus_data.csv; add its row or remove the image")
                patient = case.rsplit("-", 1)[0]
                label = int(kinds.get(case) == "malignant")
                entries.append(
                    Entry(str(image), tuple(map(str, own)), image.stem, label, patient, splits.get(case, ""))
                )
            cases = {image.stem.removeprefix("bus_") for image, _ in pairs}
            faults += [
                f"{top}: the list of {splits[c]} names {c!r}, which has no image" for c in splits if c not in cases
            ]
        notes = [f"{unlisted} images are in none of the lists of splits and are left out"] if unlisted else []
        super().__init__(
            entries, LESIONS[:2] if kinds else ("lesion",), num_classes, faults, notes, stretch_masks=stretch_masks
        )


class BusUclm(Images):
    """BUS-UCLM: `images/ABCD_000.png` and `masks/` of the same names, in colour: green benign, red malignant.

    Vallez et al., Scientific Data 12, 2025. The letters before the underscore are the patient, who stays on one side.
    The authors' `partitions/{train,test}` are used where they are there.
    """

    def __init__(self, root: str, stretch_masks: bool = False, num_classes: int = 2):
        top = files.folder(root, "partitions") or Path(root).expanduser()
        entries, faults, notes = split_folders(top, patient=r"([^_]+)_.*")
        if not entries and not faults:
            top = files.folder(root, "data", "bus-uclm") or Path(root).expanduser()
            entries, faults = two_folders(top, patient=r"([^_]+)_.*")
        super().__init__(
            entries, LESIONS, num_classes, [*_at_most_three(num_classes), *faults], notes, stretch_masks=stretch_masks
        )

    def decode(self, entry: Entry, planes: list[np.ndarray]) -> tuple[UInt8[np.ndarray, "h w"], int]:
        plane = planes[0]
        if plane.ndim == 2:
            plane = np.stack([plane] * 3, -1)
        red, green, blue = np.moveaxis(plane > 127, -1, 0)
        if (blue | (red & green)).any():
            raise ConfigError(
                f"{entry.masks[0]}: expected black, green (benign) and red (malignant), found other colours; "
                "for black and white masks use the reader 'folder'"
            )
        label = 1 if red.any() else 0 if green.any() else 2
        if self.num_classes == BINARY:
            return (red | green).astype(np.uint8), label
        return (green + 2 * red).astype(np.uint8), label


class Union:
    """Several data sets as one: `sources=[{"source": "busi", "root": ...}, {"source": "bus_bra", "root": ...}]`.

    Classes of the same name are the same; images of the same content stay together over all of them.
    """

    def __init__(self, sources: list[dict[str, Any]], num_classes: int = 2):
        self.num_classes = num_classes
        self.members, self.names, self.faults, self.notes = [], [], [], []
        for options in sources:
            options = dict(options)
            name = options.pop("source", "")
            try:
                member = complete(open_source(name, options, num_classes=num_classes))
            except ConfigError as error:
                self.faults.append(f"{name or 'a source'}: {error}")
                continue
            self.members.append(member)
            self.names.append(name)
            self.faults += member.faults
            self.notes += [f"{name}: {note}" for note in member.notes]
        if not sources:
            self.faults.append("'union' needs sources=[{'source': NAME, ...}, ...], found none")
        self.fields = {name: field for member in self.members for name, field in member.fields.items()}
        self.classes = tuple(dict.fromkeys(c for member in self.members for c in member.classes))
        self.allowed = [a for member in self.members for a in member.allowed]
        self.files = [f for member in self.members for f in member.files]
        self._starts = np.cumsum([0, *map(len, self.members)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, i: int) -> dict[str, Any]:
        which, within = self._place(i)
        example = self.members[which][within]
        return self._renamed(which, example, str(example.get("name", within)))

    def inspect(self, i: int, decode: bool = True) -> Facts:
        which, within = self._place(i)
        facts = self.members[which].inspect(within, decode)
        group = f"{which}/{facts.group}" if facts.group else ""
        example = None if facts.example is None else self._renamed(which, facts.example, facts.name)
        labels = [name for name, field in self.fields.items() if field.kind in LABELS]
        missing = {*facts.missing, *(name for name in labels if name not in self.members[which].fields)}
        return Facts(
            f"{which}-{self.names[which]}/{facts.name}",
            group,
            facts.content,
            -1 if facts.label < 0 else self._label(which, facts.label),
            example,
            tuple(sorted(missing)),
            facts.test_set,
        )

    def _place(self, i: int) -> tuple[int, int]:
        which = int(np.searchsorted(self._starts, i, side="right")) - 1
        return which, i - int(self._starts[which])

    def _renamed(self, which: int, example: dict[str, Any], name: str) -> dict[str, Any]:
        label = example.get("class")
        own = {} if label is None else {"class": self._label(which, int(label))}
        return {**example, **own, "name": f"{which}-{self.names[which]}/{name}"}

    def _label(self, which: int, label: int) -> int:
        """The class among those of all members; the classes of a member without names are called by their numbers."""
        names = self.members[which].classes
        return self.classes.index(names[label]) if names else label


def _at_most_three(num_classes: int) -> list[str]:
    if num_classes <= 3:
        return []
    return [f"num_classes: expected 2 (lesion) or 3 (benign, malignant), found {num_classes}"]


def _pathology(table: Path) -> tuple[dict[str, str], list[str]]:
    """Case -> benign or malignant, from bus_data.csv; empty without the file."""
    if not table.is_file():
        return {}, []
    with open(table, newline="", encoding="utf-8-sig") as lines:
        rows = list(csv.DictReader(lines))
    kinds = {str(r.get("ID")).removeprefix("bus_"): str(r.get("Pathology")).strip().lower() for r in rows}
    return kinds, [
        f"{table}: expected ID,Pathology with benign or malignant, found {kind!r} for {case!r}; mend the row"
        for case, kind in kinds.items()
        if kind not in LESIONS[:2]
    ]


def _lists(top: Path) -> tuple[dict[str, str], list[str]]:
    """Case -> split, from the lists of names beside the folders."""
    splits: dict[str, str] = {}
    faults = []
    for path in sorted(top.glob("*.txt")) if top.is_dir() else []:
        match = re.fullmatch(r"(?:.*_)?(train|val|valid|test)", path.stem.lower())
        if not match:
            continue
        split = "val" if match[1] == "valid" else match[1]
        for line in path.read_text(encoding="utf-8-sig").split("\n"):
            case = Path(line.strip()).stem.removeprefix("bus_").removeprefix("mask_")
            if case and splits.setdefault(case, split) != split:
                faults.append(f"{path}: {case!r} is also in the list of {splits[case]}; keep it in one")
    return splits, faults
