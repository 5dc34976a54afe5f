"""A few learned tokens in the place of many (TokenLearner, arXiv 2106.11297)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.models.layers.dense import dense
from kdjax.models.layers.gelu import gelu
from kdjax.models.layers.precision import at_least_float32


class TokenLearner(nn.Module):
    """z_i = Σ_p α_i(p) x_p, where α_i is the softmax over all places p of an MLP's i-th answer to norm(x_p).

    This is the authors' version 1.1; their first one makes α of convolutions and sigmoids.
    """

    tokens: int = 8
    dtype: Any = "float32"
    hidden: int = 64  # width of the MLP

    @nn.compact
    def __call__(self, x: Float[Array, "b *places c"]) -> Float[Array, "b tokens c"]:
        """Of tokens [b, n, c], or of a map [b, h, w, c]."""
        x = x.reshape(len(x), -1, x.shape[-1])
        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x)
        y = gelu(dense(self.hidden, dtype=self.dtype, name="fc1")(y))
        scores = dense(self.tokens, dtype=self.dtype, name="fc2")(y)
        share = jax.nn.softmax(at_least_float32(scores), axis=1).astype(self.dtype)
        return jnp.einsum("bnt,bnc->btc", share, x)
