"""Styles of two examples mixed (MixStyle, Zhou et al. 2021, arXiv 2104.02008)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from kdjax.models.layers.precision import at_least_float32


def mix_style(
    x: Float[Array, "b h w c"],
    key: Key[Array, ""],
    probability: float = 0.5,
    alpha: float = 0.1,
    epsilon: float = 1e-6,
) -> Float[Array, "b h w c"]:
    """The batch as it is or, with `probability`, each map with the style of a mixture of its own and another one's.

    A style is the mean μ and deviation σ of each channel over places, which gradients do not pass. With λ of
    Beta(α, α) for each example, y = (λσ + (1-λ)σ') (x - μ) / σ + λμ + (1-λ)μ'.
    """
    coin, deal, share = jax.random.split(key, 3)
    other = jax.random.permutation(deal, len(x))
    own = jax.random.beta(share, alpha, alpha, (len(x), 1, 1, 1), jnp.float32)
    wide = at_least_float32(x)
    still = jax.lax.stop_gradient(wide)
    mean, deviation = still.mean((1, 2), keepdims=True), jnp.sqrt(still.var((1, 2), keepdims=True) + epsilon)
    mixed_mean, mixed_deviation = (own * s + (1 - own) * s[other] for s in (mean, deviation))
    mixed = mixed_deviation * (wide - mean) / deviation + mixed_mean
    return jnp.where(jax.random.bernoulli(coin, probability), mixed, wide).astype(x.dtype)
