"""The smallest model of text, with the inputs and endpoints that all of them have."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kdjax.models.inputs import ArrayInput


class TinyText(nn.Module):
    """Endpoints: `features` [b, d], the mean of the tokens that are no padding; `tokens` [b, n, d]."""

    vocab_size: int = 11
    dim: int = 6
    length: int = 5
    dtype: Any = jnp.float32

    @property
    def inputs(self):
        return {name: ArrayInput((self.length,), "int32") for name in ("input_ids", "attention_mask")}

    @property
    def endpoints(self):
        return ("features", "tokens")

    @nn.compact
    def __call__(self, input_ids, attention_mask, train=False):
        x = nn.Embed(self.vocab_size, self.dim, dtype=self.dtype, name="embeddings")(input_ids)
        x = jnp.tanh(nn.Dense(self.dim, dtype=self.dtype, name="dense")(x))
        kept = attention_mask[..., None].astype(x.dtype)
        return {"features": (x * kept).sum(1) / jnp.maximum(kept.sum(1), 1), "tokens": x}


def build(**options) -> TinyText:
    return TinyText(**options)
