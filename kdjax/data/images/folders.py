"""One's own images in folders: with masks, split or together, a folder for each class, or without labels.

Each reader takes `bits`: how many bits the images use in grey files of 16, such as 12.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from kdjax.data.fields import Field
from kdjax.data.images import files
from kdjax.data.images.files import Entry, Images

IMAGE_FOLDERS = ("img", "image", "images", "imgs")
MASK_FOLDERS = ("label", "labels", "mask", "masks")
SPLIT_FOLDERS = {
    "train": ("train", "training", "train_set", "training_set", "trainning_set"),
    "val": ("val", "valid", "validation", "val_set", "validation_set"),
    "test": ("test", "testing", "test_set"),
}


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
        bits: int | None = None,
    ):
        entries, faults, notes = split_folders(Path(root).expanduser())
        if not entries and not faults:
            faults = [files.missing(root, "folders train, val and test, with img and label in each")]
        super().__init__(entries, ("image",), num_classes, faults, notes, stretch_masks, mask_names, bits)


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
        bits: int | None = None,
    ):
        entries: list[Entry] = []
        if bool(root) == bool(images and masks):
            faults = ["'folder' needs either root, or both images and masks"]
        elif root and not files.folder(root, *IMAGE_FOLDERS):
            entries, faults = _one_folder(Path(root).expanduser(), group)
        elif root:
            entries, faults = two_folders(Path(root).expanduser(), group)
            faults += _elsewhere(Path(root).expanduser())
        else:
            entries, faults = _paired(Path(images).expanduser(), Path(masks).expanduser(), "", group)
        super().__init__(entries, ("image",), num_classes, faults, (), stretch_masks, mask_names, bits)


class Classes(Images):
    """A folder for each class, `CLASS/.../X.png`, or `{train,val,test}/CLASS/.../X.png`; images lie in it at any depth.

    The classes are numbered in the order of their names. `group` is a pattern over file names whose first group tells
    what stays together: r"(\\d+)_.*".
    """

    fields: ClassVar[dict[str, Field]] = {"image": files.IMAGE, "class": files.CLASS}

    def __init__(self, root: str, group: str = "", num_classes: int = 2, bits: int | None = None):
        top = Path(root).expanduser()
        tops = split_tops(top)
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
        super().__init__(entries, names, num_classes, faults, bits=bits)


class Unlabelled(Images):
    """A folder of images, and the folders inside it, whose classes nobody has told."""

    fields: ClassVar[dict[str, Field]] = {"image": files.IMAGE, "class": files.CLASS}

    def __init__(self, root: str, bits: int | None = None):
        top = Path(root).expanduser()
        entries = [Entry(str(path), (), str(path.relative_to(top)), label=-1) for path in files.listing(top)]
        faults = [] if entries else [files.missing(top, f"images ({', '.join(files.SUFFIXES)})")]
        super().__init__(entries, (), 0, faults, bits=bits)


def split_tops(top: Path) -> dict[str, Path]:
    """The folder of each split, or {"": top} where there are none."""
    splits = {s: where for s, names in SPLIT_FOLDERS.items() if (where := files.folder(top, *names))}
    return splits or {"": top}


def split_folders(top: Path, patient: str = "") -> tuple[list[Entry], list[str], list[str]]:
    entries, faults = [], []
    for split, names in SPLIT_FOLDERS.items():
        if where := files.folder(top, *names):
            split_entries, split_faults = two_folders(where, patient, split)
            entries, faults = entries + split_entries, faults + split_faults
    return entries, faults, []


def _visible_folders(top: Path) -> list[Path]:
    return sorted(p for p in top.iterdir() if p.is_dir() and not p.name.startswith(".")) if top.is_dir() else []


def two_folders(top: Path, patient: str = "", split: str = "") -> tuple[list[Entry], list[str]]:
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
