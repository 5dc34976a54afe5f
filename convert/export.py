"""A kdjax file in PyTorch's names: .pth, .pt or .safetensors, by the suffix."""

import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from convert.family import ConvertError, Family, fit, leaves, tensors
from convert.sources import open_source
from convert.table import slots
from kdjax.config import Model
from kdjax.weights import safetensors

SUFFIXES = (".pth", ".pt", ".safetensors")
COUNTERS = "num_batches_tracked"  # of the original's batch norms: in the metadata, {name: count}


def load(path: Path, options: Mapping[str, Any] = {}, *, pairs: bool = False) -> tuple[Model, dict]:
    """The model that a kdjax file is for, `options` put over its own, and the variables in the file.

    With `pairs` it may hold low-rank pairs, of a part of a model.
    """
    variables, metadata = safetensors.load(path, mapped=False)
    if strange := sorted(variables.keys() - {"params", "batch_stats", *["lora"] * pairs}):
        raise ConvertError(
            f"{path}: expected params and batch_stats, found {', '.join(strange)} too; "
            "use a converted file, or the model.safetensors that a stage left behind"
        )
    model = safetensors.model_in(metadata)
    if model is None:
        raise ConvertError(f"{path} does not say which model it is for; convert or train it with this version of kdjax")
    return Model(model.name, **{**model.options, **options}), variables


def export_file(family: Family, model: Model, variables: Mapping, path: Path, metadata: Mapping[str, str] = {}) -> int:
    """Writes the original's tensors, reads them back and puts them into our model again; how many there are.

    What the family keeps beside its weights (a threshold, ...) is taken from the `metadata` of ours, and then a .pth is
    {"state_dict": tensors, "threshold": ...}. A .pth has the names of modules in memory, a .safetensors those of files;
    they differ in transformers since version 5.
    """
    if path.suffix not in SUFFIXES:
        raise ConvertError(f"{path}: expected a name that ends in {', '.join(SUFFIXES)}")
    arrays = dict(tensors(family, model, variables)) | counters(family, model, metadata)
    if family.in_modules and path.suffix != ".safetensors" and transformers_version() >= 5:
        arrays = {family.in_modules(model, name): x for name, x in arrays.items()}
    kept = {name: _value(metadata[name]) for name in family.kept if name in metadata}
    partial = path.with_name(f".{path.stem}-{os.getpid()}.partial{path.suffix}")
    try:
        _save(arrays, kept, partial)
        _prove(family, model, variables, arrays, partial)
        os.replace(partial, path)
    except OSError as error:
        size = sum(array.nbytes for array in arrays.values())
        raise ConvertError(
            f"{path}: writing {size:,} bytes failed ({error}); make room or choose another place"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return len(arrays)


def loading(family: Family, path: Path, metadata: Mapping[str, str]) -> str:
    """How PyTorch reads an exported file."""
    if path.suffix == ".safetensors":
        return "from_pretrained, with the original's config.json beside it" if family.in_modules else "load_state_dict"
    entry = "['state_dict']" if any(name in metadata for name in family.kept) else ""
    whose = f" of transformers {transformers_version()}" if family.in_modules else ""
    return f"load_state_dict(torch.load(PATH){entry}, strict=True){whose}"


def family_of(families: Mapping[str, Family], model: Model) -> Family | None:
    """The first family that can say the model in PyTorch."""
    named = (f for f in families.values() if any(other.name == model.name for other in f.variants.values()))
    return next(named, None)


def counters(family: Family, model: Model, metadata: Mapping[str, str]) -> dict[str, np.ndarray]:
    """What the original's batch norms had counted, of the source that the weights were converted from."""
    try:
        found = {name: np.array(count, np.int64) for name, count in json.loads(metadata.get(COUNTERS, "{}")).items()}
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ConvertError(
            f"metadata {COUNTERS}: expected counts by name, found something else; convert again"
        ) from error
    known = {name for slot in slots(family.rows(model), leaves(model)) for name in slot.beside}
    if strange := sorted(name for name, count in found.items() if name not in known or count.shape):
        raise ConvertError(f"metadata {COUNTERS}: the model counts no {strange[0]}; convert again")
    return {family.exported(model, name): count for name, count in found.items()}


def transformers_version() -> int:
    """Whose names a .pth gets: the installed one's, else today's."""
    try:
        return int(importlib.metadata.version("transformers").partition(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return 5


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _save(arrays: Mapping[str, np.ndarray], kept: Mapping[str, float | str], path: Path) -> None:
    if path.suffix == ".safetensors":
        safetensors.save(path, dict(arrays), {"format": "pt", **{name: str(x) for name, x in kept.items()}})
        return
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ConvertError(f'{path.suffix} needs PyTorch (pip install -e ".[torch]"); .safetensors does not') from error
    state = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    torch.save({"state_dict": state, **kept} if kept else state, path)


def _prove(family: Family, model: Model, variables: Mapping, arrays: Mapping, path: Path) -> None:
    source = open_source(path)
    if wrong := [name for name, x in arrays.items() if not np.array_equal(source[name].read(), x, equal_nan=True)]:
        raise ConvertError(f"{path}: {wrong[0]} was not written as it is; this is a fault of kdjax")
    back, flat = fit(family, source, model=model), flatten_dict(dict(variables), sep="/")
    for slot in back.slots:
        if not np.array_equal(back.leaf(slot), np.asarray(flat[slot.target], slot.leaf.dtype), equal_nan=True):
            raise ConvertError(f"{path}: {slot.target} did not survive the way out and in; this is a fault of kdjax")
