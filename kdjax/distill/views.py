"""Each model's own view of a batch: its inputs, its image size, its normalisation."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def view(model: Any, batch: dict[str, Array]) -> list[Array]:
    """The entries of `batch` that `model.inputs` names, images resized and normalised as `model.input_spec` says."""
    return [image_view(batch[name], model.input_spec) if name == "image" else batch[name] for name in model.inputs]


def image_view(image: Float[Array, "b h w c"], spec: Any) -> Float[Array, "b s s c"]:
    """`image` in [0, 1], bilinearly resized to the model's side and normalised per channel."""
    image = resize(image, (spec.size, spec.size))
    mean = jnp.asarray(spec.mean, jnp.float32)[None, None, None, :]
    std = jnp.asarray(spec.std, jnp.float32)[None, None, None, :]
    return (image - mean) / std


def resize(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b s t c"]:
    """Bilinear, as `align_corners=False` without antialiasing has it; itself where the size is right already."""
    if x.shape[1:3] == size:
        return x
    return jax.image.resize(x, (x.shape[0], *size, x.shape[3]), "bilinear", antialias=False)
