"""A generated breast-ultrasound set: every image follows from (seed, split, index) alone, nothing is on disk.

The picture is built the way a scanner makes it. Tissue layers give an echo level in decibels for every point; a lesion,
shadows and the gain curve change it; complex Gaussian scatterers of that power are blurred by the point spread
function, wider with depth; the magnitude of the sum is speckle (Rayleigh for one look, smoother where the probe
compounds several), and its logarithm is what the screen shows.
"""

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Complex, Float, UInt8
from scipy import ndimage

from kdjax.data.fields import Field
from kdjax.data.images.files import CLASS, IMAGE, MASK
from kdjax.data.images.generated import Generated
from kdjax.data.source import SPLITS, Facts

CLASSES = ("benign", "malignant", "normal")
SHARES = (0.52, 0.36, 0.12)  # of the classes
MALIGNANT, NORMAL = 1, 2
DOMAINS = {"mixed": 1 / 6, "linear": 0.0, "convex": 1.0}  # share of fan-shaped images


@dataclass(frozen=True)
class Ultrasound(Generated):
    """Generated breast ultrasound, nothing to download; the splits lie one after the other.

    `domain` is the probe: linear (a rectangle), convex (a fan), or mixed. Masks hold 1 for a lesion, or with three
    classes 1 for a benign and 2 for a malignant one. A split does not change when another grows, and a shorter split is
    the beginning of a longer one.
    """

    domain: str = "mixed"
    num_classes: int = 2

    fields: ClassVar[dict[str, Field]] = {"image": IMAGE, "mask": MASK, "class": CLASS}
    classes: ClassVar[tuple[str, ...]] = CLASSES
    domains: ClassVar[Iterable[str]] = DOMAINS

    def option_faults(self) -> list[str]:
        if self.num_classes in (2, 3):
            return super().option_faults()
        fault = f"num_classes: expected 2 (lesion) or 3 (benign, malignant), found {self.num_classes}"
        return [*super().option_faults(), fault]

    def inspect(self, i: int, decode: bool = True) -> Facts:
        label = _label(self.rng(i))
        return Facts(self._name(i, label), "", "", label)

    def __getitem__(self, i: int) -> dict[str, Any]:
        rng = self.rng(i)
        label = _label(rng)
        grey, mask = scan(rng, self.size, label, convex=rng.random() < DOMAINS[self.domain])
        if self.num_classes == 3 and label == MALIGNANT:
            mask = mask * np.uint8(2)
        return {"image": np.stack([grey] * 3, -1), "mask": mask, "class": label, "name": self._name(i, label)}

    def _name(self, i: int, label: int) -> str:
        part, index = self.place(i)
        return f"{SPLITS[part]}_{index:05d}_{CLASSES[label]}"


def _label(rng: np.random.Generator) -> int:
    return int(np.searchsorted(np.cumsum(SHARES[:-1]), rng.random()))


def scan(
    rng: np.random.Generator, size: int, label: int, convex: bool = False
) -> tuple[UInt8[np.ndarray, "h w"], UInt8[np.ndarray, "h w"]]:
    """One B-mode image of side `size`, and the mask (0 or 1) of its lesion."""
    y, x = (axis.astype(np.float32) / size for axis in np.mgrid[0:size, 0:size])
    echo, gland = _tissue(rng, y)
    echo = _lobules(rng, echo, y, x, gland)
    mask = np.zeros((size, size), bool)
    if label != NORMAL:
        echo, mask = _lesion(rng, echo, y, x, gland, malignant=label == MALIGNANT)
    echo = _shadows(rng, echo, y, x)
    for k in range(4):  # gain, and a depth compensation that is never quite right
        echo = echo + np.float32(rng.normal(0, 2.5)) * np.cos(np.pi * k * y)
    amplitude = np.power(np.float32(10), echo / 20)
    looks = int(rng.integers(2, 5))
    power = sum(np.abs(speckle(rng, amplitude)) ** 2 for _ in range(looks)) / looks
    span = rng.uniform(44, 56)  # the dynamic range, dB
    decibels = 10 * np.log10(power + 10 ** rng.uniform(-5.6, -4.8))  # with the receiver's own noise
    grey = np.clip((decibels + span - rng.uniform(2, 8)) / span, 0, 1) ** rng.uniform(0.9, 1.3)
    if convex:
        grey, mask = _fan(rng, grey, mask)
    return (grey * 255 + 0.5).astype(np.uint8), mask.astype(np.uint8)


def speckle(
    rng: np.random.Generator, amplitude: Float[np.ndarray, "h w"], lateral: float = 0.008, axial: float = 0.0045
) -> Complex[np.ndarray, "h w"]:
    """The complex echo of random scatterers under a Gaussian point spread function; mean power `amplitude` squared.

    `lateral` and `axial` are the standard deviations at the surface, in parts of the image's side. The lateral one
    doubles down to the bottom, as a beam does behind its focus.
    """
    size = amplitude.shape[0]
    noise = rng.standard_normal((2, size, size), dtype=np.float32)
    scatterers = amplitude * (noise[0] + 1j * noise[1])
    reach = int(np.ceil(4 * axial * size))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(axial * size, 0.45)) ** 2)
    taps = (taps / np.sqrt(np.sum(taps**2))).astype(np.float32)
    padded = np.pad(scatterers, ((reach, reach), (0, 0)), mode="reflect")
    field = sum(tap * padded[k : k + size] for k, tap in enumerate(taps))
    width = max(lateral * size, 0.45) * (1 + np.arange(size, dtype=np.float32)[:, None] / size)
    frequency = 2 * np.pi * np.fft.fftfreq(size).astype(np.float32)[None, :]
    response = np.exp(-0.5 * (width * frequency) ** 2)
    response = response / np.sqrt(2 * np.mean(response**2, axis=1, keepdims=True))  # 2: real and imaginary parts
    return np.fft.ifft(np.fft.fft(field, axis=1) * response, axis=1)


def _tissue(
    rng: np.random.Generator, y: Float[np.ndarray, "h w"]
) -> tuple[Float[np.ndarray, "h w"], tuple[float, float]]:
    """Echo levels (dB) of skin, fat, fibroglandular tissue and muscle, and the depths at which the gland lies."""
    size = y.shape[0]
    skin = rng.uniform(0.02, 0.06)
    fat = skin + rng.uniform(0.08, 0.3)
    gland = fat + rng.uniform(0.25, 0.5)
    muscle = gland + rng.uniform(0.08, 0.22)
    # The layers are laid flat, then bent together, so that their textures follow them.
    edge = functools.partial(_step, y, width=0.008)
    level = np.full_like(y, -9)
    level = level + (rng.uniform(-25, -17) - level) * edge(skin)
    fatty = edge(skin) * (1 - edge(fat))
    glandular = edge(fat) * (1 - edge(gland))
    muscular = edge(gland) * (1 - edge(muscle))
    level = level + (rng.uniform(-17, -11) - level) * edge(fat)
    level = level + (rng.uniform(-26, -20) - level) * edge(gland)
    level = level + (rng.uniform(-36, -26) - level) * edge(muscle)
    septa = np.exp(-((_smooth(rng, size, 14, 5) / 0.16) ** 2))
    level += fatty * (9 * septa + 1.5 * _smooth(rng, size, 10, 6))
    ducts = np.exp(-((_smooth(rng, size, 20, 6) / 0.25) ** 2))
    level += glandular * rng.uniform(3, 10) * ducts
    level += glandular * rng.uniform(1, 4) * _smooth(rng, size, 30, 9)
    level += glandular * rng.uniform(1.5, 4) * _smooth(rng, size, 9, 7)
    fibres = np.exp(-((_smooth(rng, size, 26, 3) / 0.3) ** 2))
    level += muscular * (rng.uniform(6, 14) * fibres - 3)
    for depth, strength in ((skin, 5), (fat, 5), (gland, 10), (muscle, 12)):
        level += rng.uniform(0.3, 1) * strength * np.exp(-(((y - depth) / 0.008) ** 2))
    bend = rng.uniform(0.015, 0.05) * _smooth(rng, size, 2, 2) + rng.uniform(0.004, 0.014) * _smooth(rng, size, 6, 6)
    bend = bend * np.minimum(y * 6, 1)  # the skin lies against the probe
    rows, columns = np.arange(size, dtype=np.float32)[:, None], np.arange(size, dtype=np.float32)[None, :]
    at = np.stack([rows + bend * size, np.broadcast_to(columns, y.shape)])
    return ndimage.map_coordinates(level, at, order=1, mode="nearest"), (fat, gland)


def _lobules(
    rng: np.random.Generator,
    echo: Float[np.ndarray, "h w"],
    y: Float[np.ndarray, "h w"],
    x: Float[np.ndarray, "h w"],
    gland: tuple[float, float],
) -> Float[np.ndarray, "h w"]:
    """Lobules of fat inside the gland: dark like a lesion, but flat, with fading ends and nothing behind them."""
    for _ in range(int(rng.integers(0, 5))):
        cy, cx = rng.uniform(gland[0], gland[1]), rng.uniform(0.05, 0.95)
        height, tilt = rng.uniform(0.02, 0.07), rng.normal(0, 0.2)
        width = height * rng.uniform(2.2, 4)
        away = np.hypot((y - cy - tilt * (x - cx)) / height, (x - cx) / width)
        inside = _step(-away, -1.0, width=0.15)
        echo = echo - np.float32(rng.uniform(3, 9)) * inside
        echo = echo + np.float32(rng.uniform(0, 5)) * np.exp(-(((away - 1.15) / 0.15) ** 2))
    return echo


def _lesion(
    rng: np.random.Generator,
    echo: Float[np.ndarray, "h w"],
    y: Float[np.ndarray, "h w"],
    x: Float[np.ndarray, "h w"],
    gland: tuple[float, float],
    malignant: bool,
) -> tuple[Float[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """Adds a lesion and what it does to the sound behind it.

    Benign: a smooth ellipse, wider than tall, with a thin bright capsule; a cyst is free of echoes and brightens what
    lies behind. Malignant: irregular and spiculated, often taller than wide, without a sharp border, with a shadow.
    """
    size = y.shape[0]
    cyst = not malignant and rng.random() < 0.3
    across = rng.uniform(0.09, 0.2) if malignant else rng.uniform(0.07, 0.2)
    down = across * (rng.uniform(0.75, 1.35) if malignant else rng.uniform(0.45, 0.85))
    cy = min(max(rng.uniform(*gland), down + 0.06), 0.92 - down)
    cx, tilt = rng.uniform(0.15, 0.85), rng.normal(0, 0.25)
    u, v = x - cx, y - cy
    cos, sin = math.cos(tilt), math.sin(tilt)
    u, v = u * cos + v * sin, v * cos - u * sin
    away = np.hypot(u / across, v / down) / _outline(rng, np.arctan2(v / down, u / across), malignant)
    mask = away < 1
    soft = _step(-away, -1.0, width=rng.uniform(0.05, 0.14) if malignant else rng.uniform(0.02, 0.06))
    around = float(echo[(away > 1.1) & (away < 1.6)].mean())
    if cyst:
        level = rng.uniform(-52, -40)
    else:
        level = min(around, -12) - (rng.uniform(6, 14) if malignant else rng.uniform(7, 16))
    inner = level + (0 if cyst else 1) * rng.uniform(0.8, 2.5) * _smooth(rng, size, 12, 12)
    echo = echo + soft * (inner - echo)
    if malignant:
        echo = echo + rng.uniform(0, 6) * np.exp(-(((away - 1.25) / 0.2) ** 2))  # the echogenic halo
        if rng.random() < 0.35:  # microcalcifications
            spots = (rng.random((size, size), dtype=np.float32) < 0.006) & (away < 0.8)
            echo = np.where(spots, rng.uniform(-10, -2), echo)
        through = -rng.uniform(2, 16)
    else:
        echo = echo + rng.uniform(2, 8) * np.exp(-(((away - 1.04) / 0.05) ** 2))  # the capsule
        through = rng.uniform(5, 12) if cyst else rng.uniform(-2, 6)
    path = np.cumsum(soft, axis=0) / (2 * down * size)  # the part of the sound's way that led through the lesion
    fading = np.exp(-np.maximum(y - cy - down, 0) / rng.uniform(0.25, 0.6))
    behind = _step(y, cy + down, width=0.03) if through > 0 else 1
    return (echo + through * path * fading * behind).astype(np.float32), mask


def _outline(rng: np.random.Generator, angle: Float[np.ndarray, "h w"], malignant: bool) -> Float[np.ndarray, "h w"]:
    """The radius over the angle, about 1."""
    theta = np.linspace(-np.pi, np.pi, 361, dtype=np.float32)
    radius = np.ones_like(theta)
    for k in range(2, 9 if malignant else 5):
        wave = np.cos(k * theta + np.float32(rng.uniform(0, 2 * np.pi)))
        radius += np.float32(rng.normal(0, (0.12 if malignant else 0.09) / k**0.7)) * wave
    if malignant:
        for _ in range(int(rng.integers(4, 10))):
            turn = np.angle(np.exp(1j * (theta - rng.uniform(-np.pi, np.pi))))
            radius += rng.uniform(0.05, 0.3) * np.exp(-((turn / rng.uniform(0.08, 0.18)) ** 2))
    return np.interp(angle, theta, np.maximum(radius, 0.5)).astype(np.float32)


def _shadows(
    rng: np.random.Generator,
    echo: Float[np.ndarray, "h w"],
    y: Float[np.ndarray, "h w"],
    x: Float[np.ndarray, "h w"],
) -> Float[np.ndarray, "h w"]:
    """Dark columns under ligaments and bad contact, and the loss with depth that is left."""
    for _ in range(int(rng.integers(0, 4))):
        column = np.exp(-(((x - rng.uniform(0, 1) - rng.normal(0, 0.1) * y) / rng.uniform(0.02, 0.09)) ** 2))
        echo = echo - np.float32(rng.uniform(2, 12)) * column * _step(y, rng.uniform(0, 0.6), width=0.06)
    return echo - np.float32(rng.uniform(0, 10)) * np.maximum(y - 0.4, 0)


def _fan(
    rng: np.random.Generator, grey: Float[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"]
) -> tuple[Float[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """The picture of a convex probe: depth becomes a radius and the column an angle; outside the fan it is black."""
    size = grey.shape[0]
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    half = rng.uniform(0.35, 0.6)  # half the opening, radians
    near = rng.uniform(0.5, 0.9)  # radius of the probe's face
    top = near * np.cos(half)
    scale = min((near + 1) * np.sin(half) * 2, near + 1 - top)  # to fill the picture
    depth, side = top + y * scale, (x - 0.5) * scale
    at = np.stack([np.hypot(depth, side) - near, np.arctan2(side, depth) / (2 * half) + 0.5]) * size
    return ndimage.map_coordinates(grey, at, order=1), ndimage.map_coordinates(mask, at, order=0)


def _step(at: Float[np.ndarray, "h w"], edge: float, width: float) -> Float[np.ndarray, "h w"]:
    """0 below the edge, 1 above it."""
    return 0.5 + 0.5 * np.tanh((at - np.float32(edge)) / np.float32(width))


def _smooth(rng: np.random.Generator, size: int, down: int, across: int) -> Float[np.ndarray, "h w"]:
    """Noise of unit variance with about `down` x `across` bumps."""
    rows = _bumps(size, down) @ rng.standard_normal((down + 3, across + 3), dtype=np.float32)
    # In blocks, since BLAS starts threads for larger products, and with readers in threads already they stand in a row.
    blocks = rows.reshape(-1, math.gcd(size, 32), across + 3) @ _bumps(size, across).T
    return blocks.reshape(size, size)


@functools.lru_cache(maxsize=64)
def _bumps(size: int, n: int) -> Float[np.ndarray, "h n"]:
    at, knots = np.arange(size)[:, None] * n / size, np.arange(-1, n + 2)[None, :]
    weights = np.exp(-0.5 * ((at - knots) / 0.6) ** 2)
    return (weights / np.sqrt((weights**2).sum(1, keepdims=True))).astype(np.float32)
