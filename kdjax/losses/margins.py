"""Margins: the class of an example has to win by an angle, or by a share of its cosine, so that classes lie apart.

They are losses on the cosines [b, k] of a head without a margin, so that evaluation cannot leak the truth. The target
is a class, or the shares of a mixed example, of which the two largest count: each class costs its own loss, with its
own margin, times its share. Where `own` is read, it is the class whose margin all shares get, as Image-Classification
has it. `scale` makes logits of cosines; `gamma` and `label_smoothing` are those of `focal_ce`: 0 is cross-entropy.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, ScalarLike

from kdjax.config import ConfigError, nearest
from kdjax.losses.labels import by_shares, focal_ce
from kdjax.losses.pairs import mixes_examples

VARIANTS = ("paper", "code")


def arcface(
    cosines: Float[Array, "b k"],
    target: Int[Array, "b"] | Float[Array, "b k"],
    own: Int[Array, "b"] | None = None,
    *,
    scale: ScalarLike = 64.0,
    margin: ScalarLike = 0.5,
    gamma: ScalarLike = 0.0,
    label_smoothing: ScalarLike = 0.0,
) -> Float[Array, "b"]:
    """Deng et al. 2019, ArcFace (arXiv 1801.07698): cross-entropy in nats of s cos θ, of the class s cos(θ_y + m).

    Where θ_y + m > π and the cosine would rise again, it is s (cos θ_y - m sin m), as in the authors' code.
    """
    cosines = cosines.astype(jnp.float32)
    with_margin = _arc(cosines, margin)
    changed = lambda hot: jnp.where(hot, with_margin, cosines)  # noqa: E731
    return _loss(changed, cosines, target, own, scale, gamma, label_smoothing)


def cosface(
    cosines: Float[Array, "b k"],
    target: Int[Array, "b"] | Float[Array, "b k"],
    own: Int[Array, "b"] | None = None,
    *,
    scale: ScalarLike = 64.0,
    margin: ScalarLike = 0.35,
    gamma: ScalarLike = 0.0,
    label_smoothing: ScalarLike = 0.0,
) -> Float[Array, "b"]:
    """Wang et al. 2018, CosFace (arXiv 1801.09414): cross-entropy in nats of s cos θ, of the class s (cos θ_y - m)."""
    cosines = cosines.astype(jnp.float32)
    changed = lambda hot: jnp.where(hot, cosines - margin, cosines)  # noqa: E731
    return _loss(changed, cosines, target, own, scale, gamma, label_smoothing)


@mixes_examples
class AdaFace(nn.Module):
    """Kim et al. 2022, AdaFace (arXiv 2204.00964): the margin of an example follows its quality, the length of its
    features: `reads={"cosines": "student:cosines", "features": "student:features", "target": "batch:class"}`.

    Of the class s (cos(θ_y - m ẑ) - m (1 + ẑ)), with the angle kept in [0, π]; ẑ = clip(h (‖f‖ - μ) / σ, -1, 1) has no
    gradient. μ and σ are running averages of the batches' means and standard deviations, from 20 and 100 on; what
    `where` leaves out does not move them. `variant="code"`, with margin=0.5: ẑ without h and s cos(θ_y + m (1 + ẑ)).
    """

    scale: float = 64.0
    margin: float = 0.4
    h: float = 0.333
    momentum: float = 0.99
    gamma: float = 0.0
    label_smoothing: float = 0.0
    variant: str = "paper"

    @nn.compact
    def __call__(
        self,
        cosines: Float[Array, "b k"],
        features: Float[Array, "b d"],
        target: Int[Array, "b"] | Float[Array, "b k"],
        own: Int[Array, "b"] | None = None,
        *,
        where: Bool[Array, "b"] | None = None,
    ) -> Float[Array, "b"]:
        _check_variant(self.variant, "adaface")
        cosines = cosines.astype(jnp.float32)
        lengths = jnp.linalg.norm(jax.lax.stop_gradient(features.astype(jnp.float32)), axis=-1)
        real = jnp.ones(len(lengths), bool) if where is None else where
        mean = self.variable("memory", "mean", lambda: jnp.full((), 20.0))
        spread = self.variable("memory", "spread", lambda: jnp.full((), 100.0))
        if not self.is_initializing():
            count = real.sum()
            average = jnp.where(real, lengths, 0.0).sum() / jnp.maximum(count, 1)
            squares = jnp.where(real, jnp.square(lengths - average), 0.0).sum() / jnp.maximum(count - 1, 1)
            mean.value = _running(mean.value, average, self.momentum, count > 0)
            spread.value = _running(spread.value, jnp.sqrt(squares), self.momentum, count > 1)
        steep = self.h if self.variant == "paper" else 1.0
        quality = jnp.clip(steep * (lengths - mean.value) / jnp.maximum(spread.value, 1e-7), -1.0, 1.0)[:, None]
        if self.variant == "paper":
            angle = -self.margin * quality
            beyond = jnp.where(angle < 0, cosines > jnp.cos(angle), cosines < -jnp.cos(angle))
            turned = jnp.where(beyond, -jnp.sign(angle), _turned(cosines, angle))
            with_margin = turned - self.margin * (1.0 + quality)
        else:
            with_margin = _turned(cosines, self.margin * (1.0 + quality))
        changed = lambda hot: jnp.where(hot, with_margin, cosines)  # noqa: E731
        return _loss(changed, cosines, target, own, self.scale, self.gamma, self.label_smoothing)


@mixes_examples
class CurricularFace(nn.Module):
    """Huang et al. 2020, CurricularFace (arXiv 2004.00288): hard classes count little at first, and more later.

    Of the class s cos(θ_y + m), as in `arcface`; of another class j s cos θ_j, or, where cos θ_j > cos(θ_y + m), s cos
    θ_j (t + cos θ_j). t is the running average of the examples' cos θ_y, from 0 on; what `where` leaves out does not
    move it. `variant="code"`: s clip(cos θ_j + t, -1, 1) of every other class, and t the average of all cosines
    that are above cos(θ + m) of their own, which nearly all are.
    """

    scale: float = 64.0
    margin: float = 0.5
    momentum: float = 0.99
    gamma: float = 0.0
    label_smoothing: float = 0.0
    variant: str = "paper"

    @nn.compact
    def __call__(
        self,
        cosines: Float[Array, "b k"],
        target: Int[Array, "b"] | Float[Array, "b k"],
        own: Int[Array, "b"] | None = None,
        *,
        where: Bool[Array, "b"] | None = None,
    ) -> Float[Array, "b"]:
        _check_variant(self.variant, "curricularface")
        cosines = cosines.astype(jnp.float32)
        turned, still = _turned(cosines, self.margin), jax.lax.stop_gradient(cosines)
        t = self.variable("memory", "t", lambda: jnp.zeros(()))
        if not self.is_initializing():
            if self.variant == "paper":
                shares = target if own is None else own
                shares = jax.nn.one_hot(shares, cosines.shape[-1]) if shares.ndim == 1 else shares
                counted = jnp.broadcast_to(shares, cosines.shape)
            else:
                counted = (still > _turned(still, self.margin)).astype(jnp.float32)
            counted = counted if where is None else jnp.where(where[:, None], counted, 0.0)
            average = (counted * still).sum() / jnp.maximum(counted.sum(), 1e-12)
            t.value = _running(t.value, average, self.momentum, counted.sum() > 0)

        def changed(hot: Bool[Array, "b k"]) -> Float[Array, "b k"]:
            if self.variant == "code":
                return jnp.where(hot, turned, jnp.clip(cosines + t.value, -1.0, 1.0))
            hard = cosines > jnp.where(hot, turned, 0.0).sum(axis=-1, keepdims=True)
            others = jnp.where(hard, cosines * (t.value + cosines), cosines)
            return jnp.where(hot, _arc(cosines, self.margin), others)

        return _loss(changed, cosines, target, own, self.scale, self.gamma, self.label_smoothing)


def _loss(
    changed: Callable[[Bool[Array, "b k"]], Float[Array, "b k"]],
    cosines: Float[Array, "b k"],
    target: Int[Array, "b"] | Float[Array, "b k"],
    own: Int[Array, "b"] | None,
    scale: ScalarLike,
    gamma: ScalarLike,
    label_smoothing: ScalarLike,
) -> Float[Array, "b"]:
    """Of the logits s `changed(hot)`, where `hot` says which class of each row has the margin."""

    def of(classes: Int[Array, "b"]) -> Float[Array, "b"]:
        hot = jax.nn.one_hot(classes if own is None else own, cosines.shape[-1], dtype=bool)
        return focal_ce(jnp.asarray(scale) * changed(hot), classes, gamma=gamma, label_smoothing=label_smoothing)

    return by_shares(of, target)


def _turned(cosines: Float[Array, "b k"], angle: Float[Array, "b 1"] | ScalarLike) -> Float[Array, "b k"]:
    """cos(θ + angle); at 0 and π, where the sine is infinitely steep, without the sine's slope."""
    sine = jnp.sqrt(jnp.maximum((1.0 - cosines) * (1.0 + cosines), 1e-12))
    return cosines * jnp.cos(angle) - sine * jnp.sin(angle)


def _arc(cosines: Float[Array, "b k"], margin: ScalarLike) -> Float[Array, "b k"]:
    """cos(θ + m), and beyond π what goes on falling."""
    return jnp.where(cosines > -jnp.cos(margin), _turned(cosines, margin), cosines - margin * jnp.sin(margin))


def _running(old: Float[Array, ""], new: Float[Array, ""], momentum: float, moves: Bool[Array, ""]) -> Float[Array, ""]:
    return jnp.where(moves, momentum * old + (1.0 - momentum) * new, old)


def _check_variant(variant: str, loss: str) -> None:
    if variant not in VARIANTS:
        raise ConfigError(f"no variant {variant!r} of {loss}; {nearest(variant, VARIANTS)}")
