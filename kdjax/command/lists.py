"""`--list=KIND`: what there is, a line about each."""

from typing import get_type_hints

from kdjax import registry
from kdjax.command import configs

KINDS = ("models", "configs", "losses", "tasks", "data")


def show(kind: str) -> int:
    """Prints the names, each with the first line of its docstring, or, for a model, of its class's docstring."""
    docs = configs.described() if kind == "configs" else registered(kind)
    width = max(map(len, docs), default=0)
    for name, doc in docs.items():
        print(f"{name:{width}}  {doc.strip().partition(chr(10))[0]}".rstrip())
    return 0


def registered(kind: str) -> dict[str, str]:
    entries = {name: registry.get(kind, name) for name in registry.names(kind)}
    if kind == "models":
        entries = {name: get_type_hints(build)["return"] for name, build in entries.items()}
    return {name: entry.__doc__ or "" for name, entry in entries.items()}
