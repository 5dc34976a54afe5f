"""The one way in which images come to the size of a model, and logits to that of an image, on the host."""

import numpy as np
from jaxtyping import Shaped
from PIL import Image

RULE = (  # `kdjax.models.layers.resize` has it for the device
    "bilinear with half-pixel centres, antialiased where it shrinks: Pillow's BILINEAR, PyTorch's "
    "interpolate(mode='bilinear', antialias=True), jax.image.resize(..., 'bilinear')"
)


def resize(
    array: Shaped[np.ndarray, "h w *c"], size: tuple[int, int], nearest: bool = False
) -> Shaped[np.ndarray, "s t *c"]:
    """To `size` = (height, width) by `RULE`; class ids by the nearest pixel. uint8 of one or three channels is rounded
    back to uint8, float32 may have any number of channels."""
    if array.shape[:2] == size:
        return array
    how = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    height, width = size
    if array.dtype == np.uint8:
        return np.asarray(Image.fromarray(array).resize((width, height), how))
    planes = [Image.fromarray(plane).resize((width, height), how) for plane in np.moveaxis(array, -1, 0)]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)
