"""Images: `build` looks for all that is wrong with them, `Images` makes their batches."""

import copy
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
from absl import logging
from jaxtyping import Bool, Int

from kdjax.config import ConfigError, Data
from kdjax.data import splits, transforms
from kdjax.data.dataset import Batch, Dataset
from kdjax.data.fields import COMMON, LABELS, TEXT_THERE, Field, known, with_flags
from kdjax.data.images.examples import DECODED, Examples, squared
from kdjax.data.images.files import CLASS, IMAGE, MASK, upright_size
from kdjax.data.source import Facts, Source, complete, open_source

SHOWN = 40  # faults that one message lists in full


class Opened(NamedTuple):
    """Data that can be used, looked over and dealt out."""

    data: Data
    source: Source
    examples: Examples
    facts: list[Facts]
    where: dict[str, Int[np.ndarray, " n"]]  # the places of each split
    notes: list[str]


def build(data: Data, parts: int = 1) -> "Images":
    """Opens the data set and looks it over; raises one ConfigError with everything that is wrong with it."""
    opened = look_over(data)
    return Images(opened.data, opened.examples, opened.facts, opened.where, told(data, opened.notes))


def look_over(data: Data) -> Opened:
    """Opens the data set; raises one ConfigError with everything that is wrong with it."""
    try:
        given = {"num_classes": data.num_classes, "mask_names": data.classes or None}
        source = complete(open_source(data.source, data.options, **given))
        data = counted(data, source)
    except ConfigError as error:
        refuse(data, [str(error), *_field_faults(data, {"image": IMAGE, "class": CLASS})])
    faults = [*source.faults, *(_field_faults(data, source.fields) if source.fields else [])]
    examples, facts, unusable = _inspected(data, source)
    faults += [*unusable, *_class_faults(data, source, facts)]
    if faults:
        refuse(data, faults)
    where, notes = splits.deal(facts, source.allowed, data.split, data.split_seed)
    faults += [
        f"split {split!r} is empty: {len(source)} examples are too few for shares {data.split}; "
        f"add {'images' if 'image' in source.fields else 'records'} or enlarge its share in data.split"
        for (split, indices), share in zip(where.items(), data.split, strict=True)
        if not len(indices) and share
    ]
    if faults:
        refuse(data, faults)
    if max(len(source), sum(map(len, source.files))) > DECODED and source.files:
        notes.append(f"more than {DECODED} files: only headers were checked, and copies are known by their bytes")
    return Opened(data, source, examples, facts, where, [*source.notes, *notes, *_dark(examples)])


def told(data: Data, notes: list[str]) -> list[str]:
    """These notes, which a person has then seen."""
    for note in notes:
        logging.info("data %s: %s", data.source, note)
    return notes


def _dark(examples: Examples) -> list[str]:
    """A note on images that use a few of the bits of their files, which are read by the same rule as all others."""
    bits = next((bits for bits in (10, 12) if examples.brightest <= (2**bits - 1) // 257), None)
    if bits is None:
        return []
    return [
        f"no pixel of {len(examples)} images is above {examples.brightest} of 255: nearly black; if they are grey, of "
        f"{bits} bits in files of 16, set the option bits={bits} of the data"
    ]


def counted(data: Data, source: Source) -> Data:
    """The data with their number of classes, which the source tells where the config does not."""
    if data.num_classes is not None:
        return data
    counted_data = copy.copy(data)
    masked = any(field.kind == "mask" for field in source.fields.values())
    of_source, of_images = getattr(source, "num_classes", None), 0 if masked else len(source.classes)
    counted_data.num_classes = of_images or of_source
    if not counted_data.num_classes and not source.faults:
        raise ConfigError("num_classes: this reader does not tell how many classes there are; set it")
    return counted_data


def _field_faults(data: Data, fields: Mapping[str, Field]) -> list[str]:
    """What of the config does not fit data of these fields."""
    faults = transforms.faults(data.augment, fields)
    if TEXT_THERE not in fields and not any(field.kind == "image" for field in fields.values()):
        faults.append(f"expected examples with an image, uint8 [h, w, 3], found {', '.join(fields)}")
    if taken := sorted({*COMMON, *(known(name) for name in labels_of(fields))} & set(fields)):
        faults.append(f"fields {', '.join(taken)} have a meaning of their own in a batch; rename them in the reader")
    largest = 256 if any(field.kind == "mask" for field in fields.values()) else 1 << 24
    if data.classes and not any(field.kind == "mask" for field in fields.values()):
        faults.append(f"classes: {', '.join(data.classes)} would name the classes of masks, and this data has none")
    if data.num_classes is not None and not 2 <= data.num_classes <= largest:
        expected = "2 to 256, background included" if largest == 256 else "at least 2"
        faults.append(f"num_classes: expected {expected}, found {data.num_classes}")
    return faults


_shared: dict[str, tuple[Examples, list[Facts]]] = {}


def _inspected(data: Data, source: Source) -> tuple[Examples, list[Facts], list[str]]:
    """Examples with their facts and faults; stages that read the same files share one copy in memory."""
    stats = [
        (f, (s := os.stat(f)).st_mtime_ns, s.st_size) for files in source.files for f in files if os.path.exists(f)
    ]
    values = getattr(source, "values", ())  # of masks, which may be ids to one stage and found by another
    digest = getattr(source, "digest", "")  # of what is in no file of its own
    reading = [data.source, data.options, data.num_classes, data.classes, values, digest, data.image_size, data.workers]
    key = json.dumps([reading, stats], default=str)
    if key in _shared:
        examples, facts = _shared[key]
        return examples, facts, []
    most = 256 if source.faults or data.num_classes is None else data.num_classes  # what is wrong is said once
    examples = Examples(source, data.image_size, cache=data.workers == 0, num_classes=most)
    facts, faults = examples.inspect()
    if not faults:
        while len(_shared) > 1:
            _shared.pop(next(iter(_shared)))
        _shared[key] = examples, facts
    return examples, facts, faults


def refuse(data: Data, faults: list[str]) -> NoReturn:
    more = [f"... and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
    raise ConfigError("\n  ".join([f"the data {data.source!r} cannot be used:", *faults[:SHOWN], *more]))


class Images(Dataset):
    """Batches are dicts of numpy arrays: the fields that the source declares, and beside each label NAME a bool [b]
    NAME_known, False where an example lacks it or `data.labelled` withholds it: there it is padding.

    image uint8 [b, s, s, 3]; mask int32 [b, s, s]; class int32 [b], -1 where it is not known; valid bool [b], False for
    padding; index int32 [b], the place in the split, -1 for padding; view int32 [b]. Where classes are mixed, target
    float32 [b, k] is the class as one-hot; a training step adds clean_image.
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
        super().__init__(
            {split: len(indices) for split, indices in where.items()},
            _labelled([facts[i] for i in where["train"]], data, len(labels_of(examples.fields))),
            notes,
            workers=data.workers,
            groups=[facts[i].test_set for i in where["test"]],
        )
        self.data, self.views, self.copies = data, data.views, data.copies
        self.num_classes = data.class_count
        self.facts = {"num_classes": self.num_classes}
        ids = range(1 + max((fact.label for fact in facts), default=0))
        self.image_classes = tuple(examples.source.classes) or tuple(map(str, ids))
        self.kinds = self.image_classes
        self.mask_classes = _mask_classes(data, examples.source)
        written = transforms.writes(data.augment, examples.fields, self.num_classes)
        self.fields = {**with_flags({**examples.fields, **written}), **COMMON}
        self._mixes = "class" in examples.fields and "target" in written
        self._examples, self._facts, self._where = examples, facts, where

    @property
    def picture(self) -> str:
        """The name of the image that is shown of an example."""
        return next(name for name, field in self._examples.fields.items() if field.kind == "image")

    def fact(self, name: str) -> Any:
        return class_weights(self.class_counts("train")) if name == "class_weights" else super().fact(name)

    def class_counts(self, split: str) -> Int[np.ndarray, " k"]:
        """The pixels of each class in the masks of a split that may be used; of data without masks, its images."""
        counts = np.zeros(self.num_classes, np.int64)
        masks = [name for name, field in self._examples.fields.items() if field.kind == "mask"]
        for i in self._where[split][self._labelled[split]]:
            arrays = self._examples[int(i)]
            for label in [arrays[name] for name in masks or ["class"] if name in arrays]:
                counts += np.bincount(np.ravel(label), minlength=self.num_classes)[: self.num_classes]
        return counts

    def example(self, split: str, i: int) -> dict[str, Any]:
        """The example as the source has it: images and masks at their original size."""
        return self._examples.source[int(self._where[split][i])]

    def resized(self, split: str, i: int) -> dict[str, Any]:
        """The fields and the name of an example at the size that is trained on: "image" uint8 [s, s, 3], "mask" int32
        [s, s]; without the labels that it lacks."""
        at = int(self._where[split][i])
        arrays = {name: array.astype(self._examples.fields[name].dtype) for name, array in self._examples[at].items()}
        return {**arrays, "name": self._facts[at].name}

    def original_sizes(self, split: str, most: int) -> list[tuple[int, int]]:
        """(height, width) of the images in their files; of what is not in files so many examples are looked at."""
        where, stored = self._where[split], self._examples.source.files
        if "image" not in self.fields:
            return []
        if not stored:
            return [self._examples.source[int(i)][self.picture].shape[:2] for i in where[:most]]
        return [upright_size(stored[int(i)][0]) for i in where if stored[int(i)]]

    def called(self, split: str) -> tuple[str, list[str]]:
        return "name", [self._facts[i].name for i in self._where[split]]

    def labels(self, split: str) -> Int[np.ndarray, " n"]:
        return np.array([self._facts[i].label for i in self._where[split]], np.int64)

    def content(self, split: str) -> list[bytes]:
        return [self._examples.digests[int(i)] for i in self._where[split]]

    def batch(self, split: str, indices: Int[np.ndarray, " b"], share: slice = slice(None)) -> Batch:
        indices = indices[share]
        valid = indices >= 0
        labelled = valid & self._labelled[split][indices]
        stored = with_flags(self._examples.fields)
        batch = {name: field.rows(len(indices)) for name, field in stored.items()}
        for row, i in enumerate(indices):
            if not valid[row]:
                continue
            for name, array in self._examples[int(self._where[split][i])].items():
                if (flag := known(name)) not in stored:
                    batch[name][row] = array
                elif labelled[row]:
                    batch[name][row], batch[flag][row] = array, True
        if self._mixes:
            one_hot = batch["class"][:, None] == np.arange(self.num_classes)
            batch |= {"target": one_hot.astype(np.float32), known("target"): batch[known("class")].copy()}
        return {**batch, "valid": valid, "index": indices.astype(np.int32), "view": np.zeros(len(indices), np.int32)}


def _mask_classes(data: Data, source: Source) -> tuple[str, ...]:
    """The names of the mask's classes, background first; () where nobody has said them."""
    values = tuple(getattr(source, "values", ()))
    if data.classes:
        return ("background", *data.classes)
    named = [value if isinstance(value, str) else f"value {value}" for value in values[1:]]
    return ("background", *named) if len(values) > 2 and values != tuple(range(len(values))) else ()


def class_weights(counts: Int[np.ndarray, " k"]) -> tuple[float, ...]:
    """A weight for each class, one over the root of its share, with mean 1 over all that was counted.

    One over the share itself would make a pixel in ten thousand outweigh all others. A class that does not occur has 1.
    """
    shares = counts / max(counts.sum(), 1)
    weights = 1 / np.sqrt(np.where(shares > 0, shares, 1.0))
    mean = (weights * shares).sum() or 1.0
    return tuple(round(float(w / mean), 4) if share > 0 else 1.0 for w, share in zip(weights, shares, strict=True))


def labels_of(fields: Mapping[str, Field]) -> list[str]:
    return [name for name, field in fields.items() if field.kind in LABELS]


def _labelled(facts: list[Facts], data: Data, labels: int) -> Bool[np.ndarray, " n"]:
    """Which of these examples have a label that may be used."""
    has = np.array([len(fact.missing) < labels for fact in facts], bool)
    has[has] = splits.labelled([fact for fact, h in zip(facts, has, strict=True) if h], data.labelled, data.split_seed)
    return has


def _class_faults(data: Data, source: Source, facts: list[Facts]) -> list[str]:
    """The faults of a number of classes that does not fit the classes that there are."""
    if "class" not in source.fields or any(field.kind == "mask" for field in source.fields.values()):
        return []  # of data with masks it counts the classes of the mask
    largest = max((fact.label for fact in facts), default=-1)
    if source.classes and len(source.classes) != data.num_classes:
        return [
            f"num_classes: expected {len(source.classes)}, as many as there are classes "
            f"({', '.join(source.classes[:4])}{', ...' if len(source.classes) > 4 else ''}), found {data.num_classes}; "
            f"set num_classes={len(source.classes)}"
        ]
    if largest >= data.class_count:
        return [f"num_classes: expected more than the largest class, {largest}, found {data.num_classes}"]
    return []


def shapes(image_size: int, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of images with masks and classes, for callers without a data set."""
    stored = {
        name: squared(field, image_size) for name, field in {"image": IMAGE, "mask": MASK, "class": CLASS}.items()
    }
    return {name: field.shapes(batch_size) for name, field in {**with_flags(stored), **COMMON}.items()}
