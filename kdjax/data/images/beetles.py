"""Generated beetles, whose kinds differ in small parts: an image follows from (seed, part, place, domain) alone.

A beetle sits on a leaf, anywhere near the middle, turned and of its own size, colour and light. What tells its kind is
the shape of the spots on its wings and how closely the stripes behind them lie; all else says nothing about it.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, UInt8

from kdjax.data.fields import Field
from kdjax.data.images.files import CLASS, IMAGE
from kdjax.data.images.forgeries import textures
from kdjax.data.images.generated import Generated
from kdjax.data.source import SPLITS, Facts

Plane = Float[np.ndarray, "h w"]

SPACINGS = {"plain": 0.0, "wide": 0.17, "close": 0.105, "fine": 0.07}  # of stripes, in parts of the side
TURN = 15.0  # degrees, to either side
LONG, SHORT = 0.40, 0.26  # half axes of the body, in parts of the side
SPOT = 0.105  # radius of a spot
PLACES = ((0.13, 0.115), (-0.10, 0.115))  # of the spots of one wing: along and across the body


def disc(x: Plane, y: Plane) -> Plane:
    return np.hypot(x, y) - 1


def ring(x: Plane, y: Plane) -> Plane:
    return np.abs(np.hypot(x, y) - np.float32(0.8)) - np.float32(0.25)


def square(x: Plane, y: Plane) -> Plane:
    return np.maximum(np.abs(x), np.abs(y)) - np.float32(0.85)


def triangle(x: Plane, y: Plane) -> Plane:
    return np.maximum(np.float32(0.866) * np.abs(y) + 0.5 * x, -x) - np.float32(0.6)


def cross(x: Plane, y: Plane) -> Plane:
    across, along = np.abs(x), np.abs(y)
    return np.maximum(np.minimum(across, along) - np.float32(0.3), np.maximum(across, along) - 1)


def crescent(x: Plane, y: Plane) -> Plane:
    return np.maximum(np.hypot(x, y) - 1, np.float32(0.75) - np.hypot(x - np.float32(0.55), y))


def bar(x: Plane, y: Plane) -> Plane:
    return np.maximum(np.abs(x) - np.float32(0.4), np.abs(y) - 1)


SHAPES: dict[str, Callable[[Plane, Plane], Plane]] = {  # spot -> how far a point lies outside, in radii
    shape.__name__: shape for shape in (disc, ring, square, triangle, cross)
}
STRANGE: dict[str, Callable[[Plane, Plane], Plane]] = {"crescent": crescent, "bar": bar}
DOMAINS = {"known": SHAPES, "strange": STRANGE}


@dataclass(frozen=True)
class Beetles(Generated):
    """Generated beetles of twenty kinds, nothing to download.

    A kind is one of five shapes of spots (disc, ring, square, triangle, cross) with one of four spacings of stripes
    (plain, wide, close, fine). `domain="strange"` has spots of other shapes, which are none of these kinds: its
    classes are kinds of their own.
    """

    size: int = 48
    train: int = 1200
    val: int = 300
    test: int = 600
    domain: str = "known"

    fields: ClassVar[dict[str, Field]] = {"image": IMAGE, "class": CLASS}
    domains: ClassVar[Iterable[str]] = DOMAINS

    @property
    def classes(self) -> Sequence[str]:
        return tuple(f"{shape} {spacing}" for shape, spacing in self.kinds)

    @property
    def kinds(self) -> list[tuple[str, str]]:
        return list(itertools.product(DOMAINS[self.domain], SPACINGS))

    def rng(self, i: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *self.place(i), list(DOMAINS).index(self.domain)])

    def inspect(self, i: int, decode: bool = True) -> Facts:
        return Facts(self._name(i), "", "", self._kind(i))

    def __getitem__(self, i: int) -> dict[str, Any]:
        kind = self._kind(i)
        shape, spacing = self.kinds[kind]
        image = portrait(self.rng(i), self.size, DOMAINS[self.domain][shape], SPACINGS[spacing])
        return {"image": image, "class": kind, "name": self._name(i)}

    def _kind(self, i: int) -> int:
        """All kinds in turn, so that each part has as many of each."""
        return self.place(i)[1] % len(self.kinds)

    def _name(self, i: int) -> str:
        part, place = self.place(i)
        return f"{SPLITS[part]}_{place:05d}_{'_'.join(self.kinds[self._kind(i)])}"


def portrait(
    rng: np.random.Generator, size: int, shape: Callable[[Plane, Plane], Plane], spacing: float
) -> UInt8[np.ndarray, "h w 3"]:
    """One beetle on its leaf, of side `size`."""
    angle, scale = np.deg2rad(rng.uniform(-TURN, TURN)), rng.uniform(0.85, 1.1)
    down, across = rng.uniform(-0.06, 0.06, 2)
    y, x = (axis.astype(np.float32) / size - np.float32(0.5) for axis in np.mgrid[0:size, 0:size])
    y, x = (y - np.float32(down)) / np.float32(scale), (x - np.float32(across)) / np.float32(scale)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    along, side = cos * y + sin * x, cos * x - sin * y  # the head is up
    pixel = np.float32(size * scale)

    def inside(outside: Plane) -> Plane:
        """The share of each pixel that lies in a shape, of which it is so far outside, in parts of the side."""
        return np.clip(np.float32(0.5) - outside * pixel, 0, 1)

    waves = textures(rng, size)
    leaf, shell, dark = rng.uniform(0.2, 0.65, 3), rng.uniform(0.35, 0.9, 3), rng.uniform(0.0, 0.22, 3)
    leaf[1] += 0.15
    image = _flat(leaf) + np.float32(rng.uniform(0.03, 0.09)) * (waves[:1] + 0.3 * waves)
    head = inside((np.hypot((along + np.float32(0.41)) / 0.1, side / 0.12) - 1) * np.float32(0.1))
    body = inside((np.hypot(along / np.float32(LONG), side / np.float32(SHORT)) - 1) * np.float32(SHORT))
    image = _painted(image, head, dark)
    image = _painted(image, body, shell)
    if spacing:
        phase = rng.uniform(0, 1)
        wave = np.sin(2 * np.pi * (along / np.float32(spacing) + np.float32(phase)))
        stripes = np.clip(0.5 + np.float32(spacing * pixel / 4) * wave, 0, 1) * np.float32(rng.uniform(0.3, 0.55))
        image = _painted(image, body * stripes, dark)
    image = _painted(image, body * inside(np.abs(side) - np.float32(0.008)), dark)
    spot = shell + (1 - shell) * rng.uniform(0.6, 0.95) if rng.random() < 0.5 else dark
    for u, v in PLACES:
        u, v = u + rng.uniform(-0.015, 0.015), v + rng.uniform(-0.01, 0.01)
        radius = np.float32(SPOT * rng.uniform(0.85, 1.15))
        for wing in (-1, 1):
            at = (side * wing - np.float32(v)) / radius, (along - np.float32(u)) / radius
            image = _painted(image, body * inside(shape(*at) * radius), spot)
    image *= 1 + np.float32(rng.uniform(-0.3, 0.3)) * along + np.float32(rng.uniform(-0.3, 0.3)) * side
    image = image + rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(0.01, 0.04))
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)


def _flat(colour: np.ndarray) -> Float[np.ndarray, "3 1 1"]:
    return colour.astype(np.float32)[:, None, None]


def _painted(image: Float[np.ndarray, "3 h w"], share: Plane, colour: np.ndarray) -> Float[np.ndarray, "3 h w"]:
    return image + share * (_flat(colour) - image)
