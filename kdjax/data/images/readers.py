"""Readers of data sets on disk. Each finds images and masks; what files have in common is in `files`."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import UInt8

from kdjax.config import ConfigError
from kdjax.data.fields import LABELS, Field
from kdjax.data.images import files
from kdjax.data.images.files import Entry, Images
from kdjax.data.images.masks import BINARY, ids
from kdjax.data.source import Facts, complete, open_source

IMAGE_FOLDERS = ("img", "image", "images", "imgs")
MASK_FOLDERS = ("label", "labels", "mask", "masks")
SPLIT_FOLDERS = {
    "train": ("train", "training", "train_set", "training_set", "trainning_set"),
    "val": ("val", "valid", "validation", "val_set", "validation_set"),
    "test": ("test", "testing", "test_set"),
}
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
        entries, faults, notes = _split_folders(top, patient=r"([^_]+)_.*")
        if not entries and not faults:
            top = files.folder(root, "data", "bus-uclm") or Path(root).expanduser()
            entries, faults = _two_folders(top, patient=r"([^_]+)_.*")
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


class Layout(Images):
    """`{train,val,test}/{img,label}/` with the same file names in img and label, and its usual other spellings.

    Masks are black and white for two classes, else class ids. Without `num_classes`, or where classes have names, each
    value in the masks is a class.
    """

    def __init__(
        self,
        root: str,
        stretch_masks: bool = False,
        num_classes: int | None = None,
        mask_names: Sequence[str] = (),
    ):
        entries, faults, notes = _split_folders(Path(root).expanduser())
        if not entries and not faults:
            faults = [files.missing(root, "folders train, val and test, with img and label in each")]
        super().__init__(entries, ("image",), num_classes, faults, notes, stretch_masks, mask_names)


class Folder(Images):
    """Any folder of images and masks, and the folders inside it.

    Either `images` and `masks` name two folders, or `root` holds two such folders (images and masks, img and label), or
    `root` holds all files together. A mask lies at the same place in its folder as the image in its own, and has the
    image's name, or that with _mask, _seg, _label or _gt behind it. `group` is a pattern over file names, or over
    paths in the folder, whose first group tells the patient: r"(\\d+)_.*", r"(\\d+)/.*". Without `num_classes`, or
    where classes have names, each value in the masks is a class.
    """

    def __init__(
        self,
        root: str = "",
        images: str = "",
        masks: str = "",
        group: str = "",
        stretch_masks: bool = False,
        num_classes: int | None = None,
        mask_names: Sequence[str] = (),
    ):
        entries: list[Entry] = []
        if bool(root) == bool(images and masks):
            faults = ["'folder' needs either root, or both images and masks"]
        elif root and not files.folder(root, *IMAGE_FOLDERS):
            entries, faults = _one_folder(Path(root).expanduser(), group)
        elif root:
            entries, faults = _two_folders(Path(root).expanduser(), group)
            faults += _elsewhere(Path(root).expanduser())
        else:
            entries, faults = _paired(Path(images).expanduser(), Path(masks).expanduser(), "", group)
        super().__init__(entries, ("image",), num_classes, faults, (), stretch_masks, mask_names)


class Classes(Images):
    """A folder for each class, `CLASS/.../X.png`, or `{train,val,test}/CLASS/.../X.png`; images lie in it at any depth.

    The classes are numbered in the order of their names. `group` is a pattern over file names whose first group tells
    what stays together: r"(\\d+)_.*".
    """

    fields: ClassVar[dict[str, Field]] = {"image": files.IMAGE, "class": files.CLASS}

    def __init__(self, root: str, group: str = "", num_classes: int = 2):
        top = Path(root).expanduser()
        splits = {s: where for s, names in SPLIT_FOLDERS.items() if (where := files.folder(top, *names))}
        tops = splits or {"": top}
        inside = {split: _visible_folders(where) for split, where in tops.items()}
        names = sorted({folder.name for folders in inside.values() for folder in folders})
        entries, faults = [], []
        if not names:
            faults.append(files.missing(top, "a folder for each class, or train, val and test with such folders"))
        for split, where in tops.items():
            if loose := [path for path in files.listing(where) if path.parent == where]:
                faults.append(f"{where}: expected images in a folder for each class, found {loose[0].name} beside them")
            present = {folder.name: folder for folder in inside[split]}
            if absent := [name for name in names if name not in present and split in ("", "train")]:
                faults.append(f"{where}: no folder for the classes {', '.join(absent)}, which val or test has; add it")
            for name, folder in present.items():
                images = files.listing(folder)
                if not images and split in ("", "train"):
                    faults.append(files.missing(folder, f"images of the class {name!r}"))
                for path in images:
                    match = re.fullmatch(group, path.stem) if group else None
                    if group and not match:
                        faults.append(f"{path}: its name does not fit the pattern of groups {group!r}; mend either")
                    own, title = match[1] if match else "", str(path.relative_to(top))
                    entries.append(Entry(str(path), (), title, names.index(name), group=own, split=split))
        super().__init__(entries, names, num_classes, faults)


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


# -- what readers share ----------------------------------------------------------------------------------------------


def _at_most_three(num_classes: int) -> list[str]:
    if num_classes <= 3:
        return []
    return [f"num_classes: expected 2 (lesion) or 3 (benign, malignant), found {num_classes}"]


def _split_folders(top: Path, patient: str = "") -> tuple[list[Entry], list[str], list[str]]:
    entries, faults = [], []
    for split, names in SPLIT_FOLDERS.items():
        if where := files.folder(top, *names):
            split_entries, split_faults = _two_folders(where, patient, split)
            entries, faults = entries + split_entries, faults + split_faults
    return entries, faults, []


def _visible_folders(top: Path) -> list[Path]:
    return sorted(p for p in top.iterdir() if p.is_dir() and not p.name.startswith(".")) if top.is_dir() else []


def _two_folders(top: Path, patient: str = "", split: str = "") -> tuple[list[Entry], list[str]]:
    images, masks = files.folder(top, *IMAGE_FOLDERS), files.folder(top, *MASK_FOLDERS)
    if images is None or masks is None:
        return [], [files.missing(top, "a folder of images (images, img) and one of masks (masks, label)")]
    return _paired(images, masks, split, patient)


def _elsewhere(root: Path) -> list[str]:
    """The fault of pictures in `root` that lie in neither its folder of images nor that of masks."""
    taken = [files.folder(root, *names) for names in (IMAGE_FOLDERS, MASK_FOLDERS)]
    loose = [path for path in files.listing(root) if not any(where in path.parents for where in taken if where)]
    if not loose or None in taken:
        return []
    images, masks = (where.name for where in taken if where)
    return [
        f"{root}: {len(loose)} pictures lie neither in {images} nor in {masks} "
        f"({loose[0].relative_to(root)}{', ...' if loose[1:] else ''}); move them, or name the two folders with "
        "images= and masks= in place of root="
    ]


def _paired(images: Path, masks: Path, split: str, patient: str) -> tuple[list[Entry], list[str]]:
    absent = [files.missing(where, "a folder of images") for where in (images, masks) if not where.is_dir()]
    if absent:
        return [], absent
    paths = files.listing(images)
    if not paths:
        return [], [files.missing(images, "images")]
    own, behind = files.listing(masks), r"(.+?)(?:_mask|_seg|_label|_gt)?"
    if {files.title(p, masks) for p in own} & {files.title(p, images) for p in paths}:
        behind = r"(.+)"
    pairs, faults = files.pair(paths, own, (images, masks), of=behind)
    return _entries(pairs, faults, images, split, patient)


def _one_folder(root: Path, patient: str) -> tuple[list[Entry], list[str]]:
    paths = files.listing(root) if root.is_dir() else []
    masks = [p for p in paths if re.search(r"_(mask|seg|label|gt)$", p.stem)]
    if not paths:
        return [], [files.missing(root, "images and masks")]
    images = sorted(set(paths) - set(masks))
    pairs, faults = files.pair(images, masks, (root, root), of=r"(.+?)_(?:mask|seg|label|gt)")
    return _entries(pairs, faults, root, "", patient)


def _entries(
    pairs: list[tuple[Path, list[Path]]], faults: list[str], top: Path, split: str, patient: str
) -> tuple[list[Entry], list[str]]:
    entries = []
    for image, masks in pairs:
        if len(masks) != 1:
            what = (
                files.unmasked(image, f"{image.stem} in the masks")
                if not masks
                else (f"{image}: expected one mask, found {', '.join(m.name for m in masks)}; keep one")
            )
            faults.append(what)
        name = files.title(image, top)
        match = (re.fullmatch(patient, image.stem) or re.fullmatch(patient, name)) if patient else None
        if patient and not match:
            faults.append(f"{image}: its name does not fit the pattern of patients {patient!r}; mend either")
        group = match[1] if match else ""
        entries.append(Entry(str(image), tuple(map(str, masks)), name, group=group, split=split))
    return entries, faults


def _pathology(table: Path) -> tuple[dict[str, str], list[str]]:
    """Case -> benign or malignant, from bus_data.csv; empty without the file."""
    if not table.is_file():
        return {}, []
    with open(table, newline="") as lines:
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
        for line in path.read_text().split("\n"):
            case = Path(line.strip()).stem.removeprefix("bus_").removeprefix("mask_")
            if case and splits.setdefault(case, split) != split:
                faults.append(f"{path}: {case!r} is also in the list of {splits[case]}; keep it in one")
    return splits, faults
