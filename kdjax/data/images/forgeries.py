"""Generated pictures, half of them forged: an image follows from (seed, part, place, domain) alone, nothing is on disk.

A picture is made the way a camera makes one. Surfaces, whose textures have the spectrum of nature and correlated
colours, meet at edges under uneven light; the sensor adds noise; a phone also interpolates a mosaic of colours and
sharpens; the file is a JPEG. A forgery is such a picture with a trace of its maker, put in before the JPEG: the steps
of up-sampling, a part of another size, a second compression. The traces are weak in some pictures and strong in others.
"""

import functools
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Complex, Float, UInt8
from PIL import Image

from kdjax.data.fields import Field
from kdjax.data.images.files import CLASS, IMAGE
from kdjax.data.images.generated import Generated
from kdjax.data.source import Facts

CLASSES = ("real", "fake")
Planes = Float[np.ndarray, "3 h w"]  # red, green and blue, in [0, 1]


@dataclass(frozen=True)
class Camera:
    """What a picture goes through after the scene; pairs are a range to draw from."""

    noise: tuple[float, float]  # standard deviation of the sensor's noise in mid-grey
    mosaic: bool  # each pixel sees one colour, and the others are interpolated
    sharpening: tuple[float, float]
    quality: tuple[int, int]  # of the JPEG
    subsampled: bool  # which stores colour at half the size


DOMAINS = {
    "studio": Camera((0.012, 0.03), mosaic=False, sharpening=(0.0, 0.2), quality=(90, 98), subsampled=False),
    "phone": Camera((0.004, 0.014), mosaic=True, sharpening=(0.3, 0.9), quality=(82, 94), subsampled=True),
}


@dataclass(frozen=True)
class Forgeries(Generated):
    """Generated pictures, real ones and forged ones in turn, nothing to download.

    The forgeries of train, val and the test set "known" have one of the traces nearest, transposed and blend; each of
    the test sets unknown_bilinear, unknown_peaks and unknown_recompressed has a trace of its own. `domain` is the
    camera, studio or phone.
    """

    size: int = 64
    train: int = 1600
    val: int = 400
    test: int = 200
    domain: str = "studio"

    fields: ClassVar[dict[str, Field]] = {"image": IMAGE, "class": CLASS}
    classes: ClassVar[tuple[str, ...]] = CLASSES
    domains: ClassVar[Iterable[str]] = DOMAINS
    test_sets: ClassVar[tuple[str, ...]] = ("known", "unknown_bilinear", "unknown_peaks", "unknown_recompressed")

    def option_faults(self) -> list[str]:
        odd = [f"size: expected an even number of pixels, found {self.size}"] if self.size % 2 else []
        return [*super().option_faults(), *odd]

    def rng(self, i: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *self.place(i), list(DOMAINS).index(self.domain)])

    def inspect(self, i: int, decode: bool = True) -> Facts:
        trace, name, test_set = self._origin(i, self.rng(i))
        return Facts(name, "", "", int(trace != "real"), test_set=test_set)

    def __getitem__(self, i: int) -> dict[str, Any]:
        rng = self.rng(i)
        trace, name, _ = self._origin(i, rng)
        return {
            "image": picture(rng, self.size, DOMAINS[self.domain], trace),
            "class": int(trace != "real"),
            "name": name,
        }

    def _origin(self, i: int, rng: np.random.Generator) -> tuple[str, str, str]:
        """The trace of an image ("real" is none), its name and its test set."""
        part, index = self.place(i)
        split, test_set, _ = self.parts[part]
        possible = (test_set.removeprefix("unknown_"),) if test_set.startswith("unknown_") else KNOWN
        trace = possible[rng.integers(len(possible))] if index % 2 else "real"
        return trace, f"{test_set if split == 'test' else split}_{index:05d}_{trace}", test_set


def picture(rng: np.random.Generator, size: int, camera: Camera, trace: str = "real") -> UInt8[np.ndarray, "h w 3"]:
    """A picture of side `size`, forged where a trace is named."""
    planes = developed(rng, scene(rng, size), camera)
    if trace != "real":
        planes = np.clip(TRACES[trace](rng, planes), 0, 1)
    return compressed(planes, int(rng.integers(*camera.quality, endpoint=True)), camera.subsampled)


# -- the camera ------------------------------------------------------------------------------------------------------


def scene(rng: np.random.Generator, size: int) -> Planes:
    """Textured surfaces that meet at edges, under light that falls off to one side."""
    y, x = _grid(size)
    waves = textures(rng, size)
    planes = _surface(rng, waves)
    for turned in (waves[:, ::-1], waves[:, :, ::-1], waves.transpose(0, 2, 1))[: rng.integers(1, 4)]:
        inside = np.clip(0.5 - _outside(rng, y, x) / np.float32(rng.uniform(0.7, 2.5)), 0, 1)
        planes = planes + inside * (_surface(rng, turned) - planes)
    angle, fall = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.5)
    light = 1 + np.float32(fall * np.cos(angle) / size) * y + np.float32(fall * np.sin(angle) / size) * x
    return planes * light


def textures(rng: np.random.Generator, size: int) -> Planes:
    """Three independent fields of unit variance whose amplitude falls with frequency as it does in nature."""
    noise = rng.standard_normal((3, size, size // 2 + 1, 2), dtype=np.float32)
    spectrum = noise.view(np.complex64)[..., 0] * (_frequency(size) ** np.float32(-rng.uniform(0.8, 1.5)))
    spectrum[:, 0, 0] = 0
    fields = _from_spectrum(spectrum, size)
    return fields / fields.std(axis=(1, 2), keepdims=True)


def _from_spectrum(spectrum: Complex[np.ndarray, "3 h f"], size: int) -> Planes:
    return np.fft.irfft2(spectrum, s=(size, size), axes=(1, 2)).astype(np.float32, copy=False)


def _surface(rng: np.random.Generator, waves: Planes) -> Planes:
    """A surface of one colour and texture: brightness varies most, and colours about it less."""
    contrast, warm, green = rng.uniform(0.02, 0.2) * np.array([1, rng.uniform(0, 0.4), rng.uniform(0, 0.25)])
    mixing = np.array([[contrast, warm, -green], [contrast, 0, green], [contrast, -warm, -green]], np.float32)
    colour = rng.uniform(0.25, 0.75) + rng.normal(0, 0.08, 3)
    return np.tensordot(mixing, waves, 1) + colour.astype(np.float32)[:, None, None]


def _outside(
    rng: np.random.Generator, y: Float[np.ndarray, "h w"], x: Float[np.ndarray, "h w"]
) -> Float[np.ndarray, "h w"]:
    """How many pixels a point lies outside of a shape, a half-plane or an ellipse at a random place."""
    size = len(y)
    angle, down, across = rng.uniform(0, 2 * np.pi), *rng.uniform(-0.35, 0.35, 2) * size
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u = cos * (y - np.float32(down)) + sin * (x - np.float32(across))
    if rng.random() < 0.5:
        return u
    v = cos * (x - np.float32(across)) - sin * (y - np.float32(down))
    long, short = (rng.uniform(0.15, 0.4, 2) * size).astype(np.float32)
    return (np.hypot(u / long, v / short) - 1) * min(long, short)


def developed(rng: np.random.Generator, planes: Planes, camera: Camera) -> Planes:
    """The scene with the noise of the sensor, which grows with the light, and what the camera makes of it."""
    noise = rng.standard_normal(planes.shape, dtype=np.float32) * np.float32(rng.uniform(*camera.noise))
    planes = planes + noise * np.sqrt(0.2 + 1.6 * np.clip(planes, 0, 1))
    if camera.mosaic:
        planes = demosaiced(planes)
    soft = _around(planes, np.array([0.25, 0.5, 0.25], np.float32))
    return np.clip(planes + np.float32(rng.uniform(*camera.sharpening)) * (planes - soft), 0, 1)


def demosaiced(planes: Planes) -> Planes:
    """What a sensor behind a Bayer pattern (red and green, green and blue) and bilinear interpolation leave."""
    sites = _bayer(planes.shape[1])
    kernel = np.array([0.5, 1, 0.5], np.float32)
    return np.where(sites > 0, planes, _around(planes * sites, kernel) / _around(sites, kernel))


def compressed(planes: Planes, quality: int, subsampled: bool) -> UInt8[np.ndarray, "h w 3"]:
    """What a JPEG leaves."""
    levels = np.ascontiguousarray((planes * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0))
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "jpeg", quality=quality, subsampling=2 if subsampled else 0)
    return np.asarray(Image.open(file))


# -- the traces ------------------------------------------------------------------------------------------------------


def nearest(rng: np.random.Generator, planes: Planes) -> Planes:
    """Up-sampled by repeating each pixel."""
    return _mixed(rng, planes, _halved(planes).repeat(2, axis=1).repeat(2, axis=2))


def transposed(rng: np.random.Generator, planes: Planes) -> Planes:
    """Up-sampled by a transposed convolution, whose uneven overlap leaves a pattern of squares."""
    gains = 1 + rng.uniform(0.01, 0.04, 2) * rng.choice([-1, 1], 2)
    larger = _halved(planes)
    for gain in gains.astype(np.float32):
        after = np.concatenate([larger[:, 1:], larger[:, -1:]], axis=1)
        larger = _woven(larger, gain / 2 * (larger + after)).swapaxes(1, 2)
    return _mixed(rng, planes, larger)


def bilinear(rng: np.random.Generator, planes: Planes) -> Planes:
    """Up-sampled by bilinear interpolation."""
    larger = _halved(planes)
    for _ in ("down", "across"):
        before = np.concatenate([larger[:, :1], larger[:, :-1]], axis=1)
        after = np.concatenate([larger[:, 1:], larger[:, -1:]], axis=1)
        larger = _woven(0.75 * larger + 0.25 * before, 0.75 * larger + 0.25 * after).swapaxes(1, 2)
    return _mixed(rng, planes, larger)


def blend(rng: np.random.Generator, planes: Planes) -> Planes:
    """A part of the picture, enlarged and blended in at another place."""
    size = planes.shape[1]
    factor = rng.uniform(1.3, 2.2)
    enlarged = planes
    for start in rng.uniform(0, size - 1 - (size - 1) / factor, 2):
        at = start + np.arange(size) / factor
        first = np.minimum(at.astype(int), size - 2)
        share = (at - first).astype(np.float32)[:, None]
        enlarged = ((1 - share) * enlarged[:, first] + share * enlarged[:, first + 1]).swapaxes(1, 2)
    inside = np.clip(0.5 - _outside(rng, *_grid(size)) / np.float32(rng.uniform(2, 6)), 0, 1)
    return planes + inside * (enlarged - planes)


def peaks(rng: np.random.Generator, planes: Planes) -> Planes:
    """Waves with a period of four or eight pixels, which up-sampling in several steps leaves."""
    y, x = _grid(planes.shape[1])
    for _ in range(rng.integers(1, 4)):
        down, across = np.array([(0, 1), (1, 0), (1, 1)])[rng.integers(3)] * (2 * np.pi / rng.choice([4, 8]))
        strength = rng.uniform(0.008, 0.025)
        planes = planes + np.float32(strength) * np.cos(np.float32(down) * y + np.float32(across) * x)
    return planes


def recompressed(rng: np.random.Generator, planes: Planes) -> Planes:
    """Compressed once before, with its blocks at other places."""
    shift = tuple(rng.integers(1, 8, 2).tolist())
    levels = compressed(np.roll(planes, shift, (1, 2)), int(rng.integers(50, 81)), subsampled=True)
    back = np.roll(levels.transpose(2, 0, 1), (-shift[0], -shift[1]), (1, 2))
    return back.astype(np.float32) / 255


KNOWN = ("nearest", "transposed", "blend")
TRACES: dict[str, Callable[[np.random.Generator, Planes], Planes]] = {
    trace.__name__: trace for trace in (nearest, transposed, blend, bilinear, peaks, recompressed)
}


def _mixed(rng: np.random.Generator, planes: Planes, larger: Planes) -> Planes:
    """Up-sampled planes, which have lost detail, with some of the detail put back."""
    return planes + np.float32(rng.uniform(0.3, 0.9)) * (larger - planes)


# -- arrays ----------------------------------------------------------------------------------------------------------


def _halved(planes: Planes) -> Float[np.ndarray, "3 hh ww"]:
    """The mean of each two by two."""
    size = planes.shape[1]
    return planes.reshape(3, size // 2, 2, size // 2, 2).mean(axis=(2, 4))


def _woven(even: Planes, odd: Planes) -> Float[np.ndarray, "3 hh w"]:
    """Rows of the two by turns."""
    return np.stack([even, odd], axis=2).reshape(3, -1, even.shape[2])


def _around(planes: Planes, kernel: Float[np.ndarray, " 3"]) -> Planes:
    """Each pixel with its neighbours, by the kernel down and across; beyond the edges lies the reflection."""
    for _ in ("down", "across"):
        padded = np.concatenate([planes[:, 1:2], planes, planes[:, -2:-1]], axis=1)
        planes = kernel[0] * padded[:, :-2] + kernel[1] * planes + kernel[2] * padded[:, 2:]
        planes = planes.swapaxes(1, 2)
    return planes


@functools.lru_cache(maxsize=4)
def _grid(size: int) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """Rows and columns, counted from the middle."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) - np.float32((size - 1) / 2)
    return y, x


@functools.lru_cache(maxsize=4)
def _frequency(size: int) -> Float[np.ndarray, "h f"]:
    """Of each wave of a real picture, in waves per picture; 1 for that which does not vary."""
    down, across = np.fft.fftfreq(size) * size, np.fft.rfftfreq(size) * size
    return np.maximum(np.hypot(down[:, None], across[None]), 1).astype(np.float32)


@functools.lru_cache(maxsize=4)
def _bayer(size: int) -> Planes:
    """1 where a pixel sees red, green or blue."""
    sites = np.zeros((3, size, size), np.float32)
    sites[0, ::2, ::2] = sites[1, ::2, 1::2] = sites[1, 1::2, ::2] = sites[2, 1::2, 1::2] = 1
    return sites
