"""Foreign checkpoints as a mapping from their own names to arrays that are read on demand; nothing in them is run."""

import importlib
import io
import json
import math
import pickle
import pickletools
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from kdjax.weights import safetensors

# Where several dictionaries of tensors lie side by side, the first of these holds the weights that were trained; an
# average of them (model_ema, ema_state_dict) is taken by `entry` alone.
PREFERRED = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "params", "weights")
BOOKKEEPING = re.compile(r".*(optim|sched|scaler|callbacks|loops|rng).*|opt", re.IGNORECASE)
# What wrappers put before every name.
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "net.", "encoder.", "transformer.", "vit.", "deit.")
FOLDER_FILES = (  # in this order; safetensors first, since they need no torch
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
HEADER = 100_000_000  # bytes at most of the header of a safetensors file, whose length is its first eight bytes
AGAIN = "fetch it again, it may have been cut off"
RESAVE = "where you trust it, save its weights alone: torch.save(model.state_dict(), PATH)"


class SourceError(ValueError):
    """A checkpoint that cannot be read: one line that says what was expected, what was found, and what to do."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """An array of a checkpoint. `fault` says why it cannot be read (sparse, quantised, complex ...), "" if it can."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    get: Callable[[], np.ndarray] = field(repr=False)
    fault: str = ""

    def read(self) -> np.ndarray:
        """Read-only, and a view of the mapped file where the format allows it; no copy is kept."""
        if self.fault:
            raise SourceError(f"{self.name}: expected a dense tensor of real numbers, found {self.fault}")
        array = self.get()
        array.flags.writeable = False
        return array


@dataclass(frozen=True, slots=True, eq=False)
class Source(Mapping[str, Tensor]):
    """The tensors of a checkpoint by their names in it, the wrappers around them taken off.

    `wrappers` are the names of the dictionaries they lay in, from the outside; `others` are further dictionaries of
    tensors that `entry` could have named; `extras` are numbers and texts that lay beside the weights; `metadata` is
    that of safetensors.
    """

    path: Path
    kind: str
    size: int  # bytes
    tensors: Mapping[str, Tensor] = field(repr=False)
    wrappers: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    extras: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def prefix(self) -> str:
        """What all names begin with, put together from `PREFIXES`: "module._orig_mod.", or "" if there is nothing."""
        shared = ""
        while found := next((p for p in PREFIXES if all(name.startswith(shared + p) for name in self)), ""):
            shared += found
        return shared


def open_source(path: str | Path, entry: str = "") -> Source:
    """A PyTorch file (zip or legacy), a Lightning checkpoint, a safetensors file, a Hugging Face folder or index, or
    "hf:owner/name[@revision]"; what it is, its content says.

    The weights are the one dictionary of tensors in it, however deep. Where there are several, the optimiser's are
    left out and the first of `PREFERRED` is taken, else `entry` must name one, such as "model_ema", "a/b" for one in
    another, or "." for the tensors at the top.
    """
    path = _from_hub(str(path)) if str(path).startswith("hf:") else Path(path).expanduser()
    if path.is_dir():
        path = _in_folder(path)
    if not path.is_file():
        raise SourceError(f"{path}: {safetensors.no_file(path)}")
    with open(path, "rb") as file:
        head = file.read(8)
    index = head[:1] == b"{" and int.from_bytes(head, "little") > HEADER
    kind, tree, metadata, size = _read_shards(path) if index else _read_file(path)
    return Source(path, kind, size, *_choose(path, tree, entry), metadata)


def _read_file(path: Path) -> tuple[str, dict, Mapping[str, str], int]:
    """(kind, nested dictionaries of Tensors, numbers and texts, metadata, bytes) of one file."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        raise SourceError(f"{path}: the file is empty; fetch it again")
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        kind, tree = "PyTorch zip archive", _load_torch(path, mapped=_check_archive(path))
    elif int.from_bytes(head[:8], "little") <= HEADER:
        try:
            arrays, metadata = safetensors.views(path)
        except safetensors.WeightsError as error:
            raise SourceError(str(error)) from error
        tree = {k: Tensor(k, a.shape, a.dtype, lambda a=a: a, _fault(a.dtype)) for k, a in arrays.items()}
        return "safetensors", tree, metadata, size
    elif head[:1] == b"\x80" or re.match(rb"\(?c[\w.]+\n[\w.]+\n", head):
        kind, tree = "PyTorch legacy pickle", _load_torch(path, mapped=False)
    elif head.startswith(b"version https://git-lfs"):
        raise SourceError(f"{path}: a pointer of Git LFS, not the file itself; run: git lfs pull")
    else:
        raise SourceError(
            f"{path}: neither a PyTorch nor a safetensors file, it begins with {head[:16]!r}; convert it to one of them"
        )
    if "pytorch-lightning_version" in tree:
        kind = "Lightning checkpoint"
    return kind, tree, {}, size


def _check_archive(path: Path) -> bool:
    """Whether it can be mapped; refuses zip archives that torch.save has not written."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
            names = archive.namelist()
    except Exception as error:  # of a damaged directory, it can be any
        raise SourceError(f"{path}: no whole zip archive ({_line(error)}); {AGAIN}") from error
    if "constants.pkl" in entries:
        raise SourceError(
            f"{path}: a TorchScript program; save its weights: torch.save(torch.jit.load(OLD).state_dict(), NEW)"
        )
    if "data.pkl" not in entries:
        raise SourceError(f"{path}: a zip archive that is not of torch.save, it holds {_few(names)}; unpack it first")
    # torch would map packed bytes as if they were the numbers
    return all(entry.compress_type == zipfile.ZIP_STORED for entry in entries.values())


def check_sums(path: Path) -> None:
    """Compares every entry of a zip archive, or of each that an index of shards names, with the checksum beside it,
    which PyTorch does not."""
    paths = [path]
    if path.name.endswith(".index.json"):
        paths = sorted({path.parent / name for name in json.loads(path.read_bytes())["weight_map"].values()})
    for one in filter(zipfile.is_zipfile, paths):
        with zipfile.ZipFile(one) as archive:
            try:
                broken = archive.testzip()
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
                broken = _line(error)
        if broken:
            raise SourceError(
                f"{one}: damaged, the checksum of {plain(broken)} is another; {AGAIN}. If it was saved without "
                "checksums (torch.serialization.set_crc32_options), save it again with them"
            )


def _load_torch(path: Path, mapped: bool) -> dict:
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise SourceError(f'{path}: a PyTorch file is read by PyTorch; run: pip install -e ".[torch]"') from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on protocols, storages and kinds of tensors that are refused below
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        tree = _tree(torch, "", content)
    except pickle.UnpicklingError as error:
        if asked := re.findall(r"GLOBAL (\S+)", str(error)) or _globals(path):
            raise SourceError(f"{path}: refused, since reading it would run {_few(asked)}; {RESAVE}") from error
        what = str(error).partition("WeightsUnpickler error:")[2].split("Check the")[0]
        raise SourceError(f"{path}: damaged, or not to be read without running it ({_line(what)}); {RESAVE}") from error
    except Exception as error:  # of a damaged file, it can be any
        raise SourceError(f"{path}: no whole PyTorch file ({_line(error)}); {AGAIN}") from error
    if isinstance(tree, Tensor):
        raise SourceError(f"{path}: expected a dictionary of tensors, found a single tensor; {RESAVE}")
    return tree if isinstance(tree, dict) else {}


def _globals(path: Path) -> list[str]:
    """The names in its pickles that are not those of plain tensors, found without running them."""
    found = []
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                data = archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))
        else:
            data = path.read_bytes()
        stream = io.BytesIO(data)
        while stream.tell() < len(data):  # a legacy file is several pickles, and then bytes
            texts, memo = [""], {}
            for op, value, _ in pickletools.genops(stream):
                if op.name in ("GLOBAL", "INST"):
                    found.append(str(value).replace(" ", "."))
                elif op.name == "STACK_GLOBAL":
                    found.append(".".join(texts[-2:]))
                elif op.name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
                    memo[len(memo) if value is None else value] = texts[-1]
                elif op.name in ("GET", "BINGET", "LONG_BINGET"):
                    texts.append(memo.get(value, ""))
                elif isinstance(value, str):
                    texts.append(value)
    except Exception:  # where the pickles end, or are damaged
        pass
    harmless = r"collections\.OrderedDict|torch\._utils\._rebuild_\w+|torch\.\w*(Storage|Size)|torch\.[a-z]+\d+\w*"
    return [name for name in dict.fromkeys(found) if not re.fullmatch(harmless, name)]


def _tree(torch: Any, name: str, value: Any) -> Any:
    """Tensors, numbers and texts in dictionaries; of other things, lists that hold tensors are kept, as if named."""
    if isinstance(value, torch.Tensor):
        return _tensor(torch, name, value)
    if isinstance(value, Mapping):
        return {str(key): made for key, x in value.items() if (made := _tree(torch, str(key), x)) is not None}
    if isinstance(value, list | tuple):
        made = _tree(torch, name, dict(enumerate(value)))
        return made if _holds(made) else None
    return value if isinstance(value, bool | int | float | str) else None


def _tensor(torch: Any, name: str, tensor: Any) -> Tensor:
    kind = str(tensor.dtype).removeprefix("torch.")
    try:
        dtype = np.dtype(getattr(ml_dtypes, kind, kind))
    except TypeError:
        dtype = np.dtype(object)
    tensor = tensor.detach()
    if tensor.is_nested or tensor.is_quantized or tensor.layout != torch.strided:
        sort = "quantised" if tensor.is_quantized else "nested" if tensor.is_nested else "sparse"
        fault = f"a {sort} one of {kind}"
    elif tensor.device.type != "cpu":
        fault = "one without data"
    else:
        fault = _fault(dtype) and f"one of {kind}"

    def get() -> np.ndarray:
        return tensor.view(torch.int16).numpy().view(dtype) if kind == "bfloat16" else tensor.numpy()

    return Tensor(name, () if tensor.is_nested else tuple(tensor.shape), dtype, get, fault)


def _fault(dtype: np.dtype) -> str:
    return "" if re.fullmatch(r"bool|bfloat16|(u?int|float)(8|16|32|64)", dtype.name) else f"one of {dtype.name}"


def _read_shards(path: Path) -> tuple[str, dict, Mapping[str, str], int]:
    """What the shards of a Hugging Face index hold together, if that is what the index says."""
    try:
        index = json.loads(path.read_bytes())
        where: dict[str, str] = index["weight_map"]
        files = sorted(set(where.values()))
        strange = [name for name in files if Path(name).is_absolute() or ".." in Path(name).parts]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{path}: JSON, but no index of shards with a weight_map; name the weights") from error
    if strange:
        raise SourceError(f"{path}: refused, since it names files outside its folder: {_few(strange)}")
    if missing := [name for name in files if not (path.parent / name).is_file()]:
        raise SourceError(f"{path}: {len(missing)} of {len(files)} shards are missing: {_few(missing)}; fetch them")
    tree, found, wrong, size, kind = {}, {}, [], 0, ""
    for name in files:
        kind, shard, _, bytes_of = _read_file(path.parent / name)
        wrong += [f"{key} is in {found[key]} and in {name}" for key in shard if key in found]
        wrong += [f"{key} is in {name} and not in the index" for key in shard if key not in where]
        tree, found, size = tree | shard, found | dict.fromkeys(shard, name), size + bytes_of
    wrong += [f"{key} is not in {name}" for key, name in where.items() if found.get(key) != name]
    if wrong:
        raise SourceError(f"{path}: index and shards differ: {_few(wrong)}; fetch them again, all of one revision")
    metadata = {str(k): str(v) for k, v in (index.get("metadata") or {}).items()}
    return f"sharded {'safetensors' if kind == 'safetensors' else 'PyTorch'} folder", tree, metadata, size


def _in_folder(folder: Path) -> Path:
    for name in FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    for fits in (lambda path: path.name.endswith(".index.json"), lambda path: path.suffix in SUFFIXES):
        found = sorted(path for path in folder.iterdir() if path.is_file() and fits(path))
        if len(found) == 1:
            return found[0]
        if found:
            raise SourceError(f"{folder}: several files of weights; name one: {_few([path.name for path in found])}")
    there = _few(sorted(path.name for path in folder.iterdir())) or "nothing"
    raise SourceError(
        f"{folder}: a folder without weights; expected {', '.join(FOLDER_FILES)} or one file, found {there}"
    )


def _from_hub(name: str) -> Path:
    """The folder of a Hugging Face repository, fetched into the cache of huggingface_hub unless it is there."""
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise SourceError(f"{name}: is fetched by huggingface_hub; run: pip install huggingface_hub") from error
    repository, _, revision = name.removeprefix("hf:").partition("@")
    wanted = (["model*.safetensors*"], ["pytorch_model*.bin*"], [f"*{suffix}*" for suffix in SUFFIXES])
    folder = Path()
    try:
        for patterns in wanted:
            patterns = [*patterns, "config.json", "preprocessor_config.json"]
            folder = Path(hub.snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
            if any(path.suffix in SUFFIXES for path in folder.glob("*")):
                break
    except Exception as error:  # of the network, the hub or the name
        raise SourceError(
            f"{name}: could not be fetched ({type(error).__name__}: {_line(error)}); check the name and the network, "
            "or fetch the repository elsewhere and give its folder"
        ) from error
    return folder


def _choose(path: Path, tree: dict, entry: str) -> tuple[dict, tuple[str, ...], tuple[str, ...], dict]:
    """(tensors, wrappers, others, extras), as `open_source` says."""
    wrappers, others, extras = [], [], {}
    steps = entry.split("/") if entry else []
    while True:
        at = "/".join([*wrappers, ""])
        inner = {key: x for key, x in tree.items() if isinstance(x, dict) and _holds(x)}
        own = {key: x for key, x in tree.items() if isinstance(x, Tensor)}
        usual = [key for key in inner if not BOOKKEEPING.fullmatch(key)]
        extras |= _scalars({key: x for key, x in tree.items() if key not in inner and key not in own}, at)
        if steps:
            name = steps.pop(0)
            if name != "." and name not in inner:
                raise SourceError(
                    f"{path}: no entry {at + name!r}; it has {_few([at + key for key in inner]) or 'none'}"
                )
        elif any(key in PREFERRED for key in usual):
            name = next(key for key in PREFERRED if key in usual)
        elif any(math.prod(x.shape) > 1 for x in own.values()) or not usual:
            name = "."
        elif len(usual) == 1:
            name = usual[0]
        else:
            raise SourceError(
                f"{path}: several dictionaries of tensors; choose with entry=NAME: {_few([at + key for key in usual])}"
            )
        others += [at + key for key in usual if key != name]
        if name == ".":
            break
        extras |= {at + k: x.read().item() for k, x in own.items() if math.prod(x.shape) == 1 and not x.fault}
        others += [at + "."] * any(math.prod(x.shape) > 1 for x in own.values())
        wrappers.append(name)
        tree = inner[name]
    if not own:
        raise SourceError(
            f"{path}: no tensors in it, found {_few(list(tree)) or 'nothing'}; name the file of the weights"
        )
    return own, tuple(wrappers), tuple(others), extras


def _holds(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, dict) and any(map(_holds, value.values())))


def _scalars(tree: dict, at: str) -> dict[str, Any]:
    found = {}
    for key, value in tree.items():
        if not isinstance(value, dict):
            found[at + key] = value
        elif not BOOKKEEPING.fullmatch(key):
            found |= _scalars(value, f"{at}{key}/")
    return found


def _few(names: list[str], most: int = 6) -> str:
    return ", ".join(map(plain, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def _line(error: Any) -> str:
    return plain(" ".join(str(error).split()))[:200] or "no reason given"


def plain(text: str) -> str:
    """What a terminal prints and does not obey; the names in a file may be anything."""
    return text if text.isprintable() else ascii(text)[1:-1]
