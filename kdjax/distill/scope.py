"""All that a step can read, as one tree: the fields of the batch, the endpoints of the student and of every source.

A path names a place and what is in it: "batch:class", "student:logits", "sam:image_embeddings", "adapters:feature". A
place is filled when something in it is first read, so that a source may itself be fed from the scope.
"""

from collections.abc import Callable, Mapping
from typing import Any

from kdjax.config import ConfigError, nearest

Outputs = Mapping[str, Any]  # arrays, or their shapes while a stage is made ready
PLACES = ("batch", "student", "adapters")  # which no source may be called


class Scope:
    """The places of one step. `add` says how a place, or one entry of it, is made; `scope[path]` makes it once."""

    def __init__(self) -> None:
        self._makers: dict[str, Callable[[], Any]] = {}
        self._made: dict[str, Any] = {}
        self._making: list[str] = []

    def add(self, at: str, make: Callable[[], Any]) -> None:
        """`at` is a place, made as a mapping of its entries, or the path of a single entry."""
        self._makers[at] = make

    def __getitem__(self, path: str) -> Any:
        if path in self._makers:
            return self._get(path)
        place, name = split(path)
        if place not in self._makers:
            known = sorted({key.partition(":")[0] for key in self._makers})
            if place in known:
                entries = [key.partition(":")[2] for key in self._makers if key.startswith(f"{place}:")]
                raise ConfigError(f"{path!r}: {place!r} has no {name!r}; {nearest(name, entries)}")
            raise ConfigError(f"{path!r}: there is no {place!r} to read; {nearest(place, known)}")
        entries = self._get(place)
        if name not in entries:
            raise ConfigError(f"{path!r}: {place!r} has no {name!r}; {nearest(name, entries)}")
        return entries[name]

    def place(self, name: str) -> Outputs:
        """Everything in a place."""
        return self._get(name)

    def _get(self, key: str) -> Any:
        if key in self._making:
            raise ConfigError(f"{' reads '.join([*self._making, key])}: a source cannot be fed by itself")
        if key not in self._made:
            self._making.append(key)
            try:
                self._made[key] = self._makers[key]()
            finally:
                self._making.pop()
        return self._made[key]


def split(path: str) -> tuple[str, str]:
    """(place, name) of a path."""
    place, colon, name = path.partition(":")
    if not (place and colon and name):
        raise ConfigError(f"expected a path such as 'student:logits' or 'batch:class', found {path!r}")
    return place, name


def paths(reads: Mapping[str, Any]) -> list[str]:
    """All paths that `reads` names; an argument may be given several, as a tuple."""
    return [path for given in reads.values() for path in ((given,) if isinstance(given, str) else given)]
