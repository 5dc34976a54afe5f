"""How two arrays meet before a loss compares them, and what a loss says of itself."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.config import ConfigError

T = TypeVar("T", bound=Any)


def float32(student: Float[Array, "*s"], teacher: Float[Array, "*s"]) -> tuple[Float[Array, "*s"], Float[Array, "*s"]]:
    """Both in float32; one shape, since broadcasting would compare things that do not belong together."""
    if student.shape != teacher.shape:
        raise ConfigError(
            f"student {student.shape} and teacher {teacher.shape}: expected one shape; "
            "an adapter maps the student's features to the teacher's channels and size"
        )
    return student.astype(jnp.float32), teacher.astype(jnp.float32)


def vectors(x: Float[Array, "b *s d"], where: Bool[Array, "b"] | None) -> tuple[Float[Array, "b d"], Bool[Array, "b"]]:
    """A vector for each example in float32, and which examples are there; the others are 0, whatever stands there."""
    if x.ndim != 2:
        raise ConfigError(
            f"expected a vector for each example [b, d], found {list(x.shape)}; name an endpoint such as 'features'"
        )
    there = jnp.ones(len(x), bool) if where is None else where
    return jnp.where(there[:, None], x.astype(jnp.float32), 0.0), there


def per_example(values: Float[Array, "b *s"]) -> Float[Array, "b"]:
    """The mean over everything but the batch."""
    return values.mean(axis=tuple(range(1, values.ndim)))


def direction(x: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
    """Vectors of length 1; one shorter than 1e-12 has no direction: it becomes 0 and gives no gradient."""
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    nonzero = squares > 1e-24
    # the inner `where` keeps rsqrt away from 0, whose infinite slope would turn the masked gradient into NaN
    return x * jnp.where(nonzero, jax.lax.rsqrt(jnp.where(nonzero, squares, 1.0)), 0.0)


def mixes_examples(loss: T) -> T:
    """Marks a loss whose value for an example depends on the others of its batch: micro-batches would change it."""
    loss.mixes = True  # type: ignore[attr-defined]
    return loss
