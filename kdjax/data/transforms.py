"""Augmentation on the device: pure, and the same for an image wherever in a batch it stands."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from kdjax.config import ConfigError, nearest

GEOMETRIC = ("hflip", "vflip", "rotate", "zoom")
TRANSFORMS = (*GEOMETRIC, "gamma", "contrast")

ANGLE = 30.0  # degrees, to either side
ZOOM = (1.0, 1.3)
GAMMA = (0.5, 1.9)
CONTRAST = (0.5, 2.0)


def faults(probabilities: dict[str, float]) -> list[str]:
    """What is wrong with a configuration of transforms, a line each."""
    wrong = [f"augment: no transform {k!r}; {nearest(k, TRANSFORMS)}" for k in probabilities if k not in TRANSFORMS]
    return wrong + [
        f"augment.{k}: expected a probability in [0, 1], found {p}"
        for k, p in probabilities.items()
        if k in TRANSFORMS and not 0 <= p <= 1
    ]


def augment(
    key: Key[Array, ""],
    image: Float[Array, "b h w c"],
    mask: Int[Array, "b h w"],
    index: Int[Array, " b"],
    probabilities: dict[str, float],
) -> tuple[Float[Array, "b h w c"], Int[Array, "b h w"]]:
    """Applies each named transform with its probability to images in [0, 1], and those of place to their masks.

    The draws of an image follow from `key` and its `index` alone. gamma: x^(1/g), g in [0.5, 1.9]. contrast: the
    distance from the mean times 0.5 to 2. Then, in one resampling: rotation by up to 30 degrees, zoom by 1 to 1.3 with
    a random crop, flips; bilinear for the image, nearest for the mask, zero from outside.
    """
    if wrong := faults(probabilities):
        raise ConfigError("\n  ".join(wrong))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    draws = jax.vmap(lambda k: draw(k, probabilities))(keys)
    if probabilities.get("gamma"):
        image = image ** (1 / draws["gamma"])[:, None, None, None]
    if probabilities.get("contrast"):
        mean = jnp.mean(image, (1, 2, 3), keepdims=True)
        image = jnp.clip((image - mean) * draws["contrast"][:, None, None, None] + mean, 0, 1)
    if any(probabilities.get(name) for name in GEOMETRIC):
        image, mask = jax.vmap(_warp)(image, mask, draws)
    return image, mask


def draw(key: Key[Array, ""], probabilities: dict[str, float]) -> dict[str, Float[Array, "..."]]:
    """The parameters of every transform for one image; one that does not happen has its neutral value."""

    def pick(name: str, low: float, high: float, neutral: float) -> Float[Array, ""]:
        happens, value = jax.random.uniform(jax.random.fold_in(key, TRANSFORMS.index(name)), (2,))
        return jnp.where(happens < probabilities.get(name, 0.0), low + (high - low) * value, neutral)

    return {
        "hflip": pick("hflip", -1.0, -1.0, 1.0),
        "vflip": pick("vflip", -1.0, -1.0, 1.0),
        "rotate": pick("rotate", -ANGLE, ANGLE, 0.0),
        "zoom": pick("zoom", *ZOOM, 1.0),
        "crop": jax.random.uniform(jax.random.fold_in(key, len(TRANSFORMS)), (2,), minval=-1, maxval=1),
        "gamma": pick("gamma", *GAMMA, 1.0),
        "contrast": pick("contrast", *CONTRAST, 1.0),
    }


def _warp(
    image: Float[Array, "h w c"], mask: Int[Array, "h w"], drawn: dict[str, Float[Array, "..."]]
) -> tuple[Float[Array, "h w c"], Int[Array, "h w"]]:
    """Looks up where every output pixel comes from; one image at a time, so that a sharded batch stays in its place."""
    h, w, _ = image.shape
    angle, zoom = jnp.deg2rad(drawn["rotate"]), drawn["zoom"]
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    room = 0.5 * (1 - 1 / zoom) * drawn["crop"]
    rows, columns = jnp.meshgrid(jnp.arange(h) - (h - 1) / 2, jnp.arange(w) - (w - 1) / 2, indexing="ij")
    rows = rows * drawn["vflip"] / zoom + room[0] * h
    columns = columns * drawn["hflip"] / zoom + room[1] * w
    y = cos * rows - sin * columns + (h - 1) / 2
    x = sin * rows + cos * columns + (w - 1) / 2
    y0, x0 = jnp.floor(y), jnp.floor(x)
    down, right = y - y0, x - x0
    warped = jnp.zeros_like(image)
    for dy, weight_y in ((0, 1 - down), (1, down)):
        for dx, weight_x in ((0, 1 - right), (1, right)):
            at, inside = _flat(y0 + dy, x0 + dx, h, w)
            taken = image.reshape(h * w, -1).at[at].get(mode="promise_in_bounds")
            warped += jnp.where(inside, weight_y * weight_x, 0)[..., None] * taken
    at, inside = _flat(jnp.round(y), jnp.round(x), h, w)
    return warped, jnp.where(inside, mask.reshape(h * w).at[at].get(mode="promise_in_bounds"), 0)


def _flat(y: Float[Array, "h w"], x: Float[Array, "h w"], height: int, width: int):
    """Where a pixel lies in the flattened image, and whether it lies in it at all."""
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return jnp.where(inside, y.astype(jnp.int32) * width + x.astype(jnp.int32), 0), inside
