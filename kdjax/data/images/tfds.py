"""Data sets of TensorFlow Datasets, read by random access and without TensorFlow: `pip install kdjax[tfds]`."""

import hashlib
import importlib
from typing import Any, ClassVar

import numpy as np

from kdjax.config import ConfigError, nearest
from kdjax.data.fields import Field
from kdjax.data.images.files import CLASS, IMAGE, read_image
from kdjax.data.source import Facts, facts_of, own_splits

SPLIT_NAMES = {"train": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val", "test": "test"}


class Tfds:
    """`name` as TFDS has it ("cifar100", "beans:1.0.0"), in `data_dir` or where TFDS keeps its data by itself.

    What is not there yet is downloaded and prepared as array_record, which some sets need TensorFlow for. `image` and
    `label` are the names of the features; splits that are neither train, validation nor test are left out.
    """

    fields: ClassVar[dict[str, Field]] = {"image": IMAGE, "class": CLASS}
    files: tuple[tuple[str, ...], ...] = ()

    def __init__(self, name: str, data_dir: str = "", image: str = "image", label: str = "label", num_classes: int = 2):
        builder = _builder(name, data_dir or None)
        features, splits = builder.info.features, builder.info.splits
        self.image, self.label, self.faults = image, label, []
        for feature, what in ((image, "image"), (label, "label")):
            if feature not in features:
                self.faults.append(f"{name}: no feature {feature!r}; {nearest(feature, features)} Set {what}=")
        self.classes = tuple(getattr(features[label], "names", None) or ()) if label in features else ()
        chosen = {split: SPLIT_NAMES[split] for split in splits if split in SPLIT_NAMES and not self.faults}
        self._names = list(chosen)
        # TFDS would decode with OpenCV where that is installed, and give other pixels then.
        encoded = {image: importlib.import_module("tensorflow_datasets").decode.SkipDecoding()}
        self._sources = [builder.as_data_source(split=s, decoders=encoded) for s in chosen]
        self._starts = np.cumsum([0, *map(len, self._sources)])
        sizes = np.diff(self._starts).tolist()
        homes = [home for home, size in zip(chosen.values(), sizes, strict=True) for _ in range(size)]
        self.allowed, self.notes = own_splits(homes)
        if left_out := sorted(set(splits) - set(chosen)):
            self.notes.append(f"the splits {', '.join(left_out)} are left out")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, i: int) -> dict[str, Any]:
        record, name = self._record(i)
        return {"image": read_image(name, record[self.image]), "class": self._class(record), "name": name}

    def inspect(self, i: int, decode: bool = True) -> Facts:
        if decode:
            return facts_of(self[i], self.fields, str(i))
        record, name = self._record(i)
        content = hashlib.blake2b(record[self.image], digest_size=16).hexdigest()
        if (label := self._class(record)) is None:
            return Facts(name, "", content, -1, missing=("class",))
        return Facts(name, "", content, label)

    def _class(self, record: dict[str, Any]) -> int | None:
        """None where TFDS has -1, as in a test set whose labels are secret."""
        label = int(record[self.label])
        return label if label >= 0 else None

    def _record(self, i: int) -> tuple[dict[str, Any], str]:
        """The record, its image still encoded, and its name."""
        which = int(np.searchsorted(self._starts, i, side="right")) - 1
        within = i - int(self._starts[which])
        return self._sources[which][within], f"{self._names[which]}_{within:06d}"


def _builder(name: str, data_dir: str | None) -> Any:
    try:
        tfds = importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise ConfigError("'tfds' needs the package tensorflow-datasets: pip install 'kdjax[tfds]'") from error
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        raise ConfigError(f"tfds has no data set {name!r}, neither by name nor in {data_dir}: {error}") from error
    if not builder.info.splits:  # not prepared yet
        builder.download_and_prepare()
    return builder
