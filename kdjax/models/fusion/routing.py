"""Fusions that choose for each example what is read: the image, the text or both.

A route that lacks what it reads is never taken. What a router chooses by chance teaches it by the straight-through
estimate (Bengio et al. 2013, arXiv 1308.3432): the value is the chosen route's, the slope that of the probabilities.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.models.fusion.attending import Attention, FeedForward, mean_there, norm
from kdjax.models.fusion.mixing import Gated
from kdjax.models.fusion.options import Options
from kdjax.models.layers.dense import dense
from kdjax.models.layers.gelu import gelu
from kdjax.models.layers.precision import at_least_float32


class Probabilities(nn.Module):
    """Of each choice, by an MLP of image and text side by side; 0 of what is not allowed."""

    options: Options

    @nn.compact
    def __call__(self, tokens: Float[Array, "b 2 d"], allowed: Bool[Array, "b k"], train: bool) -> Float[Array, "b k"]:
        o = self.options
        x = gelu(dense(o.dim, dtype=o.dtype, name="fc1")(tokens.reshape(len(tokens), -1)))
        x = nn.Dropout(o.dropout, deterministic=not train)(x)
        x = at_least_float32(dense(allowed.shape[1], dtype=o.dtype, name="fc2")(x))
        return nn.softmax(jnp.where(allowed, x, jnp.finfo(x.dtype).min)) * allowed


class EnergyAwareAdaptive(nn.Module):
    """`energy_aware_adaptive`: a router weighs three routes: the image as it is, the text as it is, and
    FFN(LN(gated + attention)) of both, the mean of both tokens' attention.

    In training one route is taken by chance. At evaluation the output is the mean of all, weighed by their
    probabilities; with `sample_at_evaluation` it is again one by chance, as in the original, and the same each time.
    `energy` is what the routes cost on average, in mJ, and counts where a term reads it with the loss `value`; the
    original's, of what its mean is above 8 mJ, is computed and never used.
    """

    options: Options

    endpoints: ClassVar[tuple[str, ...]] = ("fused", "shares", "energy")

    @nn.compact
    def __call__(
        self, image: Float[Array, "b d"], text: Float[Array, "b d"], there: Bool[Array, "b 2"], train: bool
    ) -> dict[str, Array]:
        o, tokens = self.options, jnp.stack([image, text], axis=1)
        p = Probabilities(o, name="router")(tokens, routes_of(there), train)
        gated = Gated(o, name="gated")(image, text, there, train)
        attended = mean_there(Attention(o, name="cross_attn")(tokens, tokens, there, train)[0], there)
        full = FeedForward(o, name="ffn")(norm(o, "norm")(gated["fused"] + attended), train)
        weights = p
        if train or o.sample_at_evaluation:
            key = self.make_rng("dropout") if train else jax.random.key(0)
            weights = taken(p, jax.random.categorical(key, jnp.log(p)))
        fused = weighed(weights, image, text, full)
        return {"fused": fused, "shares": shares_of(weights, gated["shares"]), "energy": p @ costs(o)}


class Shomr(nn.Module):
    """`shomr`, soft-hard modality routing, by the confidences w in image and text, whose sum is 1.

    Where neither is above `threshold` (soft), the output is x + FFN(x) with x = LN(w_i image + w_t text + attention).
    Else (hard) a router takes one route, by chance in training and the most probable one at evaluation: GELU(W image),
    GELU(W text), or x + FFN(x) with x = LN(gated + attention). The original's mean of both where the greater confidence
    is below 0.3 is left out: of two it is 0.5 at least. `energy` is what the routes cost on average, in mJ, and where
    the routing is soft the cost of both.
    """

    options: Options

    endpoints: ClassVar[tuple[str, ...]] = ("fused", "shares", "energy")

    @nn.compact
    def __call__(
        self, image: Float[Array, "b d"], text: Float[Array, "b d"], there: Bool[Array, "b 2"], train: bool
    ) -> dict[str, Array]:
        o, tokens = self.options, jnp.stack([image, text], axis=1)
        sure = Probabilities(o, name="conf_net")(tokens, there, train)
        p = Probabilities(o, name="router")(tokens, routes_of(there), train)
        gated = Gated(o, name="gated")(image, text, there, train)
        attended = mean_there(Attention(o, name="cross_attn")(tokens, tokens, there, train)[0], there)
        ffn = FeedForward(o, name="ffn")
        of_both = lambda x, name: (y := norm(o, name)(x + attended)) + ffn(y, train)  # noqa: E731
        single = gelu(dense(o.dim, dtype=o.dtype, name="proj_single")(tokens))
        single = nn.Dropout(o.dropout, deterministic=not train)(single)
        choice = jax.random.categorical(self.make_rng("dropout"), jnp.log(p)) if train else p.argmax(axis=-1)
        weights = taken(p, choice)
        hard = sure.max(axis=-1, keepdims=True) > o.threshold
        one = weighed(weights, single[:, 0], single[:, 1], of_both(gated["fused"], "norm2"))
        soft = of_both(weighed(sure, image, text), "norm1")
        return {
            "fused": jnp.where(hard, one, soft),
            "shares": jnp.where(hard, shares_of(weights, gated["shares"]), sure),
            "energy": jnp.where(hard[:, 0], p @ costs(o), there.any(axis=-1) * o.costs[2]),
        }


def routes_of(there: Bool[Array, "b 2"]) -> Bool[Array, "b 3"]:
    """Whether there is what each route reads: the image, the text, both."""
    return jnp.concatenate([there, there.all(axis=1, keepdims=True)], axis=1)


def taken(p: Float[Array, "b k"], choice: Array) -> Float[Array, "b k"]:
    """1 for the chosen route of each example, with the slope of its probability."""
    return nn.one_hot(choice, p.shape[1], dtype=p.dtype) + p - jax.lax.stop_gradient(p)


def weighed(weights: Float[Array, "b k"], *values: Float[Array, "b d"]) -> Float[Array, "b d"]:
    stacked = jnp.stack(values, axis=1)
    return jnp.einsum("bk,bkd->bd", weights.astype(stacked.dtype), stacked)


def shares_of(weights: Float[Array, "b 3"], gated: Float[Array, "b 2"]) -> Float[Array, "b 2"]:
    """What of the routes is the image's and the text's; both share their route as the gate has it."""
    return weights[:, :2] + weights[:, 2:] * gated


def costs(o: Options) -> Float[Array, "3"]:
    return jnp.asarray(o.costs, jnp.float32)
