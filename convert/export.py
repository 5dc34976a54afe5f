"""A kdjax file in PyTorch's names: .pth, .pt or .safetensors, by the suffix."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from convert.family import ConvertError, Family, fit, tensors
from convert.sources import open_source
from kdjax.config import Model
from kdjax.weights import safetensors

SUFFIXES = (".pth", ".pt", ".safetensors")


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


def export_file(family: Family, model: Model, variables: Mapping, path: Path) -> int:
    """Writes the original's tensors, reads them back and puts them into our model again; how many there are."""
    if path.suffix not in SUFFIXES:
        raise ConvertError(f"{path}: expected a name that ends in {', '.join(SUFFIXES)}")
    arrays = dict(tensors(family, model, variables))
    partial = path.with_name(f".{path.stem}-{os.getpid()}.partial{path.suffix}")
    try:
        _save(arrays, partial)
        _prove(family, model, variables, partial)
        os.replace(partial, path)
    except OSError as error:
        size = sum(array.nbytes for array in arrays.values())
        raise ConvertError(
            f"{path}: writing {size:,} bytes failed ({error}); make room or choose another place"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return len(arrays)


def family_of(families: Mapping[str, Family], model: Model) -> Family | None:
    """The first family that can say the model in PyTorch."""
    named = (f for f in families.values() if any(other.name == model.name for other in f.variants.values()))
    return next(named, None)


def _save(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    if path.suffix == ".safetensors":
        safetensors.save(path, dict(arrays), {"format": "pt"})
        return
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ConvertError(f'{path.suffix} needs PyTorch (pip install -e ".[torch]"); .safetensors does not') from error
    torch.save({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}, path)


def _prove(family: Family, model: Model, variables: Mapping, path: Path) -> None:
    back, flat = fit(family, open_source(path), model=model), flatten_dict(dict(variables), sep="/")
    for slot in back.slots:
        if not np.array_equal(back.leaf(slot), np.asarray(flat[slot.target], slot.leaf.dtype), equal_nan=True):
            raise ConvertError(f"{path}: {slot.target} did not survive the way out and in; this is a fault of kdjax")
