"""How two arrays meet before a loss compares them."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def float32(student: Float[Array, "*s"], teacher: Float[Array, "*s"]) -> tuple[Float[Array, "*s"], Float[Array, "*s"]]:
    """Both in float32; one shape, since broadcasting would compare things that do not belong together."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"student {student.shape} and teacher {teacher.shape}: expected one shape; "
            "an adapter maps the student's features to the teacher's channels and size"
        )
    return student.astype(jnp.float32), teacher.astype(jnp.float32)


def per_example(values: Float[Array, "b *s"]) -> Float[Array, "b"]:
    """The mean over everything but the batch."""
    return values.mean(axis=tuple(range(1, values.ndim)))
