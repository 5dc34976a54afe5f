"""What forensic models see in place of an image: its high frequencies, where generators leave traces.

Each is a function of the normalised image, keeps its size, and has nothing to learn.
"""

from collections.abc import Callable, Mapping
from functools import partial, reduce

import jax.numpy as jnp
from jaxtyping import Array, Float

Image = Float[Array, "b h w c"]
Filter = tuple[tuple[int, int, int], ...]


def npr(x: Image) -> Image:
    """Tan et al. 2023 (arXiv 2312.10461), neighbouring pixel relations: every cell of 2 × 2 pixels less its first."""
    b, h, w, c = x.shape
    cells = x.reshape(b, h // 2, 2, w // 2, 2, c)
    return (cells - cells[:, :, :1, :, :1]).reshape(x.shape)


def gradient(x: Image, *, of: Filter) -> Image:
    """Each channel correlated with a filter of 3 × 3, zeros beyond the edge."""
    _, h, w, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [(i, j, of[i][j]) for i in range(3) for j in range(3) if of[i][j]]
    return reduce(jnp.add, [padded[:, i : i + h, j : j + w] * weight for i, j, weight in taps])


PREPROCESSES: Mapping[str, Callable[[Image], Image]] = {
    "raw": lambda x: x,
    "npr": npr,
    "x_grad": partial(gradient, of=((-1, 0, 1), (-2, 0, 2), (-1, 0, 1))),
    "y_grad": partial(gradient, of=((-1, -2, -1), (0, 0, 0), (1, 2, 1))),
    "left_diag": partial(gradient, of=((0, 1, 2), (-1, 0, 1), (-2, -1, 0))),
    "right_diag": partial(gradient, of=((-2, -1, 0), (-1, 0, 1), (0, 1, 2))),
}
EVEN = ("npr",)  # which take images of even sides alone
