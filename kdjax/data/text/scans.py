"""Generated scans and what a radiologist might write of them: a record follows from (seed, part, place) alone.

A slice of the body is drawn as CT or as MR: bone is bright in the one and dark in the other, fat the reverse, and the
noise differs. Where in the body it lies shows in its organs. The caption says something of the modality, of the place
or of a finding that occurs at several places: often the image or the caption alone does not tell.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from kdjax.config import ConfigError
from kdjax.data.source import SPLITS
from kdjax.data.text.source import Record, RecordSource
from kdjax.data.text.tokenizers import LONGEST

Plane = Float[np.ndarray, "h w"]

MODALITIES = ("CT", "MR")
TISSUES = {  # -> brightness in CT and in MR
    "air": (0.02, 0.03),
    "fat": (0.25, 0.80),
    "muscle": (0.45, 0.40),
    "organ": (0.55, 0.50),
    "fluid": (0.38, 0.90),
    "bone": (0.95, 0.10),
    "marrow": (0.75, 0.65),
}
NOISE = (0.10, 0.07)  # standard deviation, in CT and in MR
HAZE = (0.05, 0.35)  # how much of the contrast is lost, at least and at most

SPOKEN = {  # of modalities and of places
    "CT": ("CT", "computed tomography", "contrast enhanced CT", "non-contrast CT", "CT in bone window"),
    "MR": ("MR", "MRI", "T1 weighted image", "T2 weighted image", "FLAIR sequence", "post-gadolinium image"),
    "Abdomen": ("abdomen", "liver", "pancreas", "left kidney", "bowel", "spleen"),
    "Head": ("brain", "frontal lobe", "skull base", "lateral ventricle", "orbit", "cerebellum"),
    "Reproductive and Urinary System": ("pelvis", "bladder", "prostate", "uterus", "left ovary", "ureter"),
    "Thorax": ("chest", "right upper lobe", "mediastinum", "left lung", "aortic arch", "pleura"),
    "Spine and Muscles": ("lumbar spine", "L4 vertebra", "cervical cord", "knee", "rotator cuff", "psoas muscle"),
}
FINDINGS = ("mass", "lesion", "fracture", "haemorrhage", "oedema", "cyst", "calcification", "abscess", "stenosis")
PARTICULAR = {  # findings that occur at one place alone
    "Abdomen": ("dilated loops", "biliary stones"),
    "Head": ("midline shift", "infarct"),
    "Reproductive and Urinary System": ("hydronephrosis", "fibroid"),
    "Thorax": ("pneumothorax", "consolidation"),
    "Spine and Muscles": ("disc herniation", "muscle tear"),
}
QUALITIES = ("large", "small", "well circumscribed", "heterogeneous", "enhancing", "subtle", "multiple", "left sided")
VERBS = ("demonstrates", "shows", "reveals", "is suspicious for", "is consistent with")
VIEWS = ("Axial", "Coronal", "Sagittal", "Selected", "Delayed")


class Scans(RecordSource):
    """Generated CT and MR slices of five places of the body with captions, nothing to download.

    `size` is the side of an image; `train`, `val` and `test` say how many records each split has, of which a share of
    `gaps` lacks its location, and another one its caption. For `tokenizers` and `length` see `RecordSource`.
    """

    def __init__(
        self,
        size: int = 48,
        train: int = 1600,
        val: int = 200,
        test: int = 400,
        seed: int = 0,
        gaps: float = 0.05,
        tokenizers: Mapping[str, Mapping[str, Any]] | None = None,
        length: int = LONGEST,
    ):
        counts = {"train": train, "val": val, "test": test}
        faults = [f"{name}: expected at least 1, found {n}" for name, n in counts.items() if n < 1]
        if size < 32:
            faults.append(f"size: expected at least 32 pixels, found {size}")
        if not 0 <= gaps < 1:
            faults.append(f"gaps: expected a share from 0 to below 1, found {gaps}")
        if faults:
            raise ConfigError("the scans cannot be made:\n  " + "\n  ".join(faults))
        records = [_record(seed, part, i, size, gaps) for part, name in enumerate(SPLITS) for i in range(counts[name])]
        labels = {"modality": MODALITIES, "location": tuple(PLACES)}
        super().__init__(records, labels, tokenizers, length, missing="text", cache="")


def _record(seed: int, part: int, i: int, size: int, gaps: float) -> Record:
    rng = np.random.default_rng([seed, part, i])
    made = scan(rng, size)
    without_location, without_caption = rng.random(2) < gaps
    return Record(
        name=f"{SPLITS[part]}_{i:05d}",
        image=made.image,
        caption=None if without_caption else made.caption,
        labels={"modality": made.modality, "location": None if without_location else made.location},
        split=SPLITS[part],
    )


class Scan(NamedTuple):
    image: UInt8[np.ndarray, "h w 3"]
    caption: str
    modality: str
    location: str


def scan(rng: np.random.Generator, size: int) -> Scan:
    """One record of a random modality and location, of side `size`."""
    modality, location = str(rng.choice(MODALITIES)), str(rng.choice(list(PLACES)))
    return Scan(drawn(rng, size, modality, location), written(rng, modality, location), modality, location)


# -- the image -------------------------------------------------------------------------------------------------------


class Canvas:
    """A slice that is painted tissue by tissue, in coordinates from -1 to 1; turned, shifted and zoomed a little."""

    def __init__(self, rng: np.random.Generator, size: int, modality: str):
        angle, zoom = np.deg2rad(rng.uniform(-12, 12)), rng.uniform(0.95, 1.2)
        y, x = (2 * axis.astype(np.float32) / (size - 1) - 1 for axis in np.mgrid[0:size, 0:size])
        y, x = zoom * y - np.float32(rng.uniform(-0.1, 0.1)), zoom * x - np.float32(rng.uniform(-0.1, 0.1))
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        self.y, self.x, self.soft = cos * y + sin * x, cos * x - sin * y, np.float32(size / 2)
        self.rng, self.column = rng, MODALITIES.index(modality)
        self.plane: Plane = np.full((size, size), TISSUES["air"][self.column], np.float32)

    def paint(self, tissue: str, y: float | int, x: float | int, down: float, across: float) -> None:
        """An ellipse with its middle at (y, x) and these half axes, each a few hundredths off."""
        y, x = (value + self.rng.normal(0, 0.02) for value in (y, x))
        down, across = (value * self.rng.uniform(0.88, 1.12) for value in (down, across))
        far = np.hypot((self.y - np.float32(y)) / np.float32(down), (self.x - np.float32(x)) / np.float32(across))
        inside = np.clip(np.float32(0.5) - (far - 1) * np.float32(min(down, across)) * self.soft, 0, 1)
        self.plane += inside * (np.float32(TISSUES[tissue][self.column]) - self.plane)


def head(on: Canvas) -> None:
    on.paint("fat", 0.0, 0.0, 0.85, 0.70)
    on.paint("bone", 0.0, 0.0, 0.80, 0.65)
    on.paint("organ", 0.0, 0.0, 0.70, 0.55)
    for side in (-1, 1):
        on.paint("fluid", -0.05, 0.14 * side, 0.26, 0.07)


def thorax(on: Canvas) -> None:
    on.paint("fat", 0.0, 0.0, 0.66, 0.92)
    on.paint("muscle", 0.0, 0.0, 0.60, 0.86)
    for side in (-1, 1):
        on.paint("air", -0.02, 0.45 * side, 0.44, 0.31)
    on.paint("organ", -0.12, 0.08, 0.24, 0.20)
    on.paint("bone", 0.46, 0.0, 0.12, 0.11)


def abdomen(on: Canvas) -> None:
    on.paint("fat", 0.0, 0.0, 0.66, 0.90)
    on.paint("muscle", 0.0, 0.0, 0.58, 0.80)
    on.paint("organ", -0.14, -0.38, 0.34, 0.34)
    on.paint("fluid", -0.18, 0.34, 0.18, 0.22)
    for side in (-1, 1):
        on.paint("organ", 0.28, 0.38 * side, 0.15, 0.11)
    on.paint("bone", 0.42, 0.0, 0.12, 0.11)


def pelvis(on: Canvas) -> None:
    on.paint("fat", 0.0, 0.0, 0.62, 0.92)
    on.paint("muscle", 0.0, 0.0, 0.52, 0.82)
    for side in (-1, 1):
        on.paint("bone", 0.02, 0.58 * side, 0.30, 0.12)
    on.paint("fluid", -0.12, 0.0, 0.22, 0.26)
    on.paint("organ", 0.24, 0.0, 0.14, 0.16)


def spine(on: Canvas) -> None:
    on.paint("fat", 0.0, 0.0, 1.3, 0.60)
    on.paint("muscle", 0.0, 0.08, 1.2, 0.48)
    on.paint("fluid", 0.0, 0.20, 1.3, 0.06)
    for y in np.arange(-0.88, 1.0, 0.36):
        on.paint("bone", float(y), -0.10, 0.14, 0.19)
        on.paint("marrow", float(y), -0.10, 0.09, 0.14)


PLACES: dict[str, Callable[[Canvas], None]] = {
    "Abdomen": abdomen,
    "Head": head,
    "Reproductive and Urinary System": pelvis,
    "Thorax": thorax,
    "Spine and Muscles": spine,
}


def drawn(rng: np.random.Generator, size: int, modality: str, location: str) -> UInt8[np.ndarray, "h w 3"]:
    """A slice with a finding at a random place; some are so hazy and so noisy that little of them is seen."""
    canvas = Canvas(rng, size, modality)
    PLACES[location](canvas)
    tissue = str(rng.choice(("fluid", "organ", "bone")))
    radius = rng.uniform(0.05, 0.14)
    canvas.paint(tissue, rng.uniform(-0.4, 0.4), rng.uniform(-0.4, 0.4), radius, radius)
    haze, level = rng.uniform(*HAZE), rng.uniform(0.2, 0.6)
    plane = canvas.plane + np.float32(haze) * (np.float32(level) - canvas.plane)
    noise = NOISE[canvas.column] * rng.uniform(0.5, 2.5)
    plane = plane + rng.standard_normal(plane.shape, dtype=np.float32) * np.float32(noise)
    return np.repeat((np.clip(plane, 0, 1) * 255 + 0.5).astype(np.uint8)[..., None], 3, axis=-1)


# -- the caption -----------------------------------------------------------------------------------------------------


def written(rng: np.random.Generator, modality: str, location: str) -> str:
    """A sentence or two. Half of them name the modality, half the place, and few a finding that tells the place."""

    def one(words: tuple[str, ...]) -> str:
        return str(rng.choice(words))

    names_modality, names_place, tells = rng.random(3) < (0.5, 0.5, 0.15)
    begin = [one(VIEWS), one(SPOKEN[modality]) if names_modality else one(("image", "slice", "view"))]
    begin += ["of the", one(SPOKEN[location])] if names_place else []
    found = one(PARTICULAR[location]) if tells else f"{one(QUALITIES)} {one(FINDINGS)}"
    text = f"{' '.join(begin)} {one(VERBS)} a {found}"
    if rng.random() < 0.4:
        text += f", measuring {rng.uniform(0.4, 9):.1f} x {rng.uniform(0.4, 9):.1f} cm"
    if rng.random() < 0.3:
        text += f". No {one(FINDINGS)} is seen"
    return f"{text}."
