"""What happens to a picture on its way through the world: JPEG, blur, and a smaller size in between.

Pure functions of one image in [0, 1], of any size, and of a number that may be traced: `jax.vmap` gives each image of a
batch its own. They augment training images and make curves of robustness.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Image = Float[Array, "h w 3"]
Number = float | int | Float[Array, ""]

BLOCK = 8
LUMA = np.array(  # the tables of ITU-T T.81, annex K.1, for quality 50
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
CHROMA = np.full((BLOCK, BLOCK), 99)
CHROMA[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
YCC = np.array([[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]])
RGB = np.array([[1, 0, 1.402], [1, -0.344136286, -0.714136286], [1, 1.772, 0]])


def jpeg(image: Image, quality: Number, subsampled: bool = True) -> Image:
    """The image as it comes back from a JPEG file of this quality, 1 to 100, by the tables and the rounding of libjpeg.

    `subsampled` stores colour at half the size, 4:2:0, as most programs do; else 4:4:4. Its gradient is zero.
    """
    h, w, _ = image.shape
    planes = jnp.round(_mixed(jnp.round(jnp.clip(image, 0, 1) * 255), YCC))
    scale = _scale(quality)
    luma = _coded(planes[..., :1] - 128, LUMA, scale) + 128
    chroma = planes[..., 1:]
    if subsampled:
        small = _coded(_halved(_filled(chroma, 2, 2 * BLOCK)), CHROMA, scale)
        chroma = _doubled(small[:, : -(-w // 2)])[:h, :w]
    else:
        chroma = _coded(chroma, CHROMA, scale)
    levels = jnp.round(_mixed(jnp.concatenate([luma, chroma], axis=-1), RGB))
    return jnp.clip(levels, 0, 255) / 255


def blur(image: Image, sigma: Number) -> Image:
    """Blurred by a Gaussian of this standard deviation in pixels; at the edges by the part of it that lies inside."""
    rows, columns = (_gaussian(side, jnp.asarray(sigma, jnp.float32)) for side in image.shape[:2])
    return _separable(image, rows, columns)


def rescale(image: Image, factor: Number) -> Image:
    """Brought to `factor` of its sides, 0 to 1, and back: bilinear and antialiased, as `kdjax.data.images.resize`."""
    rows, columns = (_there_and_back(side, jnp.asarray(factor, jnp.float32)) for side in image.shape[:2])
    return _separable(image, rows, columns)


# -- JPEG ------------------------------------------------------------------------------------------------------------


def _mixed(image: Float[Array, "h w 3"], weights: np.ndarray) -> Float[Array, "h w 3"]:
    """Colours in another system; as sums, which are the same wherever a pixel lies."""
    columns = jnp.asarray(weights.T, image.dtype)[:, None, None]
    return image[..., :1] * columns[0] + image[..., 1:2] * columns[1] + image[..., 2:] * columns[2]


def _scale(quality: Number) -> Float[Array, ""]:
    """Percent of the tables for quality 50, by libjpeg's rule."""
    quality = jnp.clip(jnp.round(jnp.asarray(quality, jnp.float32)), 1, 100)
    return jnp.where(quality < 50, jnp.floor(5000 / quality), 200 - 2 * quality)


def _coded(planes: Float[Array, "h w c"], table: np.ndarray, scale: Float[Array, ""]) -> Float[Array, "h w c"]:
    """Planes about 0 through cosines and back, rounded to steps of the table.

    Each pass of cosines is rounded, as in the integers of libjpeg: the first to quarters, the second to whole numbers.
    """
    h, w, c = planes.shape
    planes = _filled(planes, BLOCK, BLOCK)
    blocks = planes.reshape(len(planes) // BLOCK, BLOCK, -1, BLOCK, c)
    steps = jnp.clip(jnp.floor((jnp.asarray(table, jnp.float32) * scale + 50) / 100), 1, 255)[None, :, None, :, None]
    cosines = jnp.asarray(_cosines(), jnp.float32)
    across = _rounded(4 * jnp.einsum("vx,aybxc->aybvc", cosines, blocks, precision="highest"))
    waves = _rounded(jnp.einsum("uy,aybvc->aubvc", cosines, across, precision="highest") / 4) / BLOCK
    waves = jnp.sign(waves) * _rounded(jnp.abs(waves) / steps) * steps
    down = _rounded(4 * jnp.einsum("uy,aubvc->aybvc", cosines, waves, precision="highest"))
    blocks = _rounded(jnp.einsum("vx,aybvc->aybxc", cosines, down, precision="highest") / 4 / BLOCK)
    return jnp.clip(blocks, -128, 127).reshape(planes.shape)[:h, :w]


def _rounded(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """A half goes up, as with shifted integers."""
    return jnp.floor(x + 0.5)


def _filled(planes: Float[Array, "h w c"], down: int, across: int) -> Float[Array, "hh ww c"]:
    """With the last row and column repeated up to multiples of these sides."""
    h, w, _ = planes.shape
    return jnp.pad(planes, ((0, -h % down), (0, -w % across), (0, 0)), mode="edge")


def _cosines() -> np.ndarray:
    """The discrete cosine transform, a row for each frequency, with ones in the first; its inverse is its transpose by
    `BLOCK`."""
    frequency, place = np.arange(BLOCK)[:, None], np.arange(BLOCK)[None]
    return np.cos((2 * place + 1) * frequency * np.pi / (2 * BLOCK)) * np.where(frequency == 0, 1, np.sqrt(2))


def _halved(planes: Float[Array, "h w c"]) -> Float[Array, "hh ww c"]:
    """The mean of each two by two; halves are rounded down and up by turns."""
    h, w, c = planes.shape
    sums = planes.reshape(h // 2, 2, w // 2, 2, c).sum(axis=(1, 3))
    return jnp.floor((sums + 1 + jnp.arange(w // 2)[None, :, None] % 2) / 4)


def _doubled(planes: Float[Array, "h w c"]) -> Float[Array, "hh ww c"]:
    """Twice the size: three parts of the pixel itself to one of the nearer neighbour, down and across."""
    rows = _interleaved(planes)
    columns = jnp.swapaxes(_interleaved(jnp.swapaxes(rows, 0, 1)), 0, 1)
    return jnp.floor((columns + 8 - jnp.arange(columns.shape[1])[None, :, None] % 2) / 16)


def _interleaved(planes: Float[Array, "h w c"]) -> Float[Array, "hh w c"]:
    """Four times the values, at twice as many rows."""
    before = jnp.concatenate([planes[:1], planes[:-1]])
    after = jnp.concatenate([planes[1:], planes[-1:]])
    pairs = jnp.stack([3 * planes + before, 3 * planes + after], axis=1)
    return pairs.reshape(-1, *planes.shape[1:])


# -- blur and size ---------------------------------------------------------------------------------------------------


def _separable(
    image: Float[Array, "h w c"], rows: Float[Array, "h h"], columns: Float[Array, "w w"]
) -> Float[Array, "h w c"]:
    return jnp.einsum("gh,hwc,vw->gvc", rows, image, columns, precision="highest")


def _gaussian(side: int, sigma: Float[Array, ""]) -> Float[Array, "n n"]:
    """[new, old]: how much of each pixel comes to each; itself alone where sigma is 0."""
    apart = jnp.arange(side)[:, None] - jnp.arange(side)[None]
    return _shares(jnp.exp(-0.5 * (apart / jnp.maximum(sigma, 1e-3)) ** 2))


def _there_and_back(side: int, factor: Float[Array, ""]) -> Float[Array, "n n"]:
    """The product of shrinking and of growing back; of the size in between only the first rows are in use."""
    small = jnp.clip(jnp.round(side * factor), 1, side)
    step = side / small
    pixels = jnp.arange(side)
    shrinking = jnp.maximum(0, 1 - jnp.abs(((pixels + 0.5) * step - 0.5)[:, None] - pixels[None]) / step)
    growing = jnp.maximum(0, 1 - jnp.abs(((pixels + 0.5) / step - 0.5)[:, None] - pixels[None]))
    growing = jnp.where(pixels[None] < small, growing, 0)
    return jnp.matmul(_shares(growing), _shares(shrinking), precision="highest")


def _shares(weights: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """The weights with rows that sum to one, but for those of zeros."""
    total = weights.sum(axis=1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1.0)
