"""A loss that sees the teacher's features in the width of the student's."""

import inspect
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, Bool, Float

from kdjax import registry
from kdjax.config import ConfigError


class Projected(nn.Module):
    """An affine map of the teacher's features to the student's width, before another loss, named `loss`, reads both.

    `reads={"student": "student:image_embedding", "teacher": "large:image_features"}`; `args` are the inner loss's own.
    The map begins as PyTorch's Linear, uniform within 1 / sqrt(c). `frozen=True`: it stays as it is, which is what
    projections amount to that no optimiser was given (MedPix): a random view of the teacher, drawn from `seed` and the
    widths, so that terms of one seed see one view. `frozen=False`: it trains with the student.

    A trained map moves the target: alone with `mse` it could make every target the same, and the student with it, which
    costs nothing and teaches nothing. What keeps it from that is a loss that asks examples to differ (`infonce`), or
    another term on the same features, such as the cross-entropy of what is made of them. The adapter "linear" maps the
    student instead and leaves the target where it is: choose that first.
    """

    loss: str = "mse"
    args: Mapping[str, Any] = FrozenDict()
    frozen: bool = True
    seed: int = 0

    @property
    def mixes(self) -> bool:
        """Whether the inner loss compares the examples of a batch."""
        inner = registry.get("losses", self.loss)
        return getattr(inner(**self.args) if isinstance(inner, type) else inner, "mixes", False)

    @nn.compact
    def __call__(
        self,
        student: Float[Array, "b *s d"],
        teacher: Float[Array, "b *t c"],
        *,
        where: Bool[Array, "b"] | None = None,
    ) -> Float[Array, "..."]:
        bound, width = teacher.shape[-1] ** -0.5, student.shape[-1]

        def draw(key: Array, shape: tuple[int, ...]) -> Array:
            return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

        def held(name: str, shape: tuple[int, ...]) -> Array:
            if not self.frozen:
                return self.param(name, draw, shape)
            key = jax.random.fold_in(jax.random.key(self.seed), zlib.crc32(name.encode()))
            return self.variable("memory", name, draw, key, shape).value

        kernel, bias = held("kernel", (teacher.shape[-1], width)), held("bias", (width,))
        target = teacher.astype(jnp.float32) @ kernel
        target = target + bias.reshape((1,) * (target.ndim - 1) + (-1,))
        return self._inner(where)(student, target)

    def _inner(self, where: Bool[Array, "b"] | None) -> Callable[..., Array]:
        loss = registry.get("losses", self.loss)
        registry.check_arguments(self.loss, loss, self.args)
        call = loss(**self.args, name="inner") if isinstance(loss, type) else loss
        parameters = inspect.signature(call).parameters.values()
        reads = [p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD and p.default is p.empty]
        if reads != ["student", "teacher"]:
            raise ConfigError(
                f"projected: expected a loss that reads 'student' and 'teacher' alone, such as 'mse' or 'infonce'; "
                f"{self.loss!r} reads {' and '.join(map(repr, reads))}"
            )
        options = {} if isinstance(loss, type) else dict(self.args)
        if any(p.name == "where" for p in parameters):
            options["where"] = where
        return lambda student, teacher: call(student, teacher, **options)
