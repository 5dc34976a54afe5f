"""Images and their classes that lie in memory."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Integer, UInt8

from kdjax.data.fields import Field
from kdjax.data.images.files import CLASS, IMAGE
from kdjax.data.source import Facts, facts_of, own_splits


class Labelled:
    """A source of images of one size with a class each; `splits` are those of the data set, "" where it has none."""

    fields: ClassVar[dict[str, Field]] = {"image": IMAGE, "class": CLASS}
    files: tuple[tuple[str, ...], ...] = ()

    def __init__(
        self,
        images: UInt8[np.ndarray, "n h w 3"],
        labels: Integer[np.ndarray, " n"],
        classes: Sequence[str],
        splits: Sequence[str],
        names: Sequence[str],
        faults: Sequence[str] = (),
    ):
        self.images, self.labels, self.names = images, labels, names
        self.classes, self.faults = tuple(classes), list(faults)
        self.allowed, self.notes = own_splits(splits)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"image": self.images[i], "class": int(self.labels[i]), "name": self.names[i]}

    def inspect(self, i: int, decode: bool = True) -> Facts:
        return facts_of(self[i], self.fields, self.names[i])
