"""Folders of CAN logs as graphs to train and test on, kept on disk so that they are built once."""

import hashlib
import inspect
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kdjax.config import ConfigError
from kdjax.data import cache as store
from kdjax.data.can import fields as can_fields
from kdjax.data.can import log as can_log
from kdjax.data.can import messages, parquet, windows
from kdjax.data.can.windows import Mapping
from kdjax.data.graphs.packs import Graphs, joined

SKIPPED = ("suppress", "masquerade")  # attacks that the originals leave out: they take messages away or imitate them


@dataclass(frozen=True)
class LogFile:
    path: Path
    set: str
    name: str


class Can:
    """CAN logs below `root`, CSV, parquet or `candump -L`, in sets: folders `train_01_attack_free/x.csv`,
    `test_01_.../y.csv`, or names `train_01_attack_free__x.parquet`. Where no name begins with train or test, all is to
    train on.

    The logs of a set follow each other by name; no window reaches from one into the next. The data sets of the
    originals have some logs in two training sets; they count twice, as there. `window` and `stride` of 0 are those of
    the generation (`windows`); for `ids`, `payload` and `strict` see `can_log.read_all`.

    Graphs are kept in the folder `cache` ("auto" is kdjax/graphs in the user's cache folder, "" none), for the same
    files and settings.
    """

    kind: ClassVar[str] = "graphs"

    train: Graphs
    test: dict[str, Graphs]
    mapping: Mapping
    num_ids: int  # rows of an embedding, the last for ids that training did not see; 0 where ids are features (A)
    notes: tuple[str, ...]
    files: tuple[str, ...]  # `file` of the graphs counts them
    keepsake: dict[str, Any]  # how other logs are cut as these were
    ids: str  # how ids are written: "hex", "decimal" or "number"

    def __init__(
        self,
        root: str,
        generation: str = "B",
        window: int = 0,
        stride: int = 0,
        ids: str = "auto",
        payload: str = "auto",
        strict: bool = False,
        cache: str = store.AUTO,
    ):
        where = Path(root).expanduser()
        log_files, notes = scan(where)
        reading = {"ids": ids, "payload": payload, "strict": strict}
        cutting = {"generation": generation, "window": window, "stride": stride}
        windows.check(**cutting)
        self.files = tuple(str(file.path) for file in log_files)
        self._settings: dict[str, Any] = {**cutting, "ids": ids, "payload": payload}
        cache_file = None
        if cache:
            cache_file = store.folder(cache, "graphs") / f"{_key(where, log_files, reading | cutting)}.npz"
            if (saved := _kept(cache_file)) is not None:
                sets, about = saved
                self.mapping, self.ids = Mapping(tuple(about["mapping"])), about["ids"]
                self._end(sets, [*notes, *about["notes"]])
                return
        sets, self.mapping, self.ids, new_notes = _build(log_files, reading, cutting)
        if cache_file is not None:
            about = {"mapping": list(self.mapping.ids), "ids": self.ids, "notes": new_notes, "sets": list(sets)}
            arrays = {
                f"{name}/{f.name}": getattr(graphs, f.name) for name, graphs in sets.items() for f in fields(Graphs)
            }
            try:
                store.save(cache_file, arrays, about)
            except OSError as error:
                new_notes = [*new_notes, f"the graphs could not be kept in {cache_file.parent} ({error})"]
        self._end(sets, [*notes, *new_notes])

    def _end(self, sets: dict[str, Graphs], notes: Iterable[str]) -> None:
        self.train = joined([graphs for name, graphs in sets.items() if _is_train(name)])
        self.test = {name: graphs for name, graphs in sets.items() if not _is_train(name)}
        self.num_ids = self.mapping.num_ids if self.mapping.ids else 0
        self.keepsake = windows.keepsake(self.mapping, **self._settings)
        self.notes = tuple(notes)
        if not len(self.train):
            raise ConfigError(f"no training log is longer than a window: {', '.join(self.files)}; use a smaller window")


def scan(root: Path) -> tuple[list[LogFile], list[str]]:
    """The logs below a folder by set and name, and what a person should know about the choice."""
    if not root.is_dir():
        actual = "a file" if root.exists() else "no such folder"
        raise ConfigError(
            f"{root}: expected a folder of CAN logs, found {actual}; set root to the folder that holds them"
        )
    paths = sorted(p for p in root.rglob("*") if can_log.is_log(p))
    logs, lone, skipped = [], [], []
    for path in paths:
        parts = path.relative_to(root).parts
        if any(part.startswith(".") for part in parts):
            continue
        if any(word in path.name.lower() for word in SKIPPED):
            skipped.append(path)
            continue
        flat, double, name = path.stem.partition("__")
        folder = next((part for part in parts[:-1] if _marked(part)), "")
        inside = path.relative_to(root).with_suffix("").as_posix()
        if folder:
            logs.append(LogFile(path, folder, inside))
        elif _marked(flat):
            logs.append(LogFile(path, flat, name if double else path.stem))
        else:
            lone.append(LogFile(path, "train", inside))
    notes = []
    if skipped:
        names = ", ".join(p.relative_to(root).as_posix() for p in skipped)
        notes.append(f"left out, as the originals do, for {' or '.join(SKIPPED)} in their names: {names}")
    if logs and lone:
        names = ", ".join(f.path.relative_to(root).as_posix() for f in lone)
        notes.append(f"left out, since they are in no set whose name begins with train or test: {names}")
    logs = logs or lone
    if not any(_is_train(log.set) for log in logs):
        inside = ", ".join(p.relative_to(root).as_posix() for p in paths[:6]) or "none"
        raise ConfigError(
            f"{root}: expected training logs ({' or '.join(can_log.SUFFIXES)}) such as train_01/x.csv or "
            f"train_01__x.parquet, found {inside}; set root to the folder that holds them"
        )
    logs.sort(key=lambda log: (log.set, log.name))
    for log, other in pairwise(logs):
        if (log.set, log.name) == (other.set, other.name):
            raise ConfigError(f"{log.path} and {other.path.name}: one log in two files; keep one of them")
    return logs, notes


def _marked(name: str) -> bool:
    return name.lower().startswith(("train", "test"))


def _is_train(name: str) -> bool:
    return name.lower().startswith("train")


def _build(log_files: list[LogFile], reading: dict, cutting: dict) -> tuple[dict[str, Graphs], Mapping, str, list[str]]:
    """The graphs of each set, the mapping of the training logs, how ids are written, and notes."""
    logs = can_log.read_all([file.path for file in log_files], **reading)
    training = [log.messages for file, log in zip(log_files, logs, strict=True) if _is_train(file.set)]
    mapping = Mapping.build(training, cutting["generation"])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        work = enumerate(logs)
        parts = list(pool.map(lambda k: windows.graphs(k[1].messages, **cutting, mapping=mapping, file=k[0]), work))
    notes = list(dict.fromkeys(note for log in logs for note in log.notes))
    short = [f"{log.path} ({len(log.messages)})" for log, part in zip(logs, parts, strict=True) if not len(part)]
    if short:
        notes.append(f"too few messages for a window: {', '.join(short)}")
    known = np.array(mapping.ids, np.int64)
    strange = [str(log.path) for log in logs if known.size and not np.isin(log.messages.id, known).any()]
    if strange:
        notes.append(f"no id of these logs is known from the training logs: {', '.join(strange)}")
    sets = {
        name: joined([part for file, part in zip(log_files, parts, strict=True) if file.set == name])
        for name in dict.fromkeys(file.set for file in log_files)
    }
    return sets, mapping, "/".join(sorted({log.ids for log in logs})), notes


# -- kept on disk ----------------------------------------------------------------------------------------------------


def _key(root: Path, log_files: list[LogFile], settings: dict) -> str:
    """The key of the cache; it changes with each file, each setting and the code that builds the graphs."""

    def content(file: LogFile) -> list[str]:
        with open(file.path, "rb") as stream:
            return [str(file.path.relative_to(root)), hashlib.file_digest(stream, "sha256").hexdigest()]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        files = list(pool.map(content, log_files))
    code = [inspect.getsource(module) for module in (can_fields, messages, can_log, parquet, windows)]
    text = json.dumps([str(root.resolve()), files, settings, code], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _kept(path: Path) -> tuple[dict[str, Graphs], dict] | None:
    """The cached graphs; None where the file is missing, damaged or of other fields."""
    if (saved := store.load(path)) is None:
        return None
    arrays, about = saved
    try:
        return {
            name: Graphs(**{f.name: arrays[f"{name}/{f.name}"] for f in fields(Graphs)}) for name in about["sets"]
        }, about
    except KeyError:
        return None
