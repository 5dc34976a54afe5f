"""Distillation of relations: where an example lies among others."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from kdjax.config import ConfigError, nearest
from kdjax.losses.pairs import direction, float32, mixes_examples, vectors

VARIANTS = ("paper", "code")


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


@mixes_examples
def rkd_distance(
    student: Float[Array, "b *s d"],
    teacher: Float[Array, "b *t c"],
    *,
    where: Bool[Array, "b"] | None = None,
    variant: str = "paper",
) -> Float[Array, "b"]:
    """Park et al. 2019, Relational Knowledge Distillation (arXiv 1904.05068): smooth L1 between distances of pairs.

    ‖x_i - x_j‖ is divided by the mean of the distances that are above 0, each model's own, so that widths and scales
    may differ; read both by `reads`. The value of an example is the mean over all n examples j, itself among them, so
    that the mean over a batch is that over its n² pairs. `variant="code"`: distances of vectors of length 1, not
    divided (MedPix). What `where` leaves out is in no pair and is 0.
    """
    _check_variant(variant, "rkd_distance")
    (s, there), (t, _) = vectors(student, where), vectors(teacher, where)
    pairs = there[:, None] & there[None]

    def distances(x: Float[Array, "b _"]) -> Float[Array, "b b"]:
        x = direction(x) if variant == "code" else x
        apart = x[:, None] - x[None]
        far = jnp.where(pairs, jnp.sum(apart * direction(apart), axis=-1), 0.0)  # the norm, without its slope at 0
        if variant == "code":
            return far
        mean = far.sum() / jnp.maximum((far > 0).sum(), 1)
        return far / jnp.where(mean > 0, mean, 1.0)

    return optax.losses.huber_loss(distances(s), distances(t)).sum(axis=1) / jnp.maximum(there.sum(), 1)


@mixes_examples
def rkd_angle(
    student: Float[Array, "b *s d"],
    teacher: Float[Array, "b *t c"],
    *,
    where: Bool[Array, "b"] | None = None,
    variant: str = "paper",
) -> Float[Array, "b"]:
    """Park et al. 2019 (arXiv 1904.05068): smooth L1 between the cosines of the angles of triplets.

    An example j is the vertex: cos ∠ijk = ⟨e_ij, e_kj⟩ with e_ij = (x_i - x_j) / ‖x_i - x_j‖. Its value is the mean
    over all n² pairs (i, k), of which those with i = j, k = j or i = k cost nothing; two vectors that are equal have no
    direction, and a cosine of 0. Widths may differ; read both by `reads`. Memory grows with b³ and b² d.
    `variant="code"`: cosines of pairs, ⟨x_i, x_j⟩ / ‖x_i‖‖x_j‖, the mean over j (MedPix). What `where` leaves out is in
    no triplet and is 0.
    """
    _check_variant(variant, "rkd_angle")
    (s, there), (t, _) = vectors(student, where), vectors(teacher, where)
    groups, count = there[:, None] & there[None], jnp.maximum(there.sum(), 1)
    if variant == "code":
        each = optax.losses.huber_loss(*(direction(x) @ direction(x).T for x in (s, t)))
        return jnp.where(groups, each, 0.0).sum(axis=1) / count

    def cosines(x: Float[Array, "b _"]) -> Float[Array, "b b b"]:
        towards = direction(x[None] - x[:, None])  # from j to i
        return jnp.einsum("jid,jkd->jik", towards, towards)

    each = optax.losses.huber_loss(cosines(s), cosines(t))
    return jnp.where(groups[:, :, None] & there[None, None], each, 0.0).sum(axis=(1, 2)) / count**2


@mixes_examples
def mmd(
    student: Float[Array, "b *s d"],
    teacher: Float[Array, "b *s d"],
    *,
    where: Bool[Array, "b"] | None = None,
    bandwidths: Sequence[float] = (0.2, 0.5, 1.0, 2.0, 5.0),
) -> Float[Array, "b"]:
    """Gretton et al. 2012: the squared maximum mean discrepancy between the students and the teachers of a batch.

    mean k(s_i, s_j) + mean k(t_i, t_j) - 2 mean k(s_i, t_j) over all n² pairs, those with i = j too, so at least 0.
    k(x, y) is the mean of exp(-‖x - y‖² / 2σ²) over the bandwidths σ, in the units of the features: vectors that lie
    several of the largest σ apart feel nothing. It compares two sets; which student belongs to which teacher is not
    asked. The value of an example is its rows' share, the mean over j of k(s_i, s_j) + k(t_i, t_j) - k(s_i, t_j) -
    k(t_i, s_j), which may be below 0. What `where` leaves out is in neither set and is 0.
    """
    if not bandwidths or min(bandwidths) <= 0:
        raise ConfigError(f"bandwidths: expected numbers above 0, found {tuple(bandwidths)}")
    (s, there), (t, _) = (vectors(x, where) for x in float32(student, teacher))

    def kernel(x: Float[Array, "b d"], y: Float[Array, "b d"]) -> Float[Array, "b b"]:
        squares = jnp.square(x[:, None] - y[None]).sum(axis=-1)
        return sum((jnp.exp(-squares / (2 * width**2)) for width in bandwidths), jnp.zeros(())) / len(bandwidths)

    across = kernel(s, t)
    each = jnp.where(there[None], kernel(s, s) + kernel(t, t) - across - across.T, 0.0)
    return jnp.where(there, each.sum(axis=1) / jnp.maximum(there.sum(), 1), 0.0)


def _check_variant(variant: str, loss: str) -> None:
    if variant not in VARIANTS:
        raise ConfigError(f"no variant {variant!r} of {loss}; {nearest(variant, VARIANTS)}")
