"""Augmentation on the device: pure, and the same for a view of an example wherever and whenever it is dealt out."""

import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from kdjax.config import MIXING, ConfigError, nearest
from kdjax.data.fields import Field, GraphsField, known
from kdjax.data.images import degrade

GEOMETRIC = ("hflip", "vflip", "rotate", "zoom", "crop")
PHOTOMETRIC = ("gamma", "contrast", "colour", "blur", "jpeg", "erase")

ANGLE = 30.0  # degrees, to either side
ZOOM = (1.0, 1.3)
MARGIN = 8  # "crop" pads by the side divided by this
GAMMA = (0.5, 1.9)
CONTRAST = (0.5, 2.0)
SATURATION = (0.0, 1.5)
SIGMA = (0.2, 2.0)  # of "blur", pixels
QUALITY = (50.0, 95.0)
ERASED = (0.02, 0.2)  # share of the area
ASPECT = (0.3, 3.3)  # of the erased rectangle, height to width
GRID = 14  # patches to a side, of which "tokenmix" and "mixtoken" take some: 16 pixels of 224 each
PATCH = 16  # pixels, the side of what "patchmix" takes

TRANSFORMS = {  # name -> what it does
    "hflip": "left becomes right",
    "vflip": "top becomes bottom",
    "rotate": f"a turn by up to {ANGLE:.0f} degrees",
    "zoom": f"a part of the image, {ZOOM[0]:.0f} to {ZOOM[1]} times as large",
    "crop": f"a shift by up to 1/{MARGIN} of the side",
    "gamma": f"x^(1/g), g in {list(GAMMA)}",
    "contrast": f"the distance from the mean, times {CONTRAST[0]} to {CONTRAST[1]:.0f}",
    "colour": f"the hue turned by any angle, the saturation times {SATURATION[0]:.0f} to {SATURATION[1]}",
    "blur": f"a Gaussian blur, its standard deviation {SIGMA[0]} to {SIGMA[1]:.0f} pixels",
    "jpeg": f"JPEG of quality {QUALITY[0]:.0f} to {QUALITY[1]:.0f}, colour at half the size",
    "erase": f"a rectangle of {ERASED[0]:.0%} to {ERASED[1]:.0%} of the area becomes the mean of the image",
    "mixup": "a weighted mean with another example, and the soft target that belongs to it",
    "cutmix": "a rectangle of another example, and the soft target that belongs to it",
    "tokenmix": f"patches here and there, of a grid of {GRID} by {GRID}, of another example, and the soft target",
    "mixtoken": f"a rectangle of patches of a grid of {GRID} by {GRID} of another example, and the soft target",
    "patchmix": f"one patch of {PATCH} by {PATCH} pixels of another example, and the soft target",
}

Batch = dict[str, Array]


def mixes(probabilities: Mapping[str, float]) -> bool:
    """Whether these transforms mix examples, and so write a soft target."""
    return any(probabilities.get(name) for name in MIXING)


def clean(name: str) -> str:
    """The name of the field that keeps an image as it is before it is mixed."""
    return f"clean_{name}"


def mixed(name: str) -> str:
    """The image that a field of `clean` is of; any other field is itself."""
    return name.removeprefix("clean_")


def faults(probabilities: Mapping[str, float], fields: Mapping[str, Field | GraphsField]) -> list[str]:
    """What keeps these transforms from working on a batch of these fields, a sentence each."""
    sentences = []
    for name, probability in probabilities.items():
        if name not in TRANSFORMS:
            sentences.append(f"augment: no transform {name!r}; {nearest(name, TRANSFORMS)}")
        elif not 0 <= probability <= 1:
            sentences.append(f"augment.{name}: expected a probability in [0, 1], found {probability}")
    applied = [name for name in TRANSFORMS if probabilities.get(name)]
    images = [name for name, field in fields.items() if field.kind == "image"]
    if applied and not images:
        sentences.append(f"augment: {', '.join(applied)} change images, and this data has none; leave augment empty")
        return sentences
    mixing = [name for name in applied if name in MIXING]
    if mixing and not {"class", "target"} & set(fields):
        sentences.append(
            f"augment: {' and '.join(mixing)} mix classes, and this data has no 'class'; leave them out of augment"
        )
    if sum(probabilities[name] for name in mixing) > 1:
        sentences.append(
            f"augment: an example is mixed in one way, so expected probabilities of {', '.join(mixing)} that sum to at "
            f"most 1, found {sum(probabilities[name] for name in mixing)}"
        )
    return sentences


def writes(probabilities: Mapping[str, float], fields: Mapping[str, Field], num_classes: int) -> dict[str, Field]:
    """The fields that mixing adds to a batch of these fields."""
    if not mixes(probabilities):
        return {}
    images = {clean(name): field for name, field in fields.items() if field.kind == "image"}
    target = {} if "target" in fields else {"target": Field((num_classes,), "float32", "target")}
    return {**target, **images}


def transform(
    key: Key[Array, ""],
    batch: Batch,
    probabilities: Mapping[str, float],
    fields: Mapping[str, Field | GraphsField] | None = None,
    alpha: float = 1.0,
) -> Batch:
    """Applies each named transform with its probability to the images of a batch, which are in [0, 1].

    `key` is that of the seed and the use. The draws of an example follow from it, its `view` and its `index` alone.
    `fields` say which arrays are images and masks; without them floats [b, h, w, 3] are images, integers [b, h, w]
    masks.

    gamma: x^(1/g), g in [0.5, 1.9]. contrast: the distance from the mean times 0.5 to 2. colour: the difference of each
    channel from the luminance, turned about the grey axis by any angle, times 0 to 1.5. blur: by a Gaussian of sigma
    0.2 to 2 pixels. jpeg: of quality 50 to 95. Then, in one resampling of images and masks: rotation by up to 30
    degrees, zoom by 1 to 1.3 at a random place, flips, and crop, a shift by up to 1/8 of the side; bilinear for images,
    nearest for masks, zero from outside. erase: a rectangle of 2 to 20 % of the area becomes the mean of the image.

    Mixing takes the next example of the batch as a partner where both are valid. mixup: share * x + (1 - share) *
    partner, share drawn from Beta(alpha, alpha), which is uniform in [0, 1] where `alpha` is 1. cutmix: a rectangle of
    1 - share of the area comes from the partner. tokenmix: so do the patches of a grid of 14 by 14, each with the
    probability 1 - share (after Liu et al. 2022, arXiv 2207.08409). mixtoken: so does a rectangle of whole patches
    (Jiang et al. 2021, arXiv 2104.10858). patchmix: so does one patch of 16 by 16 pixels, which Image-Classification
    calls tokenmix and mixtoken. `target` [b, k], which the data set fills with the class as one-hot, is mixed by the
    share of the image, and known where both classes are. A mask follows what is pasted; of images mixed by mixup it is
    not known. "clean_image" is the image before mixing.
    """
    images, masks = _of_kind(batch, fields, "image"), _of_kind(batch, fields, "mask")
    images = [name for name in images if name not in map(clean, images)]
    if sentences := faults(probabilities, {name: Field((), "float32", "image") for name in images} | _classes(batch)):
        raise ConfigError("\n  ".join(sentences))
    keys = jax.vmap(lambda view, index: jax.random.fold_in(jax.random.fold_in(key, view), index))(
        batch["view"], batch["index"]
    )
    draws = jax.vmap(lambda k: draw(k, probabilities, alpha))(keys)
    batch = batch | {name: _photometric(batch[name], draws, probabilities) for name in images}
    if any(probabilities.get(name) for name in GEOMETRIC):
        batch |= {name: jax.vmap(_warp)(batch[name], draws) for name in images}
        batch |= {name: jax.vmap(_warp_mask)(batch[name], draws) for name in masks}
    if probabilities.get("erase"):
        batch |= {name: _erase(batch[name], draws) for name in images}
    batch |= {name: jnp.where(batch["valid"][:, None, None, None], batch[name], 0) for name in images}
    return _mix(batch, images, masks, draws, probabilities) if mixes(probabilities) else batch


def draw(key: Key[Array, ""], probabilities: Mapping[str, float], alpha: float = 1.0) -> dict[str, Float[Array, "..."]]:
    """The parameters of every transform for one example; one that does not happen has its neutral value."""

    def uniform(name: str, n: int, low: float = 0.0) -> Float[Array, " n"]:
        return jax.random.uniform(jax.random.fold_in(key, zlib.crc32(name.encode())), (n,), minval=low)

    def pick(name: str, low: float, high: float, neutral: float) -> Float[Array, ""]:
        happens, value = uniform(name, 2)
        return jnp.where(happens < probabilities.get(name, 0.0), low + (high - low) * value, neutral)

    happens, area, aspect, *corner = uniform("erase", 5)
    area = ERASED[0] + (ERASED[1] - ERASED[0]) * area
    aspect = ASPECT[0] * (ASPECT[1] / ASPECT[0]) ** aspect
    sides = jnp.sqrt(jnp.stack([area * aspect, area / aspect]))
    erased = jnp.where(happens < probabilities.get("erase", 0.0), sides, 0.0)
    mixed, share = uniform("mix", 2)
    if alpha != 1.0:
        share = jax.random.beta(jax.random.fold_in(key, zlib.crc32(b"share")), alpha, alpha)
    ends = [sum(probabilities.get(name, 0.0) for name in MIXING[:i]) for i in range(len(MIXING) + 1)]
    shifted = uniform("crop", 3)
    return {
        "hflip": pick("hflip", -1.0, -1.0, 1.0),
        "vflip": pick("vflip", -1.0, -1.0, 1.0),
        "rotate": pick("rotate", -ANGLE, ANGLE, 0.0),
        "zoom": pick("zoom", *ZOOM, 1.0),
        "place": uniform("place", 2, low=-1.0),
        "crop": jnp.where(shifted[0] < probabilities.get("crop", 0.0), 2 * shifted[1:] - 1, 0.0),
        "gamma": pick("gamma", *GAMMA, 1.0),
        "contrast": pick("contrast", *CONTRAST, 1.0),
        "hue": pick("colour", -jnp.pi, jnp.pi, 0.0),
        "saturation": SATURATION[0] + (SATURATION[1] - SATURATION[0]) * uniform("saturation", 1)[0],
        "blur": pick("blur", *SIGMA, 0.0),
        "jpeg": pick("jpeg", *QUALITY, 0.0),
        "erase": jnp.concatenate([(1 - erased) * jnp.stack(corner), erased]),
        **{name: jnp.where((mixed >= ends[i]) & (mixed < ends[i + 1]), share, 1.0) for i, name in enumerate(MIXING)},
        "cut": uniform("cut", 2),
        "patches": uniform("patches", GRID * GRID),
    }


def _of_kind(batch: Batch, fields: Mapping[str, Field | GraphsField] | None, kind: str) -> list[str]:
    if fields is not None:
        return [name for name in batch if name in fields and fields[name].kind == kind]
    if kind == "image":
        return [k for k, v in batch.items() if jnp.ndim(v) == 4 and v.shape[-1] == 3 and v.dtype.kind == "f"]
    return [k for k, v in batch.items() if jnp.ndim(v) == 3 and v.dtype.kind in "iu"]


def _classes(batch: Batch) -> dict[str, Field]:
    return {name: Field((), "float32", name) for name in ("class", "target") if name in batch}


# -- photometric -----------------------------------------------------------------------------------------------------


def _photometric(
    image: Float[Array, "b h w c"], draws: dict[str, Array], probabilities: Mapping[str, float]
) -> Float[Array, "b h w c"]:
    if probabilities.get("gamma"):
        image = image ** (1 / draws["gamma"])[:, None, None, None]
    if probabilities.get("contrast"):
        mean = jnp.mean(image, (1, 2, 3), keepdims=True)
        image = jnp.clip((image - mean) * draws["contrast"][:, None, None, None] + mean, 0, 1)
    if probabilities.get("colour"):
        turned = jnp.einsum("bij,bhwj->bhwi", jax.vmap(_colours)(draws["hue"], draws["saturation"]), image)
        image = jnp.where(draws["hue"][:, None, None, None] == 0, image, jnp.clip(turned, 0, 1))
    if probabilities.get("blur"):
        image = jax.vmap(degrade.blur)(image, draws["blur"])
    if probabilities.get("jpeg"):
        coded = jax.vmap(degrade.jpeg)(image, draws["jpeg"])
        image = jnp.where((draws["jpeg"] > 0)[:, None, None, None], coded, image)
    return image


def _colours(hue: Float[Array, ""], saturation: Float[Array, ""]) -> Float[Array, "3 3"]:
    """Turns colours about the grey axis, on which it leaves the luminance (ITU-R BT.601) as it is."""
    grey = jnp.broadcast_to(jnp.asarray((0.299, 0.587, 0.114)), (3, 3))
    axis = jnp.full((3, 3), 1 / 3)
    quarter = jnp.asarray([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / 3**0.5
    turn = axis + jnp.cos(hue) * (jnp.eye(3) - axis) + jnp.sin(hue) * quarter
    return grey + saturation * (turn - grey @ turn)


def _erase(image: Float[Array, "b h w c"], draws: dict[str, Array]) -> Float[Array, "b h w c"]:
    inside = rectangle(draws["erase"], image.shape[1], image.shape[2])
    return jnp.where(inside[..., None], image.mean(axis=(1, 2), keepdims=True), image)


def rectangle(sides: Float[Array, "b 4"], h: int, w: int) -> Bool[Array, "b h w"]:
    """The pixels whose centre lies in the rectangle (top, left, height, width), in parts of the sides."""
    top, left, height, width = (sides[:, i, None] for i in range(4))
    y, x = (jnp.arange(h) + 0.5)[None, :] / h, (jnp.arange(w) + 0.5)[None, :] / w
    rows, columns = (y >= top) & (y < top + height), (x >= left) & (x < left + width)
    return rows[:, :, None] & columns[:, None, :]


# -- geometric -------------------------------------------------------------------------------------------------------


def _sources(h: int, w: int, drawn: dict[str, Array]) -> tuple[Float[Array, "h w"], Float[Array, "h w"]]:
    """Where every output pixel comes from."""
    angle, zoom = jnp.deg2rad(drawn["rotate"]), drawn["zoom"]
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    room = 0.5 * (1 - 1 / zoom) * drawn["place"]
    shift = jnp.round(drawn["crop"] * jnp.array([h // MARGIN, w // MARGIN]))
    rows, columns = jnp.meshgrid(jnp.arange(h) - (h - 1) / 2, jnp.arange(w) - (w - 1) / 2, indexing="ij")
    rows = (rows + shift[0]) * drawn["vflip"] / zoom + room[0] * h
    columns = (columns + shift[1]) * drawn["hflip"] / zoom + room[1] * w
    y = cos * rows - sin * columns + (h - 1) / 2
    x = sin * rows + cos * columns + (w - 1) / 2
    return y, x


def _warp(image: Float[Array, "h w c"], drawn: dict[str, Array]) -> Float[Array, "h w c"]:
    """One image at a time, so that a sharded batch stays in its place."""
    h, w, _ = image.shape
    y, x = _sources(h, w, drawn)
    y0, x0 = jnp.floor(y), jnp.floor(x)
    down, right = y - y0, x - x0
    warped = jnp.zeros_like(image)
    for dy, weight_y in ((0, 1 - down), (1, down)):
        for dx, weight_x in ((0, 1 - right), (1, right)):
            at, inside = _flat(y0 + dy, x0 + dx, h, w)
            taken = image.reshape(h * w, -1).at[at].get(mode="promise_in_bounds")
            warped += jnp.where(inside, weight_y * weight_x, 0)[..., None] * taken
    return warped


def _warp_mask(mask: Int[Array, "h w"], drawn: dict[str, Array]) -> Int[Array, "h w"]:
    h, w = mask.shape
    y, x = _sources(h, w, drawn)
    at, inside = _flat(jnp.round(y), jnp.round(x), h, w)
    return jnp.where(inside, mask.reshape(h * w).at[at].get(mode="promise_in_bounds"), 0)


def _flat(
    y: Float[Array, "h w"], x: Float[Array, "h w"], height: int, width: int
) -> tuple[Int[Array, "h w"], Bool[Array, "h w"]]:
    """Where a pixel lies in the flattened image, and whether it lies in it at all."""
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return jnp.where(inside, y.astype(jnp.int32) * width + x.astype(jnp.int32), 0), inside


# -- mixing ----------------------------------------------------------------------------------------------------------


def _mix(
    batch: Batch, images: list[str], masks: list[str], draws: dict[str, Array], probabilities: Mapping[str, float]
) -> Batch:
    both = batch["valid"] & _partner(batch["valid"])
    blended = both & (draws["mixup"] < 1)
    pastes = {name: both & (draws[name] < 1) for name in PASTES if probabilities.get(name)}
    pasted = sum(pastes.values(), jnp.zeros_like(both))
    share = jnp.where(blended, draws["mixup"], 1.0)

    def inside(h: int, w: int) -> Bool[Array, "b h w"]:
        """The pixels that come from the partner; a row is mixed in one way at most."""
        areas = [happens[:, None, None] & PASTES[name](draws, h, w) for name, happens in pastes.items()]
        return sum(areas, jnp.zeros((len(both), h, w), bool))

    mixed = dict(batch)
    for name in images:
        image, b = batch[name], len(batch[name])
        mixed[clean(name)] = image
        blend = share.reshape(b, 1, 1, 1)
        image = jnp.where(blend < 1, blend * image + (1 - blend) * _partner(image), image)
        mixed[name] = jnp.where(inside(*image.shape[1:3])[..., None], _partner(batch[name]), image)
    for name in masks:
        mixed[name] = jnp.where(inside(*batch[name].shape[1:3]), _partner(batch[name]), batch[name])
        mixed[known(name)] = _known_of_both(batch[known(name)], pasted) & ~blended
    h, w = batch[images[0]].shape[1:3]
    own = share - inside(h, w).mean(axis=(1, 2))
    mixed["target"] = own[:, None] * batch["target"] + (1 - own[:, None]) * _partner(batch["target"])
    mixed[known("target")] = _known_of_both(batch[known("target")], blended | pasted)
    return mixed


def _cut(draws: dict[str, Array], h: int, w: int) -> Bool[Array, "b h w"]:
    side = jnp.sqrt(1 - draws["cutmix"])[:, None]
    return rectangle(jnp.concatenate([(1 - side) * draws["cut"], side, side], axis=1), h, w)


def _cut_patches(draws: dict[str, Array], h: int, w: int) -> Bool[Array, "b h w"]:
    """As `_cut`, in whole patches."""
    side = jnp.round(GRID * jnp.sqrt(1 - draws["mixtoken"]))[:, None]
    place = jnp.floor((GRID - side + 1) * draws["cut"])
    return rectangle(jnp.concatenate([place, side, side], axis=1) / GRID, h, w)


def _scattered(draws: dict[str, Array], h: int, w: int) -> Bool[Array, "b h w"]:
    taken = (draws["patches"] < 1 - draws["tokenmix"][:, None]).reshape(-1, GRID, GRID)
    rows, columns = (((np.arange(n) + 0.5) * GRID / n).astype(int) for n in (h, w))
    return taken[:, rows][:, :, columns]


def _one_patch(draws: dict[str, Array], h: int, w: int) -> Bool[Array, "b h w"]:
    sides = jnp.asarray([min(PATCH, h) / h, min(PATCH, w) / w])[None]
    place = jnp.floor(draws["cut"] * jnp.asarray([max(1, h // PATCH), max(1, w // PATCH)])[None]) * sides
    return rectangle(jnp.concatenate([place, jnp.broadcast_to(sides, place.shape)], axis=1), h, w)


PASTES = {"cutmix": _cut, "tokenmix": _scattered, "mixtoken": _cut_patches, "patchmix": _one_patch}


def _partner(array: Array) -> Array:
    """What the next example of the batch has; the last one's is the first."""
    return jnp.roll(array, -1, axis=0)


def _known_of_both(flag: Bool[Array, " b"], mixed: Bool[Array, " b"]) -> Bool[Array, " b"]:
    return flag & jnp.where(mixed, _partner(flag), True)
