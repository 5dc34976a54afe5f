"""What a person should know of a conversion: what was assumed, resized, cast and left out, and what is no number."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from convert import families
from convert.export import COUNTERS
from convert.family import Converted, ConvertError, Family, fit, settings, told
from convert.sources import Source, SourceError
from kdjax.config import ConfigError

LIKE = 0.5  # of the names: less is no likeness


def notes(converted: Converted, source: Source) -> Iterator[str]:
    if converted.config:
        yield f"options of {converted.config.path}: {settings(converted.configured)}"
    yield from assumption(converted)
    yield from equals(converted, source)
    how = f" ({converted.family.resizing})" if converted.family.resizing else ""
    yield from _listed(f"resized{how}", converted.resized)
    yield from _listed("cast to float32", converted.cast)
    yield from _listed("left out", converted.dropped)
    yield from _listed("WARNING, not all numbers", not_numbers(converted))


def assumption(converted: Converted) -> Iterator[str]:
    if converted.assumed:
        where = "no tensor's shape and no config.json" if converted.family.model_types else "no tensor's shape"
        yield f"ASSUMED, since {where} tells it: {settings(converted.assumed)}; otherwise --set OPTION=VALUE"


def record(converted: Converted) -> dict[str, str]:
    """For the metadata of the written file: what was assumed, and what an export needs that is in no leaf."""
    counts = counters(converted)
    entries = {"assumed": settings(converted.assumed), COUNTERS: json.dumps(counts) if any(counts.values()) else ""}
    return {name: text for name, text in entries.items() if text}


def equals(converted: Converted, source: Source) -> Iterator[str]:
    """Other families that all tensors fit too, and compute something else."""
    alike = nearest(source)
    for name in alike.keys() - {converted.family.name} if converted.family.name in alike else ():
        try:
            twin = fit(alike[name], source)
        except (ConvertError, SourceError, ConfigError):
            continue
        assumed = settings(twin.assumed) or "nothing"
        yield f"WARNING, {name} fits these tensors equally, as {told(twin.model)}, and assumes {assumed}"


def nearest(source: Source) -> Mapping[str, Family]:
    """The families that know the most of the names, and at least half of them."""
    likeness = {name: family.likeness_of(source) for name, family in families.all().items()}
    most = max(likeness.values())
    return {name: families.get(name) for name, share in likeness.items() if share == most >= LIKE}


def not_numbers(converted: Converted) -> list[str]:
    """The tensors with infinite values or such that are no numbers, in float32."""
    found = []
    for name in sorted({name for slot in converted.slots for name in slot.tensors}):
        with np.errstate(over="ignore"):
            values = converted.tensors[name].read().astype(np.float32)
        if count := values.size - int(np.isfinite(values).sum()):
            found.append(f"{name} ({count:,} of {values.size:,})")
    return found


def counters(converted: Converted) -> dict[str, int]:
    """How many batches each batch norm of the source had counted."""
    names = [name for slot in converted.slots for name in slot.beside if name.endswith(f".{COUNTERS}")]
    found = {name: converted.tensors[name] for name in names if name in converted.tensors}
    return {name: int(x.read()) for name, x in found.items() if x.shape == () and x.dtype.kind in "iu"}


def _listed(what: str, names: Any) -> Iterator[str]:
    if names:
        yield f"{what}: {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}"
