"""From a `Data` config to batches: `build` finds what is wrong, `Dataset` deals out examples by global step."""

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import grain
import numpy as np
from absl import flags, logging
from jaxtyping import Int

from kdjax.config import ConfigError, Data
from kdjax.data import augment, splits
from kdjax.data.examples import DECODED, Examples
from kdjax.data.source import Facts, Source, open_source

SHOWN = 40  # faults that one message lists in full

Batch = dict[str, np.ndarray]


def build(data: Data) -> "Dataset":
    """Opens the data set and looks it over; raises one ConfigError with everything that is wrong with it."""
    wrong = augment.faults(data.augment)
    if not 2 <= data.num_classes <= 256:
        wrong.append(f"num_classes: expected 2 to 256, background included, found {data.num_classes}")
    try:
        source = open_source(data.source, data.options, data.num_classes)
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
    return Dataset(data, examples, facts, where, notes)


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


class Dataset:
    """Batches are dicts of numpy arrays:

    image uint8 [b, s, s, 3]; mask int32 [b, s, s]; class int32 [b]; labelled bool [b], where it is False the mask is
    zero and the class -1; valid bool [b], False for padding; index int32 [b], the place in the split, -1 for padding.

    With `processes` > 1 each process reads its own contiguous share of the same global batch.
    """

    def __init__(
        self,
        data: Data,
        examples: Examples,
        facts: list[Facts],
        where: dict[str, Int[np.ndarray, " n"]],
        notes: Sequence[str],
    ):
        self.data, self.notes = data, tuple(notes)
        self.image_classes, self.num_classes = tuple(examples.source.classes), data.num_classes
        self.sizes = {split: len(indices) for split, indices in where.items()}
        self._examples, self._facts, self._where = examples, facts, where
        self._labelled = {split: np.ones(n, bool) for split, n in self.sizes.items()}
        train = [facts[i] for i in where["train"]]
        self._labelled["train"] = splits.labelled(train, data.labelled, data.split_seed)

    def steps_per_epoch(self, batch_size: int) -> int:
        return max(1, self.sizes["train"] // batch_size)

    def train(
        self,
        batch_size: int,
        *,
        seed: int,
        start: int = 0,
        labelled_only: bool = False,
        process: int = 0,
        processes: int = 1,
    ) -> Iterator[Batch]:
        """Batches of step `start`, `start` + 1, ... without end, shuffled anew in each pass.

        `labelled_only` leaves out the examples that have no label: a stage without teachers can learn nothing of them.
        """
        share = _share(batch_size, process, processes)
        chosen = np.flatnonzero(self._labelled["train"]) if labelled_only else np.arange(self.sizes["train"])
        order = grain.MapDataset.source(chosen.tolist()).shuffle(seed=seed % 2**32).repeat().batch(batch_size)[start:]
        return self._read(order.map(_Reader(self, "train", share)))

    def evaluate(self, split: str, batch_size: int, *, process: int = 0, processes: int = 1) -> Iterator[Batch]:
        """The split once, in order; the last batch is padded."""
        share = _share(batch_size, process, processes)
        n = self.sizes[split]
        rows = np.arange(-(-n // batch_size) * batch_size).reshape(-1, batch_size)
        rows = np.where(rows < n, rows, -1)
        return self._read(grain.MapDataset.source(list(rows)).map(_Reader(self, split, share)))

    def example(self, split: str, i: int) -> dict[str, Any]:
        """{"image", "mask", "class", "name"} at the original size."""
        return self._examples.source[int(self._where[split][i])]

    def resized(self, split: str, i: int) -> dict[str, Any]:
        """The same at the size that is trained on: "image" uint8 [s, s, 3], "mask" int32 [s, s]."""
        at = int(self._where[split][i])
        image, mask, label = self._examples[at]
        return {"image": image, "mask": mask.astype(np.int32), "class": label, "name": self._facts[at].name}

    def batch(self, split: str, indices: Int[np.ndarray, " b"]) -> Batch:
        """The examples at these places of the split; -1 gives padding."""
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

    def _read(self, batches: grain.MapDataset) -> Iterator[Batch]:
        if self.data.workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # grain's workers read flags, which nobody has parsed in a notebook
            options = grain.MultiprocessingOptions(num_workers=self.data.workers, per_worker_buffer_size=2)
            return iter(batches.to_iter_dataset(grain.ReadOptions(1, 2)).mp_prefetch(options))
        threads = min(4, os.cpu_count() or 1)
        return iter(batches.to_iter_dataset(grain.ReadOptions(threads, 2 * threads)))


class _Reader:
    """Reads one process's share of a global batch of indices."""

    def __init__(self, dataset: Dataset, split: str, share: slice):
        self.dataset, self.split, self.share = dataset, split, share

    def __call__(self, indices: Int[np.ndarray, " b"]) -> Batch:
        return self.dataset.batch(self.split, indices[self.share])


def _share(batch_size: int, process: int, processes: int) -> slice:
    if batch_size % processes:
        raise ConfigError(
            f"batch_size {batch_size} does not divide over {processes} processes; "
            f"use a multiple, such as {-(-batch_size // processes) * processes}"
        )
    local = batch_size // processes
    return slice(process * local, (process + 1) * local)
