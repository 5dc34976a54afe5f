"""Depthwise convolution as a sum of shifted multiplies.

On a CPU, XLA's own (`feature_group_count` = channels) is 20 to 70 times as slow.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

ROWS_AT_ONCE = 8
FEW = 3  # rows of a kernel that are written out one after the other

Edges = tuple[tuple[int, int], tuple[int, int]]


def depthwise(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw 1 c"],
    stride: int = 1,
    dilation: int = 1,
    edges: Edges | None = None,
) -> Float[Array, "b _ _ c"]:
    """Each channel with its own kernel; in x's dtype.

    `edges` are the zeros above and below, left and right; None: as many as keep the size at stride 1, of a kernel with
    odd sides.
    """
    up, left = (dilation * (side // 2) for side in kernel.shape[:2])
    return _summed(x, kernel, stride, dilation, edges or ((up, up), (left, left)))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _summed(x: Array, kernel: Array, stride: int, dilation: int, edges: Edges) -> Array:
    padded = jnp.pad(x, ((0, 0), *edges, (0, 0)))
    sides = kernel.shape[:2]
    h, w = (1 + (n - 1 - dilation * (k - 1)) // stride for n, k in zip(padded.shape[1:3], sides, strict=True))
    parts = [
        padded[:, _seen(i, h, stride, dilation), _seen(j, w, stride, dilation)]
        * kernel[i, j].astype(x.dtype)[None, None]
        for i in range(sides[0])
        for j in range(sides[1])
    ]
    return sum(parts[1:], start=parts[0])


def _seen(tap: int, count: int, stride: int, dilation: int) -> slice:
    """What `count` positions see through one row or column of the kernel."""
    return slice(tap * dilation, tap * dilation + _reach(count, stride), stride)


def _reach(count: int, stride: int) -> int:
    """From the first to the last of `count` positions."""
    return stride * (count - 1) + 1


def _forward(x, kernel, stride, dilation, edges):
    return _summed(x, kernel, stride, dilation, edges), (x, kernel)


def _backward(stride, dilation, edges, saved, gradient):
    """Of x: the gradient with zeros between its positions, convolved with the kernel turned round."""
    x, kernel = saved
    further = []
    for size, count, k, (before, _) in zip(x.shape[1:3], gradient.shape[1:3], kernel.shape[:2], edges, strict=True):
        further.append((dilation * (k - 1) - before, size + before - _reach(count, stride), stride - 1))
    spread = jax.lax.pad(gradient, jnp.zeros((), gradient.dtype), ((0, 0, 0), *further, (0, 0, 0)))
    of_x = _summed(spread, kernel[::-1, ::-1], 1, dilation, ((0, 0), (0, 0)))
    return of_x, _of_kernel(x, kernel, gradient, stride, dilation, edges)


def _of_kernel(x: Array, kernel: Array, gradient: Array, stride: int, dilation: int, edges: Edges) -> Array:
    """Rows are summed a few at a time by writing the sum out: as one reduction XLA takes 10 times as long. Rows of a
    larger kernel come in a loop: written out too, a kernel of 7 × 7 compiles 5 times as long and runs half as fast; one
    of 3 × 3 runs up to twice as fast."""
    b, h, w, c = gradient.shape
    kh, kw = kernel.shape[:2]
    group = min(h, ROWS_AT_ONCE)
    more = -h % group
    seen, ((up, down), across) = _reach(h + more, stride), edges
    below = max(down, dilation * (kh - 1) + seen - up - x.shape[1])
    padded = jnp.pad(x, ((0, 0), (up, below), across, (0, 0)))
    grouped = lambda y: y.astype(jnp.float32).reshape(b, -1, group, w, c)  # noqa: E731
    rows = grouped(jnp.pad(gradient, ((0, 0), (0, more), (0, 0), (0, 0))))

    def kernel_row(i: int | Array) -> Array:
        band = jax.lax.dynamic_slice_in_dim(padded, i * dilation, seen, axis=1)[:, ::stride]
        sums = []
        for j in range(kw):
            shifted = grouped(band[:, :, _seen(j, w, stride, dilation)])
            parts = [shifted[:, :, r] * rows[:, :, r] for r in range(group)]
            sums.append(sum(parts[1:], start=parts[0]))
        return jnp.stack(sums).sum((1, 2, 3))

    few = kh <= FEW
    sums = jnp.stack([kernel_row(i) for i in range(kh)]) if few else jax.lax.map(kernel_row, jnp.arange(kh))
    return sums.reshape(kernel.shape).astype(kernel.dtype)


_summed.defvjp(_forward, _backward)
