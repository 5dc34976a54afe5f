"""Contrastive losses: rows that belong together come to lie close, and apart from all others."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, ScalarLike

from kdjax.config import ConfigError, nearest
from kdjax.losses.pairs import direction, float32, mixes_examples, vectors

_NEVER = -1e30  # a logit without a share; infinity would make NaN of differences
VARIANTS = ("paper", "code")


@mixes_examples
class SupCon(nn.Module):
    """Khosla et al. 2020, Supervised Contrastive Learning (arXiv 2004.11362), L_out in nats, of any number of views.

    -1/|P(i)| Σ_{p in P(i)} log(exp(z_i·z_p / T) / Σ_{a ≠ i} exp(z_i·z_a / T)), with z of length 1. P(i), the positives
    of a row, are the other rows of its class where both classes are known, and the other rows of its example, which
    have the same `index`: `reads={"student": "student:features", "labels": "batch:class", "known":
    "batch:class_known", "index": "batch:index"}`. Without labels it is SimCLR's loss. A row without a positive is 0,
    and the others are scaled up in its place: the mean over a batch is that over the rows that have one.

    z is the student's vector through a head of its own, d -> d -> `projection`, which trains with the student and is no
    part of it; 0 is no head. `variant="code"`: a row is a positive of its own, which the sum below the fraction leaves
    out (Image-Classification's SupConLoss); it is farther from 0, and its gradient is another where views are few.
    """

    projection: int = 128
    temperature: float = 0.07
    variant: str = "paper"
    alike: ClassVar[str] = "labels"  # without which copies of an example alone belong together

    @nn.compact
    def __call__(
        self,
        student: Float[Array, "b d"],
        labels: Int[Array, "b"] | None = None,
        index: Int[Array, "b"] | None = None,
        known: Bool[Array, "b"] | None = None,
        *,
        where: Bool[Array, "b"] | None = None,
    ) -> Float[Array, "b"]:
        if self.variant not in VARIANTS:
            raise ConfigError(f"no variant {self.variant!r} of supcon; {nearest(self.variant, VARIANTS)}")
        if labels is None and index is None:
            raise ConfigError(
                "supcon: nothing says which rows belong together; read labels='batch:class', or index='batch:index' "
                "where a batch has several views of an example, or both"
            )
        x = student.astype(jnp.float32)
        if self.projection:
            x = nn.Dense(self.projection, name="out")(nn.relu(nn.Dense(x.shape[-1], name="hidden")(x)))
        z, itself = direction(x), jnp.eye(len(x), dtype=bool)
        there = jnp.ones(len(x), bool) if where is None else where
        others = there[:, None] & there[None] & ~itself
        positive = jnp.zeros_like(others)
        if labels is not None:
            told = there if known is None else known
            positive |= (labels[:, None] == labels[None]) & told[:, None] & told[None]
        if index is not None:
            positive |= index[:, None] == index[None]
        positive &= others
        if self.variant == "code":
            positive |= itself & others.any(axis=1, keepdims=True)
        similar = z @ z.T / self.temperature
        rest = jax.nn.logsumexp(jnp.where(others, similar, _NEVER), axis=1, keepdims=True)
        count = positive.sum(axis=1)
        each = jnp.where(positive, rest - similar, 0.0).sum(axis=1) / jnp.maximum(count, 1)
        return each * there.sum() / jnp.maximum((count > 0).sum(), 1)


@mixes_examples
def infonce(
    student: Float[Array, "b *s d"],
    teacher: Float[Array, "b *s d"],
    *,
    where: Bool[Array, "b"] | None = None,
    temperature: ScalarLike = 0.1,
) -> Float[Array, "b"]:
    """Contrastive distillation within a batch: -log(exp(s_i·t_i / T) / Σ_j exp(s_i·t_j / T)) in nats, s, t of length 1.

    Each example of the student picks its own teacher's vector out of the whole batch. CRD (Tian et al. 2020, arXiv
    1910.10699) asks the same of thousands of negatives in a memory, one by one, by noise-contrastive estimation; with
    the negatives of the batch alone the estimate becomes this cross-entropy, InfoNCE (van den Oord et al. 2018, arXiv
    1807.03748), and needs no memory. Labels are not read: an example of the same class is a negative too. At most
    log b + 2 / T; what `where` leaves out is no negative and is 0.
    """
    (s, there), (t, _) = (vectors(x, where) for x in float32(student, teacher))
    similar = jnp.where(there[None], direction(s) @ direction(t).T / temperature, _NEVER)
    return jnp.where(there, jax.nn.logsumexp(similar, axis=1) - jnp.diagonal(similar), 0.0)
