"""What the numbers in a mask mean: class ids, black and white, or values that stand for classes."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Integer, UInt8

from kdjax.config import ConfigError

BINARY = 2
MOST = 64  # classes that are looked for in masks; more values are more likely a picture
SOFT = 16  # grey levels to either side of black and white that no class of a mask has


def values_in(
    paths: Sequence[str], read: Callable[[str], np.ndarray], expected: int | None
) -> tuple[tuple[int, ...], list[str]]:
    """The value of each class in these masks, 0 first, and what is unclear about them; `expected` is their number.

    Where all are below `expected` they are ids, of which some may not occur.
    """

    def look(path: str) -> list[int]:
        try:
            return solid(single(read(path), path))
        except ConfigError:
            return []  # reading the example says it

    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        values = tuple(sorted({0}.union(*pool.map(look, paths))))
    if expected is not None and values[-1] < expected:
        return tuple(range(expected)), []
    least = (0, 1) if len(values) < BINARY else values
    if (expected or len(least)) == len(least) <= MOST:
        return least, []
    found = ", ".join(map(str, values[:12])) + (", ..." if values[12:] else "")
    names = f"{expected} values, one for each name and the background" if expected else f"at most {MOST} classes"
    fault = f"the masks: expected {names}, found {found}; mend the masks or the names"
    return tuple(range(256)), [fault]  # so that no mask is refused for it once more


def numbered(plane: np.ndarray, values: tuple[int, ...], path: str) -> UInt8[np.ndarray, "h w"]:
    """Class ids from a stored mask that has `values` in place of 0, 1, 2, ...; between two there may be a soft edge."""
    plane = single(plane, path)
    if len(values) == BINARY:
        grey = 1 < values[1] < 128  # else it is black and white, which `ids` knows
        return (plane > values[1] / 2).astype(np.uint8) if grey else ids(plane, BINARY, path)
    at = np.searchsorted(values, plane).clip(max=len(values) - 1)
    if (strange := np.unique(plane[np.asarray(values)[at] != plane])).size:
        found = ", ".join(map(str, strange[:6])) + (", ..." if strange[6:].size else "")
        raise ConfigError(
            f"{path}: expected the values of the other masks, {', '.join(map(str, values))}, found {found}; mend the "
            "mask (classes have no soft edges), or say how many classes there are with num_classes"
        )
    return at.astype(np.uint8)


def single(plane: np.ndarray, path: str) -> Integer[np.ndarray, "h w"]:
    """A mask of one number per pixel; refuses colours."""
    if plane.ndim == 3 and (plane != plane[..., :1]).any():
        raise ConfigError(
            f"{path}: expected a mask of class ids, found colours; store one number per pixel, 0 for none"
        )
    return plane if plane.ndim == 2 else plane[..., 0]


def ids(plane: np.ndarray, num_classes: int, path: str) -> UInt8[np.ndarray, "h w"]:
    """Class ids from a stored mask: ids as they are, or for two classes also black and white (0 and 255)."""
    plane = single(plane, path)
    largest = int(plane.max(initial=0))
    if num_classes == BINARY and largest > 127:  # between black and white there may be a soft edge
        if third := [v for v in solid(plane) if 0 < v < largest]:
            found = ", ".join(map(str, sorted({0, *third, largest})))
            raise ConfigError(
                f"{path}: expected two values, 0 and 255 or 0 and 1, found {found}; mend the mask, or set "
                "num_classes=None if each value is a class"
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
