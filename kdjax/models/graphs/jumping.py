"""Jumping knowledge (Xu et al., arXiv 1806.03536): a node's features after each layer become one."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.models.layers.dense import dense

JUMPINGS = ("cat", "lstm")


class LstmJumping(nn.Module):
    """The layers' mean, weighed for each node by what an LSTM over them says. Names are those of PyG's module."""

    dtype: Any = "float32"

    @nn.compact
    def __call__(self, layers: Sequence[Float[Array, "n c"]]) -> Float[Array, "n c"]:
        x = jnp.stack(layers)
        states = Lstm(x.shape[0] * x.shape[-1] // 2, self.dtype, name="lstm")(x)
        scores = dense(1, dtype=self.dtype, name="att")(states)
        return (x * nn.softmax(scores, axis=0)).sum(axis=0)


class Lstm(nn.Module):
    """One layer, both ways, as torch.nn.LSTM computes it, whose names and shapes its parameters have.

    Gates are stacked in the order input, forget, cell, output. The two ways' states lie side by side.
    """

    hidden: int
    dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "l n c"]) -> Float[Array, "l n d"]:
        return jnp.concatenate([self.way(x, "l0"), self.way(x[::-1], "l0_reverse")[::-1]], axis=-1)

    def way(self, x: Float[Array, "l n c"], name: str) -> Float[Array, "l n d"]:
        count, n, c = x.shape

        def learned(what: str, *shape: int) -> Array:
            initial = lambda key, shape: jax.random.uniform(key, shape, minval=-1, maxval=1) * self.hidden**-0.5  # noqa: E731
            return jnp.asarray(self.param(f"{what}_{name}", initial, shape), self.dtype)

        gates = 4 * self.hidden
        into, again = learned("weight_ih", gates, c), learned("weight_hh", gates, self.hidden)
        bias = learned("bias_ih", gates) + learned("bias_hh", gates)
        given = (x.reshape(count * n, c).astype(self.dtype) @ into.T + bias[None]).reshape(count, n, gates)
        states, state, cell = [], None, jnp.zeros((), self.dtype)
        for step in given:
            step = step if state is None else step + state @ again.T
            i, f, g, o = jnp.split(step, 4, axis=-1)
            cell = nn.sigmoid(f) * cell + nn.sigmoid(i) * jnp.tanh(g)
            state = nn.sigmoid(o) * jnp.tanh(cell)
            states.append(state)
        return jnp.stack(states)
