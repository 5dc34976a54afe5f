"""The interface of a data set: a `Source`, opened by its registered name."""

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from kdjax import registry
from kdjax.config import ConfigError, nearest
from kdjax.data.fields import LABELS, Field

SPLITS = ("train", "val", "test")
LOOKED_AT = 32  # examples, from the first to the last, that decide the fields of a source that declares none
TEXTS = ("name", "group", "test_set")  # what an example says of itself; no fields of a batch


class Facts(NamedTuple):
    """What the splits need to know about an example, and the example itself where it had to be read for that."""

    name: str
    group: str  # examples of one group (a patient) stay together; "" is none
    content: str  # so do examples of the same content; "" is not known to equal any other
    label: int  # the class of the image, of several labels the combination of theirs; -1 where it has none
    example: dict[str, Any] | None = None
    missing: tuple[str, ...] = ()  # the labels that this example lacks
    test_set: str = "test"  # the name of the test set that it belongs to if it is tested on


@runtime_checkable
class Source(Protocol):
    """Random access to examples: {"image": uint8 [h, w, 3], "name": str, labels...}, as `fields` say.

    A label that an example lacks is None or left out.
    """

    @property
    def fields(self) -> Mapping[str, Field]:
        """What its examples hold. Images and masks may have any size here: they are stored at that of training."""
        ...

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


def own_splits(splits: Sequence[str]) -> tuple[list[tuple[str, ...]], list[str]]:
    """The splits that examples may go to, of those in which their data set has them ("" is none), and notes.

    Splits that the data set lacks are taken from train, never from val or test.
    """
    own = set(splits) - {""}
    missing = tuple(s for s in SPLITS if own and s not in own)
    choices = {"": SPLITS, **{s: (s,) for s in SPLITS}, "train": ("train", *missing)}
    notes = [f"the data set has no {' and no '.join(missing)} split of its own: taken from train"]
    return [choices[s] for s in splits], notes if "train" in own and missing else []


class Completed:
    """A reader that has `__len__` and `__getitem__`, completed by a default for every other member of `Source`."""

    def __init__(self, reader: Any):
        self.reader = reader
        self.classes = tuple(getattr(reader, "classes", ()))
        self.num_classes = getattr(reader, "num_classes", None)
        self.files = getattr(reader, "files", ())
        self.notes = getattr(reader, "notes", ())
        self.faults = list(getattr(reader, "faults", ()))
        self.allowed = getattr(reader, "allowed", None) or [SPLITS] * len(reader)
        self.fields = getattr(reader, "fields", None) or {}
        if not self.fields and not self.faults:
            spread = np.linspace(0, len(reader) - 1, min(len(reader), LOOKED_AT)).round().astype(int)
            self.fields, unknown = looked_at([reader[int(i)] for i in spread])
            self.faults += unknown

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.reader[i]

    def inspect(self, i: int, decode: bool = True) -> Facts:
        if hasattr(self.reader, "inspect"):
            return self.reader.inspect(i, decode)
        return facts_of(self.reader[i], self.fields, str(i))


def complete(reader: Any) -> Source:
    return reader if isinstance(reader, Source) else Completed(reader)


def facts_of(example: dict[str, Any], fields: Mapping[str, Field], name: str) -> Facts:
    """The facts of an example that is in memory; `name` is for one that has none."""
    content = hashlib.blake2b(digest_size=16)
    for key, field in fields.items():
        if field.kind == "image" and example.get(key) is not None:
            image = np.ascontiguousarray(example[key])
            content.update(str(image.shape).encode() + image.tobytes())
    label = example.get("class")
    missing = tuple(k for k, field in fields.items() if field.kind in LABELS and example.get(k) is None)
    return Facts(
        str(example.get("name", name)),
        str(example.get("group", "")),
        content.hexdigest() if any(field.kind == "image" for field in fields.values()) else "",
        -1 if label is None else int(label),
        example,
        missing,
        str(example.get("test_set", "test")),
    )


def looked_at(examples: Sequence[dict[str, Any]]) -> tuple[dict[str, Field], list[str]]:
    """The fields of examples by their types, and a line for each that cannot be told from its type."""
    fields: dict[str, Field] = {}
    faults: dict[str, str] = {}
    for example in examples:
        for key, value in example.items():
            if key in fields or key in TEXTS or value is None:
                continue
            if (field := _field(key, np.asarray(value))) is not None:
                fields[key] = field
            else:
                array = np.asarray(value)
                faults[key] = (
                    f"{key!r}: expected uint8 [h, w, 3] (an image), whole numbers [h, w] named mask, a number or an "
                    f"array of numbers, found {array.dtype} {list(array.shape)}; convert it, or declare it in the "
                    "reader's `fields`"
                )
    return fields, list(faults.values())


def _field(key: str, array: np.ndarray) -> Field | None:
    real, integral = np.issubdtype(array.dtype, np.floating), array.dtype.kind in "iub"
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[-1] == 3:
        return Field(array.shape, "uint8", "image")
    if array.ndim == 2 and integral and key.startswith("mask"):
        return Field(array.shape, "int32", "mask")
    if key in ("image", "mask") or (array.dtype == np.uint8 and array.ndim == 2):
        return None  # a picture in another form, which is not for guessing
    if array.ndim == 0 and (integral or real):
        return Field((), "int32", "class", -1) if integral else Field((), "float32", "number")
    if real:
        return Field(array.shape, "float32", "target" if key == "target" and array.ndim == 1 else "array")
    return Field(array.shape, "int32", "array") if integral else None


def open_source(name: str, options: dict[str, Any], **given: Any) -> Any:
    """The reader registered as `name`, built with its options and with those in `given` that it takes and that are not
    None."""
    reader = registry.get("data", name)
    parameters = inspect.signature(reader).parameters
    known = {k: p for k, p in parameters.items() if k not in given and p.kind is not p.VAR_KEYWORD}
    faults = [f"no option {k!r} of {name!r}; {nearest(k, known)}" for k in options if k not in known]
    faults += [
        f"{name!r} needs the option {k!r}" for k, p in known.items() if p.default is p.empty and k not in options
    ]
    if faults:
        raise ConfigError("\n  ".join(faults))
    return reader(**{k: v for k, v in given.items() if k in parameters and v is not None}, **options)
