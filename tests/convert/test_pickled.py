"""A pickle is followed as data: what it says comes out, nothing that it names is called, and it comes to an end."""

import contextlib
import io
import pickle
from collections import OrderedDict
from typing import Any

import pytest

from convert.pickled import OPERATIONS, Pickle, PickleFault, Strange
from tests.hostile_files.bombs import BOMBS


def told(content: bytes) -> tuple[Any, list[str]]:
    found = Pickle(io.BytesIO(content), lambda name, arguments: Strange(name), lambda told: ("persistent", told))
    return found.load(), list(found.names)


SHARED = [1.5, None]
THINGS = {"a": [1, -2, 1 << 70, True, 0.1, "é", b"\xff", (), (1,), (1, 2, 3), (1, 2, 3, 4)], "b": {3: {}, None: []}}


@pytest.mark.parametrize("protocol", range(1, pickle.HIGHEST_PROTOCOL + 1))
def test_plain_things_come_out_as_they_are(protocol):
    value, names = told(pickle.dumps(THINGS | {"shared": (SHARED, SHARED)}, protocol))
    expected = THINGS | {"shared": (SHARED, SHARED)}
    if protocol < 3:  # bytes are made by a function then
        assert isinstance(value["a"].pop(6), Strange)
        assert names == ["_codecs.encode"]
        expected = expected | {"a": [x for x in THINGS["a"] if not isinstance(x, bytes)]}
    assert value == expected
    assert value["shared"][0] is value["shared"][1]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_is_called(protocol, capsys):
    class Runs:
        def __reduce__(self):
            return print, ("code was run",)

    value, names = told(pickle.dumps({"x": Runs(), "y": OrderedDict(a=1)}, protocol))
    assert isinstance(value["x"], Strange)
    assert {name.rpartition(".")[2] for name in names} == {"print", "OrderedDict"}
    assert capsys.readouterr().out == ""


def test_sets_and_strange_keys():
    assert told(pickle.dumps({1}, 4))[0] == told(pickle.dumps(frozenset({1}), 4))[0] == [1]
    assert told(pickle.dumps({(1, 2): 3, "x": 4}))[0] == {"x": 4}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_followed_in_no_time(bomb):
    """Told as few things that are shared, or refused; of what it announces, no room is made."""
    with contextlib.suppress(PickleFault):
        told(b"\x80\x02" + bomb + b".")


def test_it_cannot_go_on_for_ever():
    with pytest.raises(PickleFault, match=f"at most {OPERATIONS:,} steps"):
        told(b"\x80\x02" + b"N0" * OPERATIONS + b"N.")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b".",
        b"N",
        b"\x80\x02a.",
        b"(.",
        b"Na.",
        b"NNs.",
        b"]NNs.",
        b"}Na.",
        b"NNR.",
        b"h\x05.",
        b"0.",
        b"1.",
        b"2.",
        b"Nb.",
    ],
)
def test_what_is_no_pickle_is_refused(content):
    with pytest.raises(PickleFault):
        told(content)
