"""Between an image of any size and SAM's square: the longer side is resized to it, the rest is padding."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from kdjax.config import ConfigError
from kdjax.models.layers.resize import resize

Size = tuple[int, int]  # height, width


def resized(original: Size, longest: int) -> Size:
    """The size of an image whose longer side becomes `longest`."""
    scale = longest / max(original)
    return int(original[0] * scale + 0.5), int(original[1] * scale + 0.5)


def resize_longest(image: Float[Array, "b h w c"], longest: int) -> Float[Array, "b rh rw c"]:
    """Bilinear, antialiased; before normalisation."""
    size = resized((image.shape[1], image.shape[2]), longest)
    return resize(image, size, antialias=True)


def pad_to_square(image: Float[Array, "b h w c"], side: int) -> Float[Array, "b side side c"]:
    """Zeros below and to the right; after normalisation."""
    h, w = image.shape[1:3]
    if max(h, w) > side:
        raise ConfigError(f"an image of {h} x {w} does not fit into {side} x {side}: call resize_longest first")
    return jnp.pad(image, ((0, 0), (0, side - h), (0, side - w), (0, 0)))


def resize_points(xy: Num[Array, "*n 2"], original: Size, longest: int) -> Float[Array, "*n 2"]:
    """(x, y) in pixels of the original image -> in pixels of the resized one; boxes are two points each."""
    size = resized(original, longest)
    scale = jnp.array([size[1] / original[1], size[0] / original[0]])
    return xy * jnp.broadcast_to(scale, xy.shape)


def postprocess(low_res_logits: Float[Array, "b h w m"], side: int, resized: Size, original: Size) -> jax.Array:
    """Low-resolution logits -> logits [b, *original, m]: up to the square, padding off, to the original size."""
    square = resize(low_res_logits, (side, side))
    return resize(square[:, : resized[0], : resized[1]], original)
