"""Images and masks in files: scanning folders, decoding, and what can be wrong with them."""

import hashlib
import io
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps

from kdjax.config import ConfigError
from kdjax.data.fields import Field
from kdjax.data.images import masks
from kdjax.data.source import Facts, own_splits

IMAGE, MASK = Field((0, 0, 3), "uint8", "image"), Field((0, 0), "int32", "mask")  # of any size in a file
CLASS = Field((), "int32", "class", -1)

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif")
# Pictures that may not be readable here. They are found with the others, so that reading one says so by its name.
PICTURES = (*SUFFIXES, ".avif", ".heic", ".heif", ".jp2", ".jxl", ".dcm")
TURNING = (5, 6, 7, 8)  # orientations in EXIF that lay a picture on its side


@dataclass(frozen=True, slots=True)
class Entry:
    """One image on disk with its masks; the class is known beforehand, or read from the mask, or, as -1, not known."""

    image: str
    masks: tuple[str, ...]
    name: str
    label: int = 0
    group: str = ""
    split: str = ""  # "" where the data set brings no splits
    test_set: str = "test"


class Images:
    """A source of files; a reader finds the entries and may say by `decode` what a mask file means.

    A mask of another size than its image is refused, or with `stretch_masks` brought to that size. Where `num_classes`
    is None, or the classes of the mask have names, `mask_names`, the values in the masks are looked for, and `values`
    has the value of each class. `bits` says how many bits images use in files of 16 bits.
    """

    fields: ClassVar[dict[str, Field]] = {"image": IMAGE, "mask": MASK, "class": CLASS}

    def __init__(
        self,
        entries: Iterable[Entry],
        classes: Sequence[str],
        num_classes: int | None,
        faults: Sequence[str] = (),
        notes: Sequence[str] = (),
        stretch_masks: bool = False,
        mask_names: Sequence[str] = (),
        bits: int | None = None,
    ):
        self.entries = sorted(entries, key=lambda e: (e.split, e.name))
        self.classes, self.stretch_masks, self.bits = tuple(classes), stretch_masks, bits
        self.faults, self.notes, self.values = list(faults), list(notes), ()
        if bits is not None and not 8 <= bits <= 16:
            self.faults.append(f"bits: expected 8 to 16, the bits that images use in files of 16, found {bits}")
        self.faults += [unwritable(entry.image) for entry in self.entries if entry.name != as_utf8(entry.name)]
        if num_classes is None or mask_names:
            planes = [path for entry in self.entries for path in entry.masks]
            self.values, unclear = masks.values_in(planes, read_plane, 1 + len(mask_names) if mask_names else None)
            self.faults += unclear
        self.num_classes = len(self.values) if num_classes is None else num_classes
        self.allowed, split_notes = own_splits([e.split for e in self.entries])
        self.notes += split_notes

    @property
    def files(self) -> list[tuple[str, ...]]:
        return [(e.image, *e.masks) for e in self.entries]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, i: int) -> dict[str, Any]:
        entry = self.entries[i]
        image = read_image(entry.image, bits=self.bits)
        if "mask" not in self.fields:
            return {"image": image, "class": None if entry.label < 0 else entry.label, "name": entry.name}
        planes = [self._fitted(path, read_plane(path), entry.image, image) for path in entry.masks]
        mask, label = self.decode(entry, planes) if planes else (np.zeros(image.shape[:2], np.uint8), entry.label)
        return {"image": image, "mask": mask, "class": label, "name": entry.name}

    def decode(self, entry: Entry, planes: list[np.ndarray]) -> tuple[UInt8[np.ndarray, "h w"], int]:
        """The mask of class ids, and the class of the image."""
        if self.values:
            return masks.numbered(planes[0], self.values, entry.masks[0]), entry.label
        return masks.ids(planes[0], self.num_classes, entry.masks[0]), entry.label

    def inspect(self, i: int, decode: bool = True) -> Facts:
        entry = self.entries[i]
        missing = ("class",) if entry.label < 0 else ()
        if decode:
            example = self[i]
            content = hashlib.blake2b(example["image"].tobytes(), digest_size=16, salt=b"%d" % len(example["image"]))
            label = -1 if missing else example["class"]
            return Facts(entry.name, entry.group, content.hexdigest(), label, example, missing, entry.test_set)
        size = _header(entry.image, upright=True)
        for path in entry.masks:
            if (mask_size := _header(path)) != size and not self.stretch_masks:
                raise ConfigError(_another_size(path, mask_size, entry.image, size))
        content = hashlib.blake2b(Path(entry.image).read_bytes(), digest_size=16)
        return Facts(entry.name, entry.group, content.hexdigest(), entry.label, None, missing, entry.test_set)

    def _fitted(self, path: str, plane: np.ndarray, image_path: str, image: np.ndarray) -> np.ndarray:
        if plane.shape[:2] == image.shape[:2]:
            return plane
        if not self.stretch_masks:
            raise ConfigError(_another_size(path, plane.shape[1::-1], image_path, image.shape[1::-1]))
        (h, w), (rows, columns) = plane.shape[:2], image.shape[:2]
        return plane[(2 * np.arange(rows) + 1) * h // (2 * rows)][:, (2 * np.arange(columns) + 1) * w // (2 * columns)]


# -- scanning --------------------------------------------------------------------------------------------------------


def folder(root: str | Path, *names: str) -> Path | None:
    """The first of these folders that exists, however its letters are written; without names the root itself."""
    root = Path(root).expanduser()
    if not names:
        return root if root.is_dir() else None
    folders = {p.name.lower(): p for p in sorted(root.iterdir()) if p.is_dir()} if root.is_dir() else {}
    return next((folders[name] for name in names if name in folders), None)


def missing(root: str | Path, expected: str) -> str:
    """The fault of a folder that is not what the reader expects."""
    root = Path(root).expanduser()
    if not root.exists():
        actual = "no such folder"
    elif not root.is_dir():
        actual = "a file"
    else:
        inside = sorted(p.name for p in root.iterdir())
        actual = ", ".join(inside[:6]) + (", ..." if len(inside) > 6 else "") if inside else "an empty folder"
    return f"{root}: expected {expected}, found {actual}; set root to the folder that holds it"


def listing(where: Path) -> list[Path]:
    """The pictures in a folder, at any depth and behind links; what is hidden is left out."""
    paths = []
    for top, folders, names in os.walk(where, followlinks=True):
        real = Path(top).resolve()
        folders[:] = [f for f in folders if not f.startswith(".") and not real.is_relative_to(Path(top, f).resolve())]
        paths += [Path(top, name) for name in names if not name.startswith(".")]
    return sorted(path for path in paths if path.suffix.lower() in PICTURES)


def title(path: Path, top: Path) -> str:
    """The name of a picture: its path below `top` without the suffix, whichever way an accent is written."""
    return unicodedata.normalize("NFC", path.relative_to(top).with_suffix("").as_posix())


def flat(where: Path) -> tuple[list[Path], list[str]]:
    """The pictures of a folder that has none inside, and the fault where some lie deeper."""
    paths = listing(where)
    direct = [path for path in paths if path.parent == where]
    deeper = [str(path.relative_to(where)) for path in paths if path.parent != where]
    fault = (
        f"{where}: expected images in this folder itself, found {len(deeper)} in folders inside it "
        f"({', '.join(deeper[:3])}{', ...' if deeper[3:] else ''}); move them up, or remove them"
    )
    return direct, [fault] if deeper else []


def pair(
    images: Iterable[Path], masks: Iterable[Path], tops: tuple[Path, Path], key: str = r"(.+)", of: str = r"(.+)"
) -> tuple[list[tuple[Path, list[Path]]], list[str]]:
    """Images with their masks: those where the first group of `key` in the image's title equals that of `of` in theirs;
    their titles begin in the folders `tops`.

    An image may come without masks; a mask without an image is a fault, and so are two images that claim one name.
    """
    faults, pairs = [], {}
    for path in images:
        match = re.fullmatch(key, title(path, tops[0]))
        if not match:
            faults.append(f"{path}: expected a name like {key!r}, found {path.stem!r}; rename or remove it")
        elif match[1] in pairs:
            faults.append(f"{path}: the name is taken by {pairs[match[1]][0].name}; keep one of the two")
        else:
            pairs[match[1]] = (path, [])
    for path in masks:
        match = re.fullmatch(of, title(path, tops[1]))
        if match and match[1] in pairs:
            pairs[match[1]][1].append(path)
        else:
            faults.append(f"{path}: a mask without its image; add the image or remove the mask")
    return list(pairs.values()), faults


def unwritable(path: str) -> str:
    """The fault of a name that no table can hold."""
    return f"{path!r}: expected a name in UTF-8, found bytes that are none; rename the file"


def as_utf8(name: str) -> str:
    return name.encode(errors="replace").decode()


def unmasked(path: Path, expected: str) -> str:
    return f"{path}: an image without a mask, expected {expected}; add the mask (all black where there is nothing)"


# -- decoding --------------------------------------------------------------------------------------------------------


def read_image(path: str, content: bytes | None = None, bits: int | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """The image in a file, or in `content`, which `path` then only names: upright as its EXIF says, 8 bits, RGB.

    Of 16 bits a pixel the upper eight count, or the value itself where none of the image is above 255; with `bits` the
    upper eight of so many. Grey becomes three equal channels; transparency is left out; what is partly transparent has
    its own colour.
    """
    image = _open(path, content, upright=True)
    if image.mode == "F" or image.mode.startswith("I"):
        wide = _whole(image, path, "scale it to 0 to 255")
        largest = int(wide.max(initial=0))
        white = 2**bits - 1 if bits else 0xFFFF if largest > 255 else 255
        if largest > white:
            raise ConfigError(f"{path}: expected {bits} bits a pixel, at most {white}, found {largest}; set other bits")
        return np.stack([(wide.astype(np.int32) * 255 // white).astype(np.uint8)] * 3, -1)
    return np.asarray(image.convert("RGB"))


def read_plane(path: str) -> np.ndarray:
    """A mask as it is stored, not turned by EXIF: [h, w] of grey levels or palette indices, or [h, w, 3] of colours."""
    image = _open(path)
    if image.mode == "F" or image.mode.startswith("I"):
        return _whole(image, path, "make it whole numbers, one for each class").astype(np.int32)
    if image.mode in ("1", "L", "P"):
        return np.asarray(image).astype(np.int32)
    return np.asarray(image.convert("L" if image.mode == "LA" else "RGB")).astype(np.int32)


def _whole(image: Image.Image, path: str, remedy: str) -> np.ndarray:
    """The numbers of a grey picture of more than 8 bits."""
    wide = np.asarray(image)
    if image.mode == "F" or wide.min(initial=0) < 0 or wide.max(initial=0) > 0xFFFF:
        kind = "floats" if image.mode == "F" else f"{wide.min()} to {wide.max()}"
        raise ConfigError(f"{path}: expected 8 or 16 bits a pixel, found {kind}; {remedy} and save it")
    return wide


def _open(path: str, content: bytes | None = None, upright: bool = False) -> Image.Image:
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            if (frames := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":  # its others are previews
                raise ConfigError(f"it holds {frames} pictures, expected one")
            image.load()
            return ImageOps.exif_transpose(image) if upright else image
    except Exception as error:  # each decoder of PIL fails in its own way
        raise ConfigError(_unreadable(path, error)) from error


def _header(path: str, upright: bool = False) -> tuple[int, int]:
    """(width, height), of an image `upright` as its EXIF says."""
    try:
        with Image.open(path) as image:
            exif = Image.Exif()
            if upright and image.format != "TIFF":  # which Pillow turns by itself, and says so in its size
                exif.load(image.info.get("exif", b""))  # image.getexif() would decode a whole PNG
            width, height = image.size
            return (height, width) if exif.get(ExifTags.Base.Orientation) in TURNING else (width, height)
    except Exception as error:
        raise ConfigError(_unreadable(path, error)) from error


def upright_size(path: str) -> tuple[int, int]:
    """(height, width) of an image, without decoding it."""
    width, height = _header(path, upright=True)
    return height, width


def _unreadable(path: str, error: Exception) -> str:
    return f"{path}: expected an image, but it cannot be read ({error}); replace the file or remove it"


def _another_size(path: str, size: tuple[int, ...], image: str, expected: tuple[int, ...]) -> str:
    return (
        f"{path}: expected {expected[0]} x {expected[1]} pixels like {image}, found {size[0]} x {size[1]}; "
        "export the mask at the size of its image, or set stretch_masks=True if both show the same view"
    )
