"""What a data set is to the rest: a `Source`, opened by its registered name."""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from kdjax import registry
from kdjax.config import ConfigError, nearest

SPLITS = ("train", "val", "test")


class Facts(NamedTuple):
    """What the splits need to know about an example, and the example itself where it had to be read for that."""

    name: str
    group: str  # examples of one group (a patient) stay together; "" is none
    content: str  # so do examples of the same content; "" is not known to equal any other
    label: int  # the class of the image
    example: dict[str, Any] | None = None


@runtime_checkable
class Source(Protocol):
    """Random access to examples: {"image" uint8 [h, w, 3], "mask" uint8 [h, w], "class" int, "name" str}."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the image classes."""
        ...

    @property
    def allowed(self) -> Sequence[tuple[str, ...]]:
        """The splits that each example may go to: a single one where the data set brings its own."""
        ...

    @property
    def files(self) -> Sequence[tuple[str, ...]]:
        """The files that each example is read from; empty for what is generated."""
        ...

    @property
    def faults(self) -> Sequence[str]:
        """What is wrong, as far as it shows without opening an image."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What a person should know about how the folder was read."""
        ...

    def inspect(self, i: int, decode: bool = True) -> Facts:
        """Raises a ConfigError that names the file when the example cannot be used."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> dict[str, Any]: ...


def open_source(name: str, options: dict[str, Any], **given: Any) -> Any:
    """The reader registered as `name`, built with its options and with what every reader of its kind is given."""
    reader = registry.get("data", name)
    known = {k: p for k, p in inspect.signature(reader).parameters.items() if k not in given}
    wrong = [f"no option {k!r} of {name!r}; {nearest(k, known)}" for k in options if k not in known]
    wrong += [f"{name!r} needs the option {k!r}" for k, p in known.items() if p.default is p.empty and k not in options]
    if wrong:
        raise ConfigError("\n  ".join(wrong))
    return reader(**given, **options)
