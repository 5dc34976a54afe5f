"""Foreign checkpoints as a mapping from their own names to arrays that are read on demand; nothing in them is run."""

import json
import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convert import pytorch
from convert.pytorch import AGAIN
from convert.tensor import SourceError, Tensor, fault_of, few, line, plain
from kdjax import hub
from kdjax.config import ConfigError
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
MOST = 10_000  # tensors of a model
HEAD = 1 << 24  # bytes at most that say where they are
HEADER = 100_000_000  # bytes at most of the header of a safetensors file, whose length is its first eight bytes


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
    tensors, wrappers, others, extras = _choose(path, tree, entry)
    if len(tensors) > MOST:
        raise SourceError(f"{path}: {len(tensors):,} tensors, expected at most {MOST:,}; name a file of one model")
    return Source(path, kind, size, tensors, wrappers, others, extras, metadata)


def _read_file(path: Path) -> tuple[str, dict, Mapping[str, str], int]:
    """(kind, nested dictionaries of Tensors, numbers and texts, metadata, bytes) of one file."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        raise SourceError(f"{path}: the file is empty; fetch it again")
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        kind, tree = "PyTorch zip archive", pytorch.read_archive(path)
    elif (length := int.from_bytes(head[:8], "little")) <= HEADER:
        _refuse_head(path, length)
        try:
            stored, metadata = safetensors.stored(path)
        except safetensors.WeightsError as error:
            raise SourceError(str(error)) from error
        tree = {name: Tensor(name, x.shape, x.dtype, x.read, fault_of(x.dtype, x.shape)) for name, x in stored.items()}
        return "safetensors", tree, metadata, size
    elif head[:1] == b"\x80" or re.match(rb"\(?c[\w.]+\n[\w.]+\n", head):
        kind, tree = "PyTorch legacy pickle", pytorch.read_legacy(path)
    elif head.startswith(b"version https://git-lfs"):
        raise SourceError(f"{path}: a pointer of Git LFS, not the file itself; run: git lfs pull")
    else:
        raise SourceError(
            f"{path}: neither a PyTorch nor a safetensors file, it begins with {head[:16]!r}; convert it to one of them"
        )
    if "pytorch-lightning_version" in tree:
        kind = "Lightning checkpoint"
    return kind, tree, {}, size


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
            except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
                broken = line(error)
        if broken:
            raise SourceError(
                f"{one}: damaged, the checksum of {plain(broken)} is another; {AGAIN}. If it was saved without "
                "checksums (torch.serialization.set_crc32_options), save it again with them"
            )


def _read_shards(path: Path) -> tuple[str, dict, Mapping[str, str], int]:
    """What the shards of a Hugging Face index hold together, if that is what the index says."""
    where, metadata = _index(path)
    files = sorted(set(where.values()))
    if strange := [name for name in files if Path(name).is_absolute() or ".." in Path(name).parts]:
        raise SourceError(f"{path}: refused, since it names files outside its folder: {few(strange)}")
    if missing := [name for name in files if not (path.parent / name).is_file()]:
        raise SourceError(f"{path}: {len(missing)} of {len(files)} shards are missing: {few(missing)}; fetch them")
    tree, found, wrong, size, kind = {}, {}, [], 0, ""
    for name in files:
        kind, shard, _, bytes_of = _read_file(path.parent / name)
        wrong += [f"{key} is in {found[key]} and in {name}" for key in shard if key in found]
        wrong += [f"{key} is in {name} and not in the index" for key in shard if key not in where]
        tree, found, size = tree | shard, found | dict.fromkeys(shard, name), size + bytes_of
    wrong += [f"{key} is not in {name}" for key, name in where.items() if found.get(key) != name]
    if wrong:
        raise SourceError(f"{path}: index and shards differ: {few(wrong)}; fetch them again, all of one revision")
    return f"sharded {'safetensors' if kind == 'safetensors' else 'PyTorch'} folder", tree, metadata, size


def _refuse_head(path: Path, length: int) -> None:
    if length > HEAD:
        raise SourceError(f"{path}: {length:,} bytes that say what is in it, expected at most {HEAD:,}; fetch it anew")


def _index(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """(in which file each tensor is, the metadata) of an index of shards."""
    _refuse_head(path, path.stat().st_size)
    try:
        index = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        index = {}
    index = index if isinstance(index, dict) else {}
    where, metadata = index.get("weight_map"), index.get("metadata")
    if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
        raise SourceError(f"{path}: JSON, but no index of shards with a weight_map; name the weights")
    return where, {k: str(v) for k, v in metadata.items()} if isinstance(metadata, dict) else {}


def _in_folder(folder: Path) -> Path:
    for name in FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    for fits in (lambda path: path.name.endswith(".index.json"), lambda path: path.suffix in SUFFIXES):
        found = sorted(path for path in folder.iterdir() if path.is_file() and fits(path))
        if len(found) == 1:
            return found[0]
        if found:
            raise SourceError(f"{folder}: several files of weights; name one: {few([path.name for path in found])}")
    there = few(sorted(path.name for path in folder.iterdir())) or "nothing"
    raise SourceError(
        f"{folder}: a folder without weights; expected {', '.join(FOLDER_FILES)} or one file, found {there}"
    )


def _from_hub(name: str) -> Path:
    """The folder of a Hugging Face repository, fetched into the cache of huggingface_hub unless it is there."""
    wanted = (["model*.safetensors*"], ["pytorch_model*.bin*"], [f"*{suffix}*" for suffix in SUFFIXES])
    folder = Path()
    for patterns in wanted:
        try:
            folder = hub.fetch(
                name, [*patterns, "config.json", "preprocessor_config.json", "tokenizer.json", "vocab.txt"]
            )
        except ConfigError as error:
            raise SourceError(str(error)) from error
        if any(path.suffix in SUFFIXES for path in folder.glob("*")):
            break
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
                    f"{path}: no entry {at + name!r}; it has {few([at + key for key in inner]) or 'none'}"
                )
        elif any(key in PREFERRED for key in usual):
            name = next(key for key in PREFERRED if key in usual)
        elif any(math.prod(x.shape) > 1 for x in own.values()) or not usual:
            name = "."
        elif len(usual) == 1:
            name = usual[0]
        else:
            raise SourceError(
                f"{path}: several dictionaries of tensors; choose with entry=NAME: {few([at + key for key in usual])}"
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
            f"{path}: no tensors in it, found {few(list(tree)) or 'nothing'}; name the file of the weights"
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
