"""Fields of a config that flags change, `--config.stages.student.epochs=40`, and what is wrong with them."""

import ast
import dataclasses
import re
import typing
from collections.abc import Iterator
from typing import Any

from ml_collections.config_flags import config_path

from kdjax.config import ConfigError, Experiment, nearest

FIELD = re.compile(r"--?(no)?config\.([^=]+)(?:=(.*))?", re.DOTALL)


def overridden(argv: list[str]) -> Iterator[tuple[str, str]]:
    """The fields that flags change, and the values as they are written: ("stages.student.optim.lr", "3e-4")."""
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if match := FIELD.fullmatch(word):
            yield match[2], following if match[3] is None else match[3]


def make_room(experiment: Experiment, argv: list[str]) -> Experiment:
    """Gives the fields that are None, and that flags reach into or set, a value whose type the flag is checked by."""
    for name, text in overridden(argv):
        *above, last = name.split(".")
        holder: Any = experiment
        for part in above:
            if (inside := _entries(holder)[part]) is None:
                inside = _fresh(holder, part)
                setattr(holder, part, inside)
            holder = inside
        if isinstance(holder, dict) and holder[last] is None:  # an option: its reader, or its model, knows the type
            holder[last] = _literal(text)
    return experiment


def faults(base: Experiment, argv: list[str]) -> list[str]:
    """What is wrong with the names of the fields, a sentence each."""
    return [fault for name, _ in overridden(argv) if (fault := unknown(base, name))]


def unknown(base: Experiment, name: str) -> str:
    """What is wrong with the name of a field; "" where the config has it."""
    value: Any = base
    parts = name.split(".")
    for depth, part in enumerate(parts):
        at = ".".join(["config", *parts[:depth]])
        if not isinstance(value, dict) and not dataclasses.is_dataclass(value):
            return f"--config.{name}: {at} is {value!r} and has no fields"
        known = _entries(value)
        if part not in known:
            return f"--config.{name}: {at} has no field {part!r}; {nearest(part, known)}"
        inside = known[part]
        if inside is None and depth < len(parts) - 1 and (inside := _fresh(value, part)) is None:
            return f"--config.{name}: {at}.{part} is None; give it a value in the file of the config"
        value = inside
    return ""


def ill_typed(base: Experiment, message: str) -> str:
    """A plainer message for a value that a field of the config cannot take."""
    match = re.match(r"flag --config\.([^=]+)=([^:]*):", message)
    if not match or unknown(base, match[1]):
        return message
    kind = config_path.get_type(match[1], base)
    return f"--config.{match[1]}: expected {getattr(kind, '__name__', kind)}, found {match[2]!r}"


def refuse_whole(message: str) -> ConfigError:
    """Of a flag that names a holder of fields, such as `stages`."""
    name = re.search(r"field config\.(\S+)", message)
    return ConfigError(f"--config.{name[1] if name else '?'}: change the fields inside it, one by one")


def _entries(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}


def _fresh(holder: Any, name: str) -> Any:
    """The field with all its defaults; None where it has none, as an option has not, or a model."""
    if isinstance(holder, dict):
        return None
    declared = next(f.type for f in dataclasses.fields(holder) if f.name == name)
    kind = next((a for a in typing.get_args(declared) if dataclasses.is_dataclass(a)), None)
    if kind is None or any(f.default is f.default_factory is dataclasses.MISSING for f in dataclasses.fields(kind)):
        return None
    return typing.cast(Any, kind)()


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
