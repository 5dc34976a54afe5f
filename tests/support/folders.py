"""Tiny data sets on disk, one builder for each registered reader."""

import io
import pickle
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


def classes(root: Path, n: int = 8) -> dict:
    for k, name in enumerate(("cat", "dog")):
        for i in range(n):
            picture(root / name / ("deeper" if i % 2 else "") / f"{i}.png", 100 * k + i)
    return {"root": str(root)}


def unlabelled(root: Path, n: int = 12) -> dict:
    for i in range(n):
        picture(root / ("deeper" if i % 2 else "") / f"{i}.png", 500 + i)
    return {"root": str(root)}


def forgeries(root: Path) -> dict:
    return {"size": 32, "train": 12, "val": 4, "test": 4}


def beetles(root: Path) -> dict:
    return {"size": 32, "train": 40, "val": 20, "test": 20, "num_classes": 20}


def real_fake(root: Path, n: int = 3) -> dict:
    """WildRF's folders, with one generator below the second test set."""
    sets = ("train", "val", "test/reddit", "test/stylegan/ffhq")
    for k, where in enumerate(f"{one}/{kind}" for one in sets for kind in ("0_real", "1_fake")):
        for i in range(n):
            picture(root / where / ("deeper" if i % 2 else "") / f"{i}.png", 100 * k + i)
    return {"root": str(root)}


def real_fake_table(root: Path, n: int = 24) -> dict:
    lines = ["Path,label"]
    for i in range(n):
        picture(root / "listed" / f"{i}.png", i)
        lines.append(f"listed/{i}.png,{('real', 'fake', 0, 1)[i % 4]}")
    (root / "faces.csv").write_text("\n".join(lines) + "\n")
    return {"csv": str(root / "faces.csv")}


def cifar(root: Path, n: int = 4) -> dict:
    """CIFAR-10 with so few images in each file, written by Python 3 as Python 2 did: keys and names are bytes."""
    where, rng = root / "cifar-10-batches-py", np.random.default_rng(0)
    where.mkdir(parents=True)
    for part in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        record = {b"data": rng.integers(0, 256, (n, 3072), np.uint8), b"labels": [i % 10 for i in range(n)]}
        (where / part).write_bytes(pickle.dumps(record, protocol=2))
    names = [f"kind {k}".encode() for k in range(10)]
    (where / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}, protocol=2))
    return {"root": str(root), "num_classes": 10}


def digits(root: Path) -> dict:
    return {"num_classes": 10}


def tfds(root: Path, n: int = 12) -> dict:
    """A data set that TFDS prepares on the spot as array_record, without TensorFlow."""
    import tensorflow_datasets as library  # takes two seconds to import

    def example(i: int) -> dict:
        png = io.BytesIO()
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (9, 8, 3), np.uint8)).save(png, "png")
        return {"image": io.BytesIO(png.getvalue()), "label": i % 3}

    class Tiny(library.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = library.core.Version("1.0.0")

        def _info(self):
            label = library.features.ClassLabel(names=["a", "b", "c"])
            picture = library.features.Image(shape=(None, None, 3), encoding_format="png")
            return library.core.DatasetInfo(
                builder=self, features=library.features.FeaturesDict({"image": picture, "label": label})
            )

        def _split_generators(self, dl_manager):
            sizes = {"train": range(n), "test": range(n, n + 4), "extra": range(n + 4, n + 6)}
            return {split: ((i, example(i)) for i in chosen) for split, chosen in sizes.items()}

        def _generate_examples(self):
            return iter(())  # the splits bring their examples; the class is abstract without this

    Tiny(data_dir=str(root), file_format="array_record").download_and_prepare()
    return {"name": "tiny", "data_dir": str(root), "num_classes": 3}


BUILDERS = {
    f.__name__: f
    for f in (
        *(busi, bus_bra, bus_uclm, layout, folder, union, ultrasound, classes, cifar, digits, tfds),
        *(forgeries, beetles, real_fake, real_fake_table, unlabelled),
    )
}
