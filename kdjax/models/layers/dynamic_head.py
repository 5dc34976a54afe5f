"""Features that weigh themselves: x · σ(MLP(x))."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from kdjax.models.layers.dense import dense


class DynamicHead(nn.Module):
    """Features -> features times gates, and the gates. The MLP has one hidden layer, of a quarter of the width and of
    `least` at least."""

    dtype: Any
    least: int = 64

    @nn.compact
    def __call__(self, x: Float[Array, "b d"]) -> tuple[Float[Array, "b d"], Float[Array, "b d"]]:
        x = x.astype(self.dtype)
        hidden = nn.relu(dense(max(x.shape[-1] // 4, self.least), dtype=self.dtype, name="fc1")(x))
        gates = nn.sigmoid(dense(x.shape[-1], dtype=self.dtype, name="fc2")(hidden))
        return x * gates, gates
