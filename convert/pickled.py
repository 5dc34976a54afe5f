"""What a pickle says, as plain data: its program is followed by hand; nothing that it names is imported or called."""

import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

OPERATIONS = 300_000  # at most; a tensor takes some 30, so that there is room for 10,000 tensors
DIGITS = 4096  # binary ones of a number
MARK = object()
SCALARS = (str, int, float, bool, type(None))

PUSHED = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "MARK": MARK}
EMPTY = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": list}
TO_MARK = {"LIST": list, "TUPLE": tuple, "FROZENSET": list, "DICT": lambda parts: put({}, parts)}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
KEEP, FETCH = {"PUT", "BINPUT", "LONG_BINPUT"}, {"GET", "BINGET", "LONG_BINGET"}
FILL = {"APPEND": 1, "SETITEM": 2, "APPENDS": 0, "ADDITEMS": 0, "SETITEMS": 0}  # with so many; 0: with all to the mark
NOTHING = {"PROTO", "FRAME", "STOP", "READONLY_BUFFER"}


class PickleFault(ValueError):
    """A pickle that is damaged."""


class TooMuch(PickleFault):
    """A pickle that says more than there can be in a checkpoint."""


@dataclass(frozen=True, slots=True, eq=False)
class Global:
    """A name that the pickle wants imported, such as "torch.FloatStorage"."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Strange:
    """What only running the pickle would make."""

    name: str


Call = Callable[[str, tuple], Any]  # (the name of a function, its arguments) -> what stands for its result


class Pickle:
    """One after the other, the pickles of a stream; `names` are all that they want imported."""

    def __init__(self, stream: BinaryIO, call: Call, persistent: Callable[[Any], Any]):
        self.stream, self.call, self.persistent = stream, call, persistent
        self.names: dict[str, None] = {}
        self.left = OPERATIONS

    def load(self) -> Any:
        """What the next pickle says. Sets are lists, and a dictionary keeps what is under scalars."""
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        for name, argument in self._operations():
            self.left -= 1
            if self.left < 0:
                raise TooMuch(f"expected at most {OPERATIONS:,} steps to build what is in it, found more")
            if name in PUSHED:
                if type(argument) is int and argument.bit_length() > DIGITS:
                    raise TooMuch(f"expected numbers, found one of {argument.bit_length():,} binary digits")
                self.stack.append(argument)
            else:
                self._step(name, argument)
        return self._pop()

    def _operations(self) -> Iterator[tuple[str, Any]]:
        try:
            for operation, argument, _ in pickletools.genops(self.stream):
                yield operation.name, argument
        except ValueError as error:  # of pickletools, where the bytes are no pickle
            raise PickleFault(str(error)) from error

    def _step(self, name: str, argument: Any) -> None:
        push = self.stack.append
        if name in KEEP:
            self.memo[argument] = self._top()
        elif name in FETCH:
            if argument not in self.memo:
                raise PickleFault(f"asks for thing {argument}, which it never made")
            push(self.memo[argument])
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self._top()
        elif name in CONSTANTS:
            push(CONSTANTS[name])
        elif name in EMPTY:
            push(EMPTY[name]())
        elif name in TO_MARK:
            push(TO_MARK[name](self._to_mark()))
        elif name in TUPLES:
            push(tuple(self._several(TUPLES[name])))
        elif name in FILL:
            self._fill(self._several(FILL[name]) if FILL[name] else self._to_mark(), name.startswith("SET"))
        elif name in ("BINPERSID", "PERSID"):
            push(self.persistent(self._pop() if name == "BINPERSID" else argument))
        elif name == "POP":
            self._require(bool(self.stack))
            self.stack.pop()
        elif name == "POP_MARK":
            self._to_mark()
        elif name == "DUP":
            push(self._top())
        elif name not in NOTHING:
            self._foreign(name, argument)

    def _fill(self, parts: list[Any], items: bool) -> None:
        into = self._top()
        if items and isinstance(into, dict):
            put(into, parts)
        elif not items and isinstance(into, list):
            into.extend(parts)
        elif not isinstance(into, Strange):
            raise PickleFault(f"fills a {type(into).__name__} as if it were something else")

    def _foreign(self, name: str, argument: Any) -> None:
        """What names, calls or furnishes a thing of somebody's own."""
        if name in ("GLOBAL", "STACK_GLOBAL"):
            if name == "STACK_GLOBAL":
                symbol, module = self._pop(), self._pop()
                argument = f"{module if isinstance(module, str) else '?'} {symbol if isinstance(symbol, str) else '?'}"
            self.stack.append(self._named(argument))
        elif name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
            if name == "NEWOBJ_EX":
                self._pop()  # named arguments
            arguments, function = self._pop(), self._pop()
            self.stack.append(self._called(function, arguments))
        elif name in ("INST", "OBJ"):
            parts = self._to_mark()
            function = self._named(argument) if name == "INST" else parts.pop(0) if parts else None
            self.stack.append(self._called(function, tuple(parts)))
        elif name == "BUILD":
            self._pop()  # attributes of the thing below
            self._top()
        else:
            raise PickleFault(f"an operation {name}, which no checkpoint needs")

    def _named(self, words: str) -> Global:
        found = Global(words.replace(" ", "."))
        self.names[found.name] = None
        return found

    def _called(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise PickleFault("calls what is no function")
        return self.call(function.name, arguments)

    def _pop(self) -> Any:
        top = self._top()
        self.stack.pop()
        return top

    def _several(self, count: int) -> list[Any]:
        return [self._pop() for _ in range(count)][::-1]

    def _top(self) -> Any:
        self._require(bool(self.stack) and self.stack[-1] is not MARK)
        return self.stack[-1]

    def _to_mark(self) -> list[Any]:
        parts = []
        while self.stack and self.stack[-1] is not MARK:
            parts.append(self.stack.pop())
        self._require(bool(self.stack))
        self.stack.pop()
        return parts[::-1]

    def _require(self, there: bool) -> None:
        if not there:
            raise PickleFault("takes from a stack what is not on it")


def put(into: dict, parts: list[Any]) -> dict:
    """Keys and values in turn; a key of many parts could take for ever to compare."""
    for key, value in zip(parts[::2], parts[1::2], strict=False):
        if isinstance(key, SCALARS):
            into[key] = value
    return into
