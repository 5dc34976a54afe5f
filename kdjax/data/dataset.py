"""What every kind of data has in common: which examples come when, found by the number of the step."""

import hashlib
import multiprocessing
import multiprocessing.connection
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar

import grain
import numpy as np
from absl import flags
from jaxtyping import Bool, Int

from kdjax.config import ConfigError, nearest
from kdjax.data.fields import Field, GraphsField

Batch = dict[str, Any]  # arrays, or trees of them, by field


class Dataset(ABC):
    """Examples in the splits train, val and test, dealt out in batches by global step.

    With `processes` > 1 each process reads its own contiguous share of the same global batch. A kind of data says what
    a batch holds (`fields`), how it is made (`batch`) and what one of its examples is called (`item`).

    Where `fields` have "view", it is how many times an example was dealt out before, modulo `views` if that is above 0.
    A training batch deals each of its examples out `copies` times, one round after the other.
    """

    item: ClassVar[str]
    kinds: tuple[str, ...] = ("normal", "attack")  # what class 0 and class 1 are called where one is looked for
    fields: dict[str, Field | GraphsField] = {}  # as a training step sees them
    views: int = 0
    copies: int = 1
    facts: dict[str, Any] = {}  # what options of models may ask of the data
    keepsakes: dict[str, Any] = {}  # file name -> what a model's users must know of its data, left beside its weights

    def __init__(
        self,
        sizes: dict[str, int],
        labelled: Bool[np.ndarray, " n"],
        notes: Sequence[str],
        workers: int = 0,
        groups: Sequence[str] = (),
    ):
        """`groups` names the test set of each example of the split "test", where there are several."""
        self.sizes, self.notes, self.workers = sizes, tuple(notes), workers
        self.groups = tuple(groups) or ("test",) * sizes["test"]
        self.trained_on = np.arange(sizes["train"])  # the examples of the training split that are dealt out
        self._labelled = {split: np.ones(n, bool) for split, n in sizes.items()} | {"train": labelled}

    def fact(self, name: str) -> Any:
        """What an option, or an argument of a loss, asks of the data where it is None."""
        if name not in self.facts:
            raise ConfigError(f"the data do not tell {name}; {nearest(name, self.facts)}")
        return self.facts[name]

    @abstractmethod
    def batch(self, split: str, indices: Int[np.ndarray, " b"], share: slice) -> Batch:
        """That share of the batch of the examples at these places of the split; -1 gives padding."""

    @abstractmethod
    def labels(self, split: str) -> Int[np.ndarray, " n"]:
        """The class of each example, -1 where it has none."""

    @abstractmethod
    def called(self, split: str) -> tuple[str, list[str]]:
        """What tells a person one example from another, and that of each example."""

    @abstractmethod
    def content(self, split: str) -> Iterable[np.ndarray | bytes]:
        """All that a split consists of, or digests of it, in its order."""

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Of each split: the same as long as its examples, their labels and their order are."""
        digests = {split: hashlib.blake2b(digest_size=16) for split in self.sizes}
        for split, digest in digests.items():
            for part in [*self.content(split), self._labelled[split]]:
                digest.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).view(np.uint8).data)
        return {split: digest.hexdigest() for split, digest in digests.items()}

    def axis(self, batch_size: int) -> int:
        """The length of the axis that devices share, in a batch of so many examples."""
        return batch_size

    def order(self, split: str) -> Int[np.ndarray, " n"]:
        """The order in which a split is evaluated."""
        return np.arange(self.sizes[split])

    def shapes(self, batch_size: int) -> dict[str, Any]:
        """The shapes of a batch; `batch_size` is the length of the axis that devices share."""
        return {name: field.shapes(batch_size) for name, field in self.fields.items()}

    def steps_per_epoch(self, batch_size: int) -> int:
        return max(1, len(self.trained_on) // (batch_size // self.copies))

    def train(
        self,
        batch_size: int,
        *,
        seed: int,
        start: int = 0,
        labelled_only: bool = False,
        pool: Int[np.ndarray, " m"] | None = None,
        process: int = 0,
        processes: int = 1,
    ) -> Iterator[Batch]:
        """Batches of step `start`, `start` + 1, ... without end, shuffled anew in each pass.

        `labelled_only` leaves out the examples that have no label: supervised terms can learn nothing of them.
        `pool` names the examples to choose from, where it is not all of them.
        """
        share = _share(batch_size, process, processes)
        chosen = self.trained_on if pool is None else pool
        chosen = chosen[self._labelled["train"][chosen]] if labelled_only else chosen
        order = grain.MapDataset.source(chosen.tolist()).shuffle(seed=seed % 2**32).repeat()
        order = order.map_with_index(_Pass(len(chosen))).batch(batch_size // self.copies)[start:]
        return self._read(order.map(_Reader(self, "train", share, self.copies)))

    def evaluate(
        self,
        split: str,
        batch_size: int,
        *,
        places: Int[np.ndarray, " m"] | None = None,
        process: int = 0,
        processes: int = 1,
    ) -> Iterator[Batch]:
        """The split once, or these places of it; the last batch is padded."""
        share = _share(batch_size, process, processes)
        order = self.order(split) if places is None else places
        rows = np.pad(order, (0, -len(order) % batch_size), constant_values=-1).reshape(-1, batch_size)
        order = grain.MapDataset.source([(row, np.zeros(batch_size, np.int32)) for row in rows])
        return self._read(order.map(_Reader(self, split, share)))

    def _read(self, batches: grain.MapDataset) -> Iterator[Batch]:
        if self.workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # grain's workers read flags, which nobody has parsed in a notebook
            options = grain.MultiprocessingOptions(num_workers=self.workers, per_worker_buffer_size=2)
            return iter(batches.to_iter_dataset(grain.ReadOptions(1, 2)).mp_prefetch(options, end_with_parent))
        threads = min(4, os.cpu_count() or 1)
        return iter(batches.to_iter_dataset(grain.ReadOptions(threads, 2 * threads)))


class _Pass:
    """Says of a place in the order without end in which pass over the pool it lies."""

    def __init__(self, pool: int):
        self.pool = pool

    def __call__(self, place: int, index: int) -> tuple[int, int]:
        return index, place // self.pool


class _Reader:
    """Reads one process's share of a global batch, from its indices and the passes in which they come."""

    def __init__(self, dataset: Dataset, split: str, share: slice, copies: int = 1):
        self.dataset, self.split, self.share, self.copies = dataset, split, share, copies

    def __call__(self, dealt: tuple[Int[np.ndarray, " b"], Int[np.ndarray, " b"]]) -> Batch:
        indices, passes = dealt
        views = np.concatenate([passes * self.copies + copy for copy in range(self.copies)])
        views = views % self.dataset.views if self.dataset.views else views
        batch = self.dataset.batch(self.split, np.tile(indices, self.copies), self.share)
        return {**batch, "view": views[self.share].astype(np.int32)} if "view" in self.dataset.fields else batch


def end_with_parent(worker: int = 0, workers: int = 1) -> None:
    """Called in a reader process: it ends when the process that it reads for ends, however that does; what of shared
    memory is left then is removed by Python's own tracker."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            multiprocessing.connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _share(batch_size: int, process: int, processes: int) -> slice:
    if batch_size % processes:
        raise ConfigError(
            f"batch_size {batch_size} does not divide over {processes} processes; "
            f"use a multiple, such as {-(-batch_size // processes) * processes}"
        )
    local = batch_size // processes
    return slice(process * local, (process + 1) * local)
