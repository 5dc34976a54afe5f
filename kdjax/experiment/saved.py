"""An experiment as JSON, as it lies in a working directory, and where two of them differ."""

import dataclasses
import re
import types
import typing
from pathlib import Path
from typing import Any

from kdjax.config import ConfigError, Experiment, Task, to_dict
from kdjax.train import kept

LOST = "put it back, or remove it: then the copy counts that a stage which has begun has beside it"
LONGEST = 100  # letters of a value in a line
EDITION = 2  # of the frame that writes working directories; one that says none is of the first, kdjax 0.1


def to_json(experiment: Experiment) -> str:
    return kept.sealed({"edition": EDITION, **to_dict(experiment)})


def from_json(text: str, place: Path | str = "config.json") -> Experiment:
    saved = kept.unsealed(text, place, LOST)
    if not isinstance(saved.get("stages"), dict):
        raise ConfigError(f"{place}: expected a config as a run saves it, found one without stages")
    return _from(Experiment, saved)


def refuse_other_edition(text: str, folder: Path) -> None:
    """Refuses to continue a run of another edition of the frame; its weights can still be used."""
    edition = kept.unsealed(text, folder / "config.json", LOST).get("edition", 1)
    if edition != EDITION:
        maker = "kdjax 0.1" if edition == 1 else f"edition {edition} of kdjax's frame"
        raise ConfigError(
            f"{folder} was made by {maker}, whose runs this version does not continue; choose another --workdir "
            "(the weights in it load, with --weights=FILE or init=FILE)"
        )


def _from(kind: Any, value: Any) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _from(next(a for a in args if a is not type(None)), value)
    if origin is dict:
        return {k: _from(args[1], v) for k, v in value.items()}
    if origin is tuple or kind is tuple:
        return _tuples(value)
    if kind is Task and isinstance(value, str):
        return Task(value)
    if dataclasses.is_dataclass(kind):
        instance = object.__new__(typing.cast(type, kind))
        for f in dataclasses.fields(kind):
            known = f.name in value or (f.default is f.default_factory is dataclasses.MISSING)
            setattr(instance, f.name, _from(f.type, value[f.name]) if known else _default(f))
        return instance
    return value


def _default(field: dataclasses.Field) -> Any:
    """The value of a field that did not exist when the config was saved."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def own_names(value: Any) -> list[str]:
    """Every text in a config that could name code outside kdjax, "package.module:symbol"."""
    if isinstance(value, str):
        return [value] if re.fullmatch(r"[\w.]+:\w+", value) else []
    value = to_dict(value)
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [name for entry in inside for name in own_names(entry)]


def differences(a: Any, b: Any, at: str = "") -> list[str]:
    """Where two configs differ, a line each: "stages.student.optim.lr: 0.001 and 0.0003"."""
    a, b = to_dict(a), to_dict(b)
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [*a, *(k for k in b if k not in a)]
        return [d for k in keys for d in differences(a.get(k), b.get(k), f"{at}.{k}" if at else str(k))]
    return [] if a == b else [f"{at}: {_brief(a)} and {_brief(b)}"]


def _brief(value: Any) -> str:
    """A value as it is written; what has many fields, such as a stage, for its own sake is not told."""
    text = repr(value)
    return text if len(text) <= LONGEST else "{...}" if isinstance(value, dict) else f"{text[:LONGEST]}..."
