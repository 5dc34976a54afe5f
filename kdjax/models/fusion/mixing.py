"""Fusions that mix the embeddings of image and text by a product or an MLP."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.models.fusion.options import Options
from kdjax.models.layers.dense import dense
from kdjax.models.layers.gelu import gelu
from kdjax.models.layers.precision import at_least_float32


class ConcatMlp(nn.Module):
    """`concat_mlp`: an MLP of both, side by side, with hidden layers of `hidden` times `dim`."""

    options: Options

    endpoints: ClassVar[tuple[str, ...]] = ("fused",)

    @nn.compact
    def __call__(
        self, image: Float[Array, "b d"], text: Float[Array, "b d"], there: Bool[Array, "b 2"], train: bool
    ) -> dict[str, Array]:
        o, x = self.options, jnp.concatenate([image, text], axis=-1)
        for i in range(o.layers - 1):
            x = gelu(dense(o.hidden * o.dim, dtype=o.dtype, name=f"mlp_{i}")(x))
            x = nn.Dropout(o.dropout, deterministic=not train)(x)
        return {"fused": dense(o.dim, dtype=o.dtype, name=f"mlp_{o.layers - 1}")(x)}


class Gated(nn.Module):
    """`gated`: g · image + (1 - g) · text with g = σ(W [image; text]), for each number its own (Arevalo et al. 2017,
    arXiv 1702.01992, without its tanh). The share of the image is the mean of g."""

    options: Options

    endpoints: ClassVar[tuple[str, ...]] = ("fused", "shares")

    @nn.compact
    def __call__(
        self, image: Float[Array, "b d"], text: Float[Array, "b d"], there: Bool[Array, "b 2"], train: bool
    ) -> dict[str, Array]:
        o = self.options
        g = nn.sigmoid(dense(o.dim, dtype=o.dtype, name="gate")(jnp.concatenate([image, text], axis=-1)))
        share = at_least_float32(g).mean(axis=-1)
        return {"fused": g * image + (1 - g) * text, "shares": jnp.stack([share, 1 - share], axis=-1)}


class ModalityDropout(nn.Module):
    """`modality_dropout`: an MLP of both, side by side, of which in training either may be left out (after Neverova et
    al. 2015, arXiv 1501.00102): of the whole batch, as the original, or with `drop_examples` of each example."""

    options: Options

    endpoints: ClassVar[tuple[str, ...]] = ("fused",)

    @nn.compact
    def __call__(
        self, image: Float[Array, "b d"], text: Float[Array, "b d"], there: Bool[Array, "b 2"], train: bool
    ) -> dict[str, Array]:
        o, both = self.options, [image, text]
        if train:
            shape = (len(image) if o.drop_examples else 1, 1)
            for i, rate in enumerate((o.drop_image, o.drop_text)):
                both[i] = jnp.where(jax.random.bernoulli(self.make_rng("dropout"), rate, shape), 0, both[i])
        x = nn.relu(dense(o.dim, dtype=o.dtype, name="mlp_0")(jnp.concatenate(both, axis=-1)))
        return {"fused": dense(o.dim, dtype=o.dtype, name="mlp_1")(x)}


class Film(nn.Module):
    """`film`: γ(text) · image + β(text), both linear (Perez et al. 2018, arXiv 1709.07871)."""

    options: Options

    endpoints: ClassVar[tuple[str, ...]] = ("fused",)

    @nn.compact
    def __call__(
        self, image: Float[Array, "b d"], text: Float[Array, "b d"], there: Bool[Array, "b 2"], train: bool
    ) -> dict[str, Array]:
        gamma, beta = (dense(self.options.dim, dtype=self.options.dtype, name=name)(text) for name in ("gamma", "beta"))
        return {"fused": gamma * image + beta}
