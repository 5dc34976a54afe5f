"""Images: `build` finds what is wrong with them, `Images` makes their batches."""

import json
import os
from collections.abc import Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Int

from kdjax.config import ConfigError, Data
from kdjax.data import splits, transforms
from kdjax.data.dataset import Batch, Dataset
from kdjax.data.images.examples import DECODED, Examples
from kdjax.data.source import Facts, Source, open_source

SHOWN = 40  # faults that one message lists in full


def build(data: Data, parts: int = 1) -> "Images":
    """Opens the data set and looks it over; raises one ConfigError with everything that is wrong with it."""
    wrong = transforms.faults(data.augment)
    if not 2 <= data.num_classes <= 256:
        wrong.append(f"num_classes: expected 2 to 256, background included, found {data.num_classes}")
    try:
        source = open_source(data.source, data.options, num_classes=data.num_classes)
    except ConfigError as error:
        _refuse(data, [str(error), *wrong])
    wrong += source.faults
    examples, facts, unusable = _look_over(data, source)
    wrong += unusable
    if wrong:
        _refuse(data, wrong)
    where, notes = splits.deal(facts, source.allowed, data.split, data.split_seed)
    wrong += [
        f"split {split!r} is empty: {len(source)} examples are too few for shares {data.split}; "
        "add images or enlarge its share in data.split"
        for split, indices in where.items()
        if not len(indices)
    ]
    if wrong:
        _refuse(data, wrong)
    if sum(map(len, source.files)) > DECODED:
        notes.append(f"more than {DECODED} files: only headers were checked, and copies are known by their bytes")
    notes = [*source.notes, *notes]
    for note in notes:
        logging.info("data %s: %s", data.source, note)
    return Images(data, examples, facts, where, notes)


_kept: dict[str, tuple[Examples, list[Facts]]] = {}


def _look_over(data: Data, source: Source) -> tuple[Examples, list[Facts], list[str]]:
    """Examples with their facts and faults; stages that read the same files share one copy in memory."""
    stats = [
        (f, (s := os.stat(f)).st_mtime_ns, s.st_size) for files in source.files for f in files if os.path.exists(f)
    ]
    key = json.dumps([data.source, data.options, data.num_classes, data.image_size, data.workers, stats], default=str)
    if key in _kept:
        examples, facts = _kept[key]
        return examples, facts, []
    examples = Examples(source, data.image_size, cache=data.workers == 0)
    facts, faults = examples.inspect()
    if not faults:
        while len(_kept) > 1:
            _kept.pop(next(iter(_kept)))
        _kept[key] = examples, facts
    return examples, facts, faults


def _refuse(data: Data, wrong: list[str]) -> NoReturn:
    more = [f"... and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else []
    raise ConfigError("\n  ".join([f"the data {data.source!r} cannot be used:", *wrong[:SHOWN], *more]))


class Images(Dataset):
    """Batches are dicts of numpy arrays:

    image uint8 [b, s, s, 3]; mask int32 [b, s, s]; class int32 [b]; labelled bool [b], where it is False the mask is
    zero and the class -1; valid bool [b], False for padding; index int32 [b], the place in the split, -1 for padding.
    """

    item = "image"

    def __init__(
        self,
        data: Data,
        examples: Examples,
        facts: list[Facts],
        where: dict[str, Int[np.ndarray, " n"]],
        notes: Sequence[str],
    ):
        train = [facts[i] for i in where["train"]]
        super().__init__(
            {split: len(indices) for split, indices in where.items()},
            splits.labelled(train, data.labelled, data.split_seed),
            notes,
            workers=data.workers,
        )
        self.data = data
        self.image_classes, self.num_classes = tuple(examples.source.classes), data.num_classes
        self._examples, self._facts, self._where = examples, facts, where

    def shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        return shapes(self.data.image_size, batch_size)

    def example(self, split: str, i: int) -> dict[str, Any]:
        """{"image", "mask", "class", "name"} at the original size."""
        return self._examples.source[int(self._where[split][i])]

    def resized(self, split: str, i: int) -> dict[str, Any]:
        """The same at the size that is trained on: "image" uint8 [s, s, 3], "mask" int32 [s, s]."""
        at = int(self._where[split][i])
        image, mask, label = self._examples[at]
        return {"image": image, "mask": mask.astype(np.int32), "class": label, "name": self._facts[at].name}

    def labels(self, split: str) -> Int[np.ndarray, " n"]:
        return np.array([self._facts[i].label for i in self._where[split]], np.int64)

    def batch(self, split: str, indices: Int[np.ndarray, " b"], share: slice = slice(None)) -> Batch:
        indices = indices[share]
        s, valid = self.data.image_size, indices >= 0
        made = {
            "image": np.zeros((len(indices), s, s, 3), np.uint8),
            "mask": np.zeros((len(indices), s, s), np.int32),
            "class": np.full(len(indices), -1, np.int32),
            "labelled": valid & self._labelled[split][indices],
            "valid": valid,
            "index": indices.astype(np.int32),
        }
        for row, i in enumerate(indices):
            if valid[row]:
                made["image"][row], mask, label = self._examples[int(self._where[split][i])]
                if made["labelled"][row]:
                    made["mask"][row], made["class"][row] = mask, label
        return made


def shapes(image_size: int, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of images as a step sees it."""
    each = {
        "image": ((image_size, image_size, 3), jnp.float32),
        "mask": ((image_size, image_size), jnp.int32),
        "class": ((), jnp.int32),
        "labelled": ((), jnp.bool),
        "valid": ((), jnp.bool),
        "index": ((), jnp.int32),
    }
    return {k: jax.ShapeDtypeStruct((batch_size, *shape), dtype) for k, (shape, dtype) in each.items()}
