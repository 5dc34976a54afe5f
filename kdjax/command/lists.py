"""`--list=KIND`: what there is, a line about each."""

import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import Any, get_type_hints

from kdjax import config, registry
from kdjax.command import configs


def show(kind: str) -> int:
    """Prints the names, each with the first line of what there is to say of it."""
    docs = KINDS[kind]()
    width = max(map(len, docs), default=0)
    for name, doc in docs.items():
        print(f"{name:{width}}  {doc.strip().partition(chr(10))[0]}".rstrip())
    return 0


def registered(kind: str) -> dict[str, str]:
    """Name -> docstring, or, for a model, the docstring of its class."""
    entries = {name: registry.get(kind, name) for name in registry.names(kind)}
    if kind == "models":
        entries = {name: get_type_hints(build)["return"] for name, build in entries.items()}
    return {name: entry.__doc__ or "" for name, entry in entries.items()}


def adapters() -> dict[str, str]:
    from kdjax.distill.adapters import ADAPTERS

    return {name: adapter.__doc__ or "" for name, adapter in ADAPTERS.items()}


def optimisers() -> dict[str, str]:
    from kdjax.train.optim import OPTIMISERS

    return OPTIMISERS


def transforms() -> dict[str, str]:
    from kdjax.data.transforms import TRANSFORMS

    return TRANSFORMS


def fields() -> dict[str, str]:
    """Every field of a config with its type, its default and what its class's docstring says of it."""
    lines = {}
    for kind in words():
        fields = explained(kind)
        defaults = {p.name: p.default for p in inspect.signature(kind).parameters.values()}
        for field in dataclasses.fields(kind):
            default = defaults.get(field.name, inspect.Parameter.empty)
            shown = f" = {default!r}" if isinstance(default, (bool, int, float, str, tuple, type(None))) else ""
            lines[f"{kind.__name__}.{field.name}"] = f"{_type(field.type)}{shown}: {fields[field.name]}"
    return lines


def words() -> list[Any]:
    """The classes that a config is written in, the whole first."""
    kinds = [kind for kind in vars(config).values() if dataclasses.is_dataclass(kind) and inspect.isclass(kind)]
    return kinds[::-1]


def explained(kind: Any) -> dict[str, str]:
    """What a class's docstring says of its fields, "name: text" each, with the lines that follow it indented."""
    entries = re.findall(r"^(\w+): (.*(?:\n    .*)*)", inspect.cleandoc(kind.__doc__ or ""), re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def _type(kind: Any) -> str:
    plain = isinstance(kind, type) and not getattr(kind, "__args__", ())
    return kind.__name__ if plain else re.sub(r"(typing|kdjax\.config)\.", "", str(kind))


KINDS: dict[str, Callable[[], dict[str, str]]] = {
    **{kind: (lambda kind=kind: registered(kind)) for kind in registry.TABLES},
    "configs": configs.described,
    "fields": fields,
    "adapters": adapters,
    "optimisers": optimisers,
    "transforms": transforms,
}
