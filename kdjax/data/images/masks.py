"""What the numbers in a mask mean: class ids, black and white, or values or colours that stand for classes."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Integer, UInt8

from kdjax.config import ConfigError

BINARY = 2
MOST = 64  # classes that are looked for in masks; more values are more likely a picture
SOFT = 16  # grey levels to either side of black and white that no class of a mask has
GREY = 0x010101  # times a grey level is its colour as a number, #rrggbb

Value = int | str  # of a class in a mask: a number, or where masks are coloured its colour, "#rrggbb"
UNCLEAR: tuple[Value, ...] = tuple(range(256))  # of masks that are refused as a whole: none is refused once more


def values_in(
    paths: Sequence[str], read: Callable[[str], np.ndarray], expected: int | None
) -> tuple[tuple[Value, ...], list[str]]:
    """The value of each class in these masks, 0 first, and what is unclear about them; `expected` is their number.

    Where all are below `expected` they are ids, of which some may not occur. Where one mask is coloured the values of
    all are colours, black first, then by their #rrggbb.
    """

    def look(path: str) -> tuple[bool, list[int]]:
        try:
            plane = read(path)
        except ConfigError:
            return False, []  # reading the example says it
        return coloured(plane), solid(numbers(plane, coloured(plane)))

    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        looks = list(pool.map(look, paths))
    colours = any(of_colour for of_colour, _ in looks)
    levels = [[v if of_colour or not colours else v * GREY for v in found] for of_colour, found in looks]
    values = tuple(sorted({0}.union(*levels)))
    if expected is not None and values[-1] < expected and not colours:
        return tuple(range(expected)), []
    least = (0, 1) if len(values) < BINARY else values
    if (expected or len(least)) == len(least) <= MOST:
        return tuple(map(hexadecimal, least)) if colours else least, []
    found = listed([hexadecimal(v) if colours else v for v in values], 12)
    classes = f"{expected} values, one for each class and the background" if expected else f"at most {MOST} classes"
    fault = f"the masks: expected {classes}, found {found}; mend the masks, or say how many classes there are"
    return UNCLEAR, [fault]


def numbered(plane: np.ndarray, values: tuple[Value, ...], path: str) -> UInt8[np.ndarray, "h w"]:
    """Class ids from a stored mask that has `values` in place of 0, 1, 2, ...; between two there may be a soft edge."""
    if values is UNCLEAR:
        return np.zeros(plane.shape[:2], np.uint8)
    colours = any(isinstance(value, str) for value in values)
    levels = np.array([int(v[1:], 16) if isinstance(v, str) else v for v in values])
    plane = numbers(plane, True) if colours else single(plane, path)
    if len(values) == BINARY:
        black_and_white = not colours and not 1 < levels[1] < 128  # which `ids` knows
        return ids(plane, BINARY, path) if black_and_white else (plane > levels[1] / 2).astype(np.uint8)
    at = np.searchsorted(levels, plane).clip(max=len(levels) - 1)
    if (strange := np.unique(plane[levels[at] != plane])).size:
        found = listed([hexadecimal(v) if colours else v for v in strange.tolist()], 6)
        raise ConfigError(
            f"{path}: expected the values of the other masks, {', '.join(map(str, values))}, found {found}; mend the "
            "mask (classes have no soft edges), or say how many classes there are with num_classes"
        )
    return at.astype(np.uint8)


def coloured(plane: np.ndarray) -> bool:
    return plane.ndim == 3 and bool((plane != plane[..., :1]).any())


def numbers(plane: np.ndarray, colours: bool) -> Integer[np.ndarray, "h w"]:
    """One number for every pixel: its grey level, or where the masks have `colours` its #rrggbb."""
    if not colours:
        return plane if plane.ndim == 2 else plane[..., 0]
    return plane * GREY if plane.ndim == 2 else plane @ np.array([1 << 16, 1 << 8, 1], plane.dtype)


def hexadecimal(colour: int) -> str:
    return f"#{colour:06x}"


def listed(values: Sequence[Value], most: int) -> str:
    return ", ".join(map(str, values[:most])) + (", ..." if values[most:] else "")


def single(plane: np.ndarray, path: str) -> Integer[np.ndarray, "h w"]:
    """A mask of one number per pixel; refuses colours."""
    if coloured(plane):
        raise ConfigError(
            f"{path}: expected a mask of class ids, found colours; store one number per pixel, 0 for none, or set "
            "num_classes=None in the data if each colour is a class"
        )
    return numbers(plane, False)


def ids(plane: np.ndarray, num_classes: int, path: str) -> UInt8[np.ndarray, "h w"]:
    """Class ids from a stored mask: ids as they are, or for two classes also black and white (0 and 255)."""
    plane = single(plane, path)
    largest = int(plane.max(initial=0))
    if num_classes == BINARY and largest > 127:  # between black and white there may be a soft edge
        if third := [v for v in solid(plane) if 0 < v < largest]:
            raise ConfigError(
                f"{path}: expected two values, 0 and 255 or 0 and 1, found {listed(sorted({0, *third, largest}), 12)}; "
                "mend the mask, or set num_classes=None if each value is a class"
            )
        return (plane > 127).astype(np.uint8)
    if largest >= num_classes:
        hint = "use num_classes=2 for black and white masks" if largest == 255 else f"set num_classes={largest + 1}"
        hint = "set num_classes=None if each value is a class" if MOST <= largest < 255 else hint
        raise ConfigError(
            f"{path}: expected class ids 0 to {num_classes - 1}, found {largest}; mend the mask or {hint}"
        )
    return plane.astype(np.uint8)


def solid(plane: Integer[np.ndarray, "h w"]) -> list[int]:
    """The values that fill a block of three by three pixels: classes do, and the greys of a soft edge do not. Where
    there are such greys, values near black and white are theirs, or a JPEG's noise."""
    inner = plane[1:-1, 1:-1]
    same = np.ones(inner.shape, bool)
    for y in range(3):
        for x in range(3):
            same &= plane[y : y + len(inner), x : x + inner.shape[1]] == inner
    white, values = int(plane.max(initial=0)), np.unique(inner[same]).tolist()
    if not ((plane > SOFT) & (plane < white - SOFT)).any():
        return values
    return [v for v in values if v in (0, white) or SOFT < v < white - SOFT]
