"""Values that are not of the type that is declared for them, in words."""

import dataclasses
import math
import types
import typing
from typing import Any


def type_faults(kind: Any, value: Any, at: str = "") -> list[str]:
    """Every value under `at` that is not of the type that its field declares; a number must be a finite one."""
    origin: Any = typing.get_origin(kind) or kind
    args = typing.get_args(kind)
    if kind is Any:
        return []
    if origin in (typing.Union, types.UnionType):
        several = [type_faults(one, value, at) for one in args]
        own = [faults for one, faults in zip(args, several, strict=True) if one is not type(None)]
        return [] if [] in several else own[0] if len(own) == 1 else [f"{at}: expected {_said(kind)}, found {value!r}"]
    if not _is_of(origin, value):
        return [f"{at}: expected {_said(kind)}, found {value!r}"]
    if kind is float and not math.isfinite(value):
        return [f"{at}: expected a finite number, found {value}"]
    inside: dict[Any, tuple[Any, Any]] = {}
    if dataclasses.is_dataclass(kind):
        inside = {f.name: (f.type, getattr(value, f.name)) for f in dataclasses.fields(kind)}
    elif origin is dict and args:
        inside = {k: (args[1], v) for k, v in value.items()}
    elif origin is tuple and args[1:] == (...,):
        inside = {i: (args[0], v) for i, v in enumerate(value)}
    elif origin is tuple and args:
        if len(value) != len(args):
            return [f"{at}: expected {len(args)} values, found {value!r}"]
        inside = dict(enumerate(zip(args, value, strict=True)))
    return [fault for k, (t, v) in inside.items() for fault in type_faults(t, v, f"{at}.{k}" if at else str(k))]


def _said(kind: Any) -> str:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(_said(one) for one in typing.get_args(kind))
    return str(kind) if typing.get_args(kind) else kind.__name__


def _is_of(kind: Any, value: Any) -> bool:
    """As isinstance, except that True does not pass for an int and an int passes for a float."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
