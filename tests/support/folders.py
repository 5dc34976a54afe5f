"""Tiny data sets on disk, one builder for each registered reader."""

from pathlib import Path

import numpy as np
from PIL import Image


def picture(path: Path, seed: int, size: tuple[int, int] = (20, 24)) -> Path:
    """A grey noise image, its content a function of `seed`; size is (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    Image.fromarray(grey).save(path)
    return path


def blob(path: Path, value=255, size: tuple[int, int] = (20, 24), at: tuple[int, int] = (2, 3)) -> Path:
    """A mask: a square of 6 pixels' side at `at`; the value is a number or a colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = np.atleast_1d(np.asarray(value, np.uint8))
    mask = np.zeros((*size, len(colour)), np.uint8)
    mask[at[0] : at[0] + 6, at[1] : at[1] + 6] = colour
    Image.fromarray(mask[..., 0] if len(colour) == 1 else mask).save(path)
    return path


def busi(root: Path, n: int = 8) -> dict:
    for k, name in enumerate(("benign", "malignant", "normal")):
        for i in range(1, n + 1):
            picture(root / name / f"{name} ({i}).png", 100 * k + i)
            blob(root / name / f"{name} ({i})_mask.png", 0 if name == "normal" else 255)
    blob(root / "benign" / "benign (1)_mask_1.png", at=(12, 14))
    return {"root": str(root)}


def bus_bra(root: Path, n: int = 12) -> dict:
    rows = ["ID,Case,Pathology"]
    for i in range(n):
        for side in "lr":
            case = f"{i:04d}-{side}"
            picture(root / "Images" / f"bus_{case}.png", 2 * i + (side == "r"))
            blob(root / "Masks" / f"mask_{case}.png")
            rows.append(f"bus_{case},{i},{'malignant' if i % 3 == 0 else 'benign'}")
    (root / "bus_data.csv").write_text("\n".join(rows) + "\n")
    return {"root": str(root)}


def bus_uclm(root: Path, n: int = 12) -> dict:
    for i in range(n):
        for shot in range(2):
            name = f"{'ABCDEFGHIJKLMNOP'[i] * 4}_{shot:03d}.png"
            picture(root / "images" / name, 2 * i + shot)
            blob(root / "masks" / name, ([0, 255, 0], [255, 0, 0], [0, 0, 0])[i % 3])
    return {"root": str(root)}


def layout(root: Path, n: int = 6) -> dict:
    for k, split in enumerate(("train", "val", "test")):
        for i in range(n):
            picture(root / split / "img" / f"{i}.png", 100 * k + i)
            blob(root / split / "label" / f"{i}.png")
    return {"root": str(root)}


def folder(root: Path, n: int = 20) -> dict:
    for i in range(n):
        picture(root / f"case{i}.png", i)
        blob(root / f"case{i}_mask.png")
    return {"root": str(root)}


def union(root: Path) -> dict:
    one, two = busi(root / "one"), folder(root / "two", n=12)
    for i, path in enumerate(sorted((root / "two").glob("case*[0-9].png"))):
        picture(path, 1000 + i)
    return {"sources": [{"source": "busi", **one}, {"source": "folder", **two}]}


def ultrasound(root: Path) -> dict:
    return {"size": 32, "train": 12, "val": 4, "test": 5}


BUILDERS = {f.__name__: f for f in (busi, bus_bra, bus_uclm, layout, folder, union, ultrasound)}
