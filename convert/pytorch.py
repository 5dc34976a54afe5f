"""What torch.save has written, read without PyTorch: zip archives, and the legacy files of one pickle after the other.

A pickle is followed as data (`convert.pickled`). Sizes are those that the archive's directory, the pickle and the file
itself tell, and have to agree before any tensor is read; a tensor is read from its place in the file.
"""

import math
import re
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from convert.pickled import Global, Pickle, PickleFault, Strange, TooMuch, put
from convert.tensor import SourceError, Tensor, dtype_of, fault_of, few, line
from kdjax.weights.files import SteadyFile

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # what a legacy file begins with
PICKLE = 1 << 26  # bytes at most of the pickle in an archive
UNPACKED = 2, 1 << 26  # an archive holds at most so many times its size, and so many bytes more
TOGETHER = 4, 1 << 20  # as do the tensors of a file, which may share their numbers
RANK = 32
THINGS, DEPTH = 500_000, 20  # tensors, numbers, texts and what holds them; one in the other
AGAIN = "fetch it again, it may have been cut off"
RESAVE = "where you trust it, save its weights alone: torch.save(model.state_dict(), PATH)"

STORAGES = {  # PyTorch's names of kinds of numbers
    **{f"{kind}Storage": name for kind, name in (("Double", "float64"), ("Float", "float32"), ("Half", "float16"))},
    **{f"{kind}Storage": name for kind, name in (("Long", "int64"), ("Int", "int32"), ("Short", "int16"))},
    **{f"{kind}Storage": name for kind, name in (("Char", "int8"), ("Byte", "uint8"), ("Bool", "bool"))},
    **{"BFloat16Storage": "bfloat16", "ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128"},
    **{"QInt8Storage": "qint8", "QUInt8Storage": "quint8", "QInt32Storage": "qint32", "UntypedStorage": "uint8"},
}
SIZES = {"qint8": 1, "quint8": 1, "qint32": 4}
# What plain weights are made of, and harmless things that lie beside them.
HARMLESS = (
    r"collections\.(OrderedDict|Counter|defaultdict)|(builtins|__builtin__)\.(set|frozenset|bytearray|complex)"
    r"|_codecs\.encode|torch\._utils\._rebuild_\w+|torch\.(storage\.)?\w*Storage|torch\.(Size|Tensor|device)"
    r"|torch\.([a-z]+\d+\w*|bool|strided|sparse_\w+|per_\w+|\w+_format)"
    r"|torch\.nn\.parameter\.Parameter|torch\.serialization\._get_layout"
)

Span = Callable[[int, int], np.ndarray]  # (offset, bytes) -> these


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """Numbers in a row, under a key in the file."""

    key: str
    kind: str
    count: int

    @property
    def itemsize(self) -> int:
        return SIZES.get(self.kind) or dtype_of(self.kind).itemsize


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A tensor as the pickle tells it: some of a storage's numbers."""

    kind: str
    shape: tuple[int, ...]
    storage: Storage | None = None
    offset: int = 0
    strides: tuple[int, ...] = ()
    fault: str = ""

    @property
    def span(self) -> tuple[int, int]:
        """(the first byte, how many) of the storage."""
        size = dtype_of(self.kind).itemsize
        reach = sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        return self.offset * size, (1 + reach) * size if math.prod(self.shape) else 0


@dataclass(frozen=True, slots=True)
class Record:
    """The bytes of a storage in the file."""

    size: int
    read: Span

    @classmethod
    def of(cls, content: bytes) -> "Record":
        array = np.frombuffer(content, np.uint8)
        return cls(len(array), lambda offset, n: array[offset : offset + n])


def read_archive(path: Path) -> dict:
    """Nested dictionaries of Tensors, numbers and texts: what the zip archive of torch.save holds."""
    file, entries = SteadyFile.at(path), _entries(path)
    _check_size(path, file.size, entries)
    packed = [e for name, e in entries.items() if name.startswith("data/") and e.compress_type != zipfile.ZIP_STORED]
    beside = [entries[name] for name in ("data.pkl", "byteorder") if name in entries]
    data, *more = _contents(path, [*beside, *packed])
    if len(beside) > 1 and more.pop(0) != b"little":
        raise SourceError(f"{path}: written by a big-endian machine, and only little-endian files are read; {RESAVE}")
    unpacked = {entry.filename: Record.of(content) for entry, content in zip(packed, more, strict=True)}
    records = {
        name.removeprefix("data/"): unpacked.get(entry.filename) or _stored(path, file, entry)
        for name, entry in entries.items()
        if name.startswith("data/")
    }
    pickle = Pickle(BytesIO(data), _made, _storage)
    return _told(path, pickle, pickle.load, lambda: records, file.size)


def read_legacy(path: Path) -> dict:
    """As `read_archive`, of a file that torch.save wrote before version 1.6."""
    file = SteadyFile.at(path)
    with open(path, "rb") as stream:
        storages: dict[str, Storage] = {}

        def storage(told: Any) -> Storage:
            found = _storage(told)
            return storages.setdefault(found.key, found)

        pickle = Pickle(stream, _made, storage)

        def load() -> Any:
            if pickle.load() != MAGIC or pickle.load() != PROTOCOL:
                raise PickleFault("a pickle that torch.save has not written")
            system = pickle.load()
            if not isinstance(system, dict) or not system.get("little_endian"):
                raise PickleFault("written by a big-endian machine")
            return pickle.load()

        def records() -> dict[str, Record]:
            keys, found, at = pickle.load(), {}, stream.tell()
            for key in keys if isinstance(keys, list) else ():
                if not isinstance(key, str) or key not in storages or key in found:
                    raise PickleFault(f"announces numbers {key!r}, which no tensor has")
                count, size = storages[key].count, storages[key].count * storages[key].itemsize
                stream.seek(at)
                if at + 8 + size > file.size or int.from_bytes(stream.read(8), "little") != count:
                    raise PickleFault(f"expected {count:,} numbers at byte {at:,}, found fewer or others")
                found[key] = Record(size, lambda offset, n, at=at + 8: file.read(at + offset, n))
                at += 8 + size
            return found

        return _told(path, pickle, load, records, file.size)


# -- the file --------------------------------------------------------------------------------------------------------


def _entries(path: Path) -> dict[str, zipfile.ZipInfo]:
    """The files in an archive, without the folder that torch.save puts them in."""
    try:
        with zipfile.ZipFile(path) as archive:
            several = archive.infolist()
    except Exception as error:  # of a damaged directory, it can be any
        raise SourceError(f"{path}: no whole zip archive ({line(error)}); {AGAIN}") from error
    entries = {entry.filename.partition("/")[2]: entry for entry in several}
    names = [entry.filename for entry in several]
    if "constants.pkl" in entries:
        raise SourceError(
            f"{path}: a TorchScript program; save its weights: torch.save(torch.jit.load(OLD).state_dict(), NEW)"
        )
    if "data.pkl" not in entries:
        raise SourceError(f"{path}: a zip archive that is not of torch.save, it holds {few(names)}; unpack it first")
    if len(entries) != len(names):
        raise SourceError(f"{path}: a zip archive that has some of its files twice; {RESAVE}")
    return entries


def _check_size(path: Path, size: int, entries: Mapping[str, zipfile.ZipInfo]) -> None:
    """Refuses what unpacks to far more than it is."""
    unpacked, told, (times, more) = sum(e.file_size for e in entries.values()), entries["data.pkl"].file_size, UNPACKED
    if unpacked > times * size + more:
        raise SourceError(f"{path}: {size:,} bytes that would unpack to {unpacked:,}; {RESAVE}")
    if told > PICKLE:
        raise SourceError(f"{path}: {told:,} bytes that say what is in it, expected at most {PICKLE:,}; {RESAVE}")


def _contents(path: Path, entries: list[zipfile.ZipInfo]) -> list[bytes]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [archive.read(entry) for entry in entries]
    except Exception as error:  # of what was packed in any way, and is damaged
        raise SourceError(f"{path}: no whole zip archive ({line(error)}); {AGAIN}") from error


def _stored(path: Path, file: SteadyFile, entry: zipfile.ZipInfo) -> Record:
    """Of what lies in the archive as it is; its name, there once more, lies before it."""
    misplaced = f"{path}: no whole zip archive ({entry.filename} is not where its directory says); {AGAIN}"
    if entry.header_offset + 30 + entry.file_size > file.size or entry.compress_size != entry.file_size:
        raise SourceError(misplaced)

    def read(offset: int, n: int) -> np.ndarray:
        head = file.read(entry.header_offset, 30).tobytes()
        at = entry.header_offset + 30 + sum(struct.unpack("<HH", head[26:]))
        if head[:4] != b"PK\3\4" or at + entry.file_size > file.size:
            raise SourceError(misplaced)
        return file.read(at + offset, n)

    return Record(entry.file_size, read)


# -- the pickle ------------------------------------------------------------------------------------------------------


def _told(
    path: Path, pickle: Pickle, load: Callable[[], Any], records: Callable[[], Mapping[str, Record]], size: int
) -> dict:
    try:
        content = load()
        if asked := _foreign(pickle.names):
            raise SourceError(f"{path}: refused, since reading it would run {few(asked)}; {RESAVE}")
        tree = Tree(records(), size).of(content)
    except PickleFault as error:
        if asked := _foreign(pickle.names):
            raise SourceError(f"{path}: refused, since reading it would run {few(asked)}; {RESAVE}") from error
        if isinstance(error, TooMuch):
            raise SourceError(f"{path}: {line(error)}; {RESAVE}") from error
        raise SourceError(f"{path}: no whole PyTorch file ({line(error)}); {AGAIN}") from error
    if isinstance(tree, Tensor):
        raise SourceError(f"{path}: expected a dictionary of tensors, found a single tensor; {RESAVE}")
    return tree if isinstance(tree, dict) else {}


def _foreign(names: Iterable[str]) -> list[str]:
    return [name for name in names if not re.fullmatch(HARMLESS, name)]


def _storage(told: Any) -> Storage:
    """Of what stands in the pickle for one: ("storage", its class, key, device, how many numbers, no view of it)."""
    match told:
        case ("storage", Global(name), str(key), str(), int(count), *view) if count >= 0 and view in ([], [None]):
            if kind := STORAGES.get(name.rpartition(".")[2]):
                return Storage(key, kind, count)
    raise PickleFault("numbers of a kind that is not known")


def _made(function: str, arguments: tuple) -> Any:
    """What a function of torch.save's pickles makes of its arguments; none is called."""
    name = function.removeprefix("torch._utils._rebuild_")
    match name, arguments:
        case "collections.OrderedDict", ():
            return {}
        case "collections.OrderedDict", (list(pairs), *_):
            return put({}, [part for pair in pairs if isinstance(pair, list | tuple) for part in pair[:2]])
        case "torch.Size", (list() | tuple() as sizes,):
            return tuple(sizes)
        case "tensor_v2", (Storage() as storage, _, shape, _, _, _, dict(bits)) if any(bits.values()):
            return _faulty(storage.kind, shape, f"one of {storage.kind} that is turned round when it is read")
        case "tensor" | "tensor_v2", (Storage() as storage, offset, shape, strides, *_):
            return _view(storage.kind, shape, storage, offset, strides)
        case "tensor_v3", (Storage() as storage, offset, shape, strides, _, _, Global(kind), *_):
            return _view(kind.removeprefix("torch."), shape, storage, offset, strides)
        case "parameter" | "parameter_with_state", (View() as view, *_):
            return view
        case "qtensor", (Storage() as storage, _, shape, *_):
            return _faulty(storage.kind, shape, f"a quantised one of {storage.kind}")
        case "sparse_tensor", (_, (View(), View() as values, shape, *_)):
            return _faulty(values.kind, shape, f"a sparse one of {values.kind}")
        case "sparse_tensor", (_, (View(), View(), View() as values, shape, *_)):
            return _faulty(values.kind, shape, f"a sparse one of {values.kind}")
        case "nested_tensor", (View() as values, *_):
            return _faulty(values.kind, (), f"a nested one of {values.kind}")
        case "meta_tensor_no_storage", (Global(kind), shape, *_):
            return _faulty(kind.removeprefix("torch."), shape, "one without data")
    if function.startswith("torch._utils._rebuild_"):
        return _faulty("object", (), f"one that {function} makes")
    return Strange(function)


def _view(kind: str, shape: Any, storage: Storage, offset: Any, strides: Any) -> View:
    if not _natural(shape) or not _natural(strides) or len(shape) != len(strides) or not _natural((offset,)):
        raise PickleFault("a tensor whose shape is none")
    return View(kind, tuple(shape), storage, offset, tuple(strides), fault_of(dtype_of(kind), shape, kind))


def _faulty(kind: str, shape: Any, fault: str) -> View:
    return View(kind, tuple(shape) if _natural(shape) else (), fault=fault)


def _natural(numbers: Any) -> bool:
    whole = isinstance(numbers, list | tuple) and all(type(n) is int and 0 <= n < 1 << 48 for n in numbers)
    return whole and len(numbers) <= RANK


class Tree:
    """Tensors, numbers and texts in dictionaries, of what a pickle says.

    Of other things, lists that hold tensors are kept, as if named. What is shared is there as often as it is told,
    so that a small file can be endless: the bounds are on what is told.
    """

    def __init__(self, records: Mapping[str, Record], size: int):
        self.records, self.left, (times, more) = records, THINGS, TOGETHER
        self.bytes_left, self.tensors = times * size + more, 0

    def of(self, value: Any, name: str = "", depth: int = 0) -> Any:
        self.left -= 1
        if self.left < 0 or depth > DEPTH:
            raise TooMuch(f"expected at most {THINGS:,} things in it, {DEPTH} deep, found more")
        if isinstance(value, View):
            return self._tensor(name, value)
        if isinstance(value, dict):
            return {str(k): made for k, x in value.items() if (made := self.of(x, str(k), depth + 1)) is not None}
        if isinstance(value, list | tuple):
            before = self.tensors
            made = {str(i): made for i, x in enumerate(value) if (made := self.of(x, str(i), depth + 1)) is not None}
            return made if self.tensors > before else None
        return value if isinstance(value, bool | int | float | str) else None

    def _tensor(self, name: str, view: View) -> Tensor:
        dtype, self.tensors = dtype_of(view.kind), self.tensors + 1
        if view.fault or view.storage is None:
            return Tensor(name, view.shape, dtype, lambda: np.empty(0), view.fault)
        record, (first, count) = self.records.get(view.storage.key), view.span
        told = view.storage.count * view.storage.itemsize
        if record is None or record.size != told or first + count > told:
            raise PickleFault(f"{name}: its numbers are not where the file says")
        self.bytes_left -= math.prod(view.shape) * dtype.itemsize
        if self.bytes_left < 0:
            raise TooMuch(f"expected tensors of at most {TOGETHER[0]} times the file's bytes together, found more")
        strides = tuple(stride * dtype.itemsize for stride in view.strides)

        def get() -> np.ndarray:
            return np.ndarray(view.shape, dtype, record.read(first, count), 0, strides)

        return Tensor(name, view.shape, dtype, get)
