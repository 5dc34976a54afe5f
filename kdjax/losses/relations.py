"""Distillation of relations: where an example lies among others."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.losses.pairs import direction, float32


class Seed(nn.Module):
    """Fang et al. 2021, SEED (arXiv 2101.04731): an example lies among others for the student as for the teacher.

    KL(p_t ‖ p_s) in nats, p the softmax over the similarities (cosines) of an example with the teacher's embeddings in
    the queue and with its own teacher's embedding, divided by a temperature. The queue holds the last `size` embeddings
    of the teacher and is filled as batches come; what is not filled yet takes no part.
    """

    size: int = 4096
    teacher_temperature: float = 0.01
    student_temperature: float = 0.2

    @nn.compact
    def __call__(
        self,
        student: Float[Array, "b d"],
        teacher: Float[Array, "b d"],
        *,
        where: Bool[Array, "b"] | None = None,
    ) -> Float[Array, "b"]:
        student, teacher = (direction(x) for x in float32(student, teacher))
        b, d = teacher.shape
        queue = self.variable("memory", "queue", jnp.zeros, (self.size, d))
        filled = self.variable("memory", "filled", jnp.zeros, (), jnp.int32)
        others, there = queue.value, jnp.arange(self.size) < filled.value

        def log_share(x: Float[Array, "b d"], temperature: float) -> Float[Array, "b m"]:
            far = jnp.where(there[None], x @ others.T / temperature, -1e30)
            near = jnp.sum(x * teacher, axis=-1, keepdims=True) / temperature
            return jax.nn.log_softmax(jnp.concatenate([near, far], axis=-1))

        log_t, log_s = log_share(teacher, self.teacher_temperature), log_share(student, self.student_temperature)
        if not self.is_initializing():
            real = jnp.ones(b, bool) if where is None else where
            order, count = jnp.cumsum(real) - 1, real.sum(dtype=jnp.int32)
            # Padding, and what the rest of a large batch would push out, is written beyond the end, that is nowhere.
            stored = real & (order >= count - self.size)
            place = jnp.where(stored, (filled.value + order) % self.size, self.size)
            queue.value = others.at[place].set(teacher, mode="drop")
            filled.value = filled.value + count
        return jnp.sum(jnp.exp(log_t) * (log_t - log_s), axis=-1)
