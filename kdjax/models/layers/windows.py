"""Windows of a map, and attention within them."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kdjax.models.layers.attention import SCORES_AT_ONCE
from kdjax.models.layers.precision import at_least_float32, wide_dtype


@dataclass(frozen=True, slots=True)
class Windows:
    """How a map is cut: each is (rows, columns)."""

    map: tuple[int, int]
    size: tuple[int, int]  # of a window
    shift: tuple[int, int]  # the map is rolled up and to the left by so much before it is cut

    @classmethod
    def of(cls, map: tuple[int, int], side: int, shifted: bool) -> "Windows":
        """Square windows; where the map is no larger than one, it is the window, and not shifted."""
        shift = tuple(side // 2 if shifted and n > side else 0 for n in map)
        return cls(map, (min(map[0], side), min(map[1], side)), (shift[0], shift[1]))

    @property
    def padding(self) -> tuple[int, int]:
        """Rows below and columns to the right that the last windows lack."""
        return -self.map[0] % self.size[0], -self.map[1] % self.size[1]

    @property
    def grid(self) -> tuple[int, int]:
        """How many windows there are."""
        return -(-self.map[0] // self.size[0]), -(-self.map[1] // self.size[1])

    def apart(self) -> Float[np.ndarray, "windows n n"]:
        """1 for the pairs of a window that the map, before it was rolled, does not have side by side."""

        (gh, gw), (h, w) = self.grid, self.size
        rolled = (np.arange(g * n) >= g * n - s for g, n, s in zip(self.grid, self.size, self.shift, strict=True))
        down, across = rolled  # which rows and columns come from the other edge
        regions = (2 * down[:, None] + across).reshape(gh, h, gw, w).swapaxes(1, 2).reshape(gh * gw, h * w)
        return (regions[:, :, None] != regions[:, None]).astype(np.float32)


def cut(x: Float[Array, "b h w c"], windows: Windows) -> Float[Array, "_ n c"]:
    """The windows of each example in rows; zeros fill up the last ones."""
    (down, across), (gh, gw), (h, w) = windows.padding, windows.grid, windows.size
    if down or across:
        x = jnp.pad(x, ((0, 0), (0, down), (0, across), (0, 0)))
    if windows.shift != (0, 0):
        x = jnp.roll(x, tuple(-n for n in windows.shift), (1, 2))
    return x.reshape(-1, gh, h, gw, w, x.shape[-1]).swapaxes(2, 3).reshape(-1, h * w, x.shape[-1])


def joined(x: Float[Array, "_ n c"], windows: Windows, size: tuple[int, ...]) -> Float[Array, "b h w c"]:
    """The map of these windows."""
    (gh, gw), (h, w) = windows.grid, windows.size
    x = x.reshape(-1, gh, gw, h, w, x.shape[-1]).swapaxes(2, 3).reshape(-1, gh * h, gw * w, x.shape[-1])
    if windows.shift != (0, 0):
        x = jnp.roll(x, windows.shift, (1, 2))
    return x[:, : size[0], : size[1]]


def relative(table: Float[Array, "th tw heads"], size: tuple[int, int]) -> Float[Array, "heads n n"]:
    """Of a value per step, 2h - 1 × 2w - 1 of them, that of each query and key of an h × w window."""
    h, w = size
    x = jnp.moveaxis(table, -1, 0)  # [heads, th, tw]
    x = _skewed(x, w)  # [heads, th, w, w]
    x = _skewed(jnp.moveaxis(x, 1, -1), h)  # [heads, w, w, h, h]: columns of query, key, then rows
    return x.transpose(0, 3, 1, 4, 2).reshape(-1, h * w, h * w)


def _skewed(x: Float[Array, "*rest t"], n: int) -> Float[Array, "*rest n n"]:
    """x[..., i - j + n - 1] for all i and j below n: a row of zeros behind makes each next row begin one to the left.

    Reads and its gradient writes whole rows, where an index for each pair would take single numbers.
    """
    rest = x.shape[:-1]
    line = jnp.pad(x[..., ::-1], [(0, 0)] * len(rest) + [(0, 1)])  # of length 2n
    line = jnp.broadcast_to(line[..., None, :], (*rest, n, 2 * n)).reshape(*rest, 2 * n * n)
    return line[..., n - 1 : n - 1 + n * (2 * n - 1)].reshape(*rest, n, 2 * n - 1)[..., :n]


def cosine_attention(
    qkv: Float[Array, "g n 3 heads d"],
    scale: Float[Array, "heads"],
    bias: Float[Array, "heads n n"],
    apart: Float[np.ndarray, "windows n n"] | None = None,
    *,
    examples: int = 1,
) -> Float[Array, "g n heads d"]:
    """softmax(scale cos(query, key) + bias - apart) · value within each of g windows; scores in float32 at least.

    On one CPU each of the `examples` is computed by itself, and for the gradient once more: 3 times as fast at 256
    pixels, since scores are still in the cache when they are used.
    """
    g, n, _, heads, d = qkv.shape
    one_cpu = jax.default_backend() == "cpu" and jax.device_count() == 1
    if not one_cpu or g * heads * n * n <= SCORES_AT_ONCE:
        return _attend(qkv, scale, bias, apart)
    one = jax.checkpoint(lambda qkv: _attend(qkv, scale, bias, apart))
    return jax.lax.map(one, qkv.reshape(examples, -1, n, 3, heads, d)).reshape(g, n, heads, d)


def _attend(qkv: Array, scale: Array, bias: Array, apart: np.ndarray | None) -> Float[Array, "g n heads d"]:
    q, k, v = (jnp.swapaxes(qkv[:, :, i], 1, 2) for i in range(3))
    q, k = _unit(q) * scale[None, :, None, None], _unit(k)
    scores = jnp.einsum("ghnd,ghmd->ghnm", q, k, preferred_element_type=wide_dtype(qkv)) + bias[None]
    if apart is not None:
        of_each = scores.reshape(-1, len(apart), *scores.shape[1:])
        scores = (of_each - jnp.asarray(apart)[None, :, None]).reshape(scores.shape)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    weights = weights / weights.sum(-1, keepdims=True)
    return jnp.einsum("ghnm,ghmd->gnhd", weights.astype(v.dtype), v)


def _unit(x: Float[Array, "*rest d"]) -> Float[Array, "*rest d"]:
    """Of length 1; zeros stay zeros, and have a gradient."""
    x = at_least_float32(x)
    return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-24))
