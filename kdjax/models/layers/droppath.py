"""Stochastic depth (Huang et al., arXiv 1603.09382)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def drop_path(
    branch: Float[Array, "b *rest"], rate: float | Float[Array, ""], key: Key[Array, ""]
) -> Float[Array, "b *rest"]:
    """Zero for a share `rate` of the examples, the others scaled up to keep the mean."""
    keep = jax.random.bernoulli(key, 1 - rate, (len(branch), *(1,) * (branch.ndim - 1)))
    return jnp.where(keep, branch / (1 - rate), 0).astype(branch.dtype)
