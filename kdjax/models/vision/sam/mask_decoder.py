"""SAM's mask decoder: a two-way transformer between mask tokens and the image, then a small network per mask."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.models.layers.attention import attention
from kdjax.models.layers.dense import dense
from kdjax.models.layers.gelu import gelu
from kdjax.models.layers.precision import at_least_float32
from kdjax.models.vision.sam.image_encoder import Mlp
from kdjax.models.vision.sam.options import SamOptions
from kdjax.models.vision.sam.prompt_encoder import learned


class MaskDecoder(nn.Module):
    """Image embeddings and prompts -> (logits [p, 4 gh, 4 gw, m], predicted IoU [p, m]).

    There are `masks` mask tokens, and `keep` = (first, past) is the range of them that is answered.
    """

    options: SamOptions
    masks: int

    @nn.compact
    def __call__(
        self,
        embeddings: Float[Array, "p gh gw c"],
        positions: Float[Array, "gh gw c"],
        prompts: Float[Array, "p t c"],
        dense: Float[Array, "p gh gw c"],
        keep: tuple[int, int],
    ) -> tuple[Float[Array, "p h w m"], Float[Array, "p m"]]:
        o = self.options
        p, gh, gw, c = embeddings.shape
        first, past = keep
        tokens = jnp.concatenate([learned("iou_token", 1, c), learned("mask_tokens", self.masks, c)])
        tokens = jnp.concatenate([jnp.broadcast_to(tokens, (p, *tokens.shape)), prompts], axis=1).astype(o.dtype)
        image = (embeddings + dense).astype(o.dtype).reshape(p, gh * gw, c)
        positions = jnp.broadcast_to(positions.astype(o.dtype).reshape(1, gh * gw, c), image.shape)
        tokens, image = TwoWayTransformer(o, name="transformer")(tokens, image, positions)

        x = image.reshape(p, gh, gw, c)
        x = DoubleSize(c // 4, dtype=o.dtype, name="output_upscaling_0")(x)
        x = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, dtype=o.dtype, name="output_upscaling_1")(x)
        x = DoubleSize(c // 8, dtype=o.dtype, name="output_upscaling_3")(gelu(x))
        networks = [
            Head((c, c, c // 8), dtype=o.dtype, name=f"output_hypernetworks_mlps_{i}")(tokens[:, 1 + i])
            for i in range(self.masks)
        ]
        logits = jnp.einsum("phwc,pmc->phwm", gelu(x), jnp.stack(networks[first:past], axis=1))
        iou = Head((o.iou_dim, o.iou_dim, self.masks), dtype=o.dtype, name="iou_prediction_head")(tokens[:, 0])
        return at_least_float32(logits), at_least_float32(iou[:, first:past])


class TwoWayTransformer(nn.Module):
    options: SamOptions

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "p t c"], image: Float[Array, "p n c"], positions: Float[Array, "p n c"]
    ) -> tuple[Float[Array, "p t c"], Float[Array, "p n c"]]:
        o, prompts = self.options, tokens
        for i in range(o.decoder_depth):
            tokens, image = TwoWayBlock(o, i == 0, name=f"layers_{i}")(tokens, image, prompts, positions)
        attend = CrossAttention(o, downsample=2, name="final_attn_token_to_image")
        tokens = tokens + attend(tokens + prompts, image + positions, image)
        return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, dtype=o.dtype, name="norm_final_attn")(tokens), image


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves, then to the image; the image attends to the tokens."""

    options: SamOptions
    first: bool  # where tokens and prompts are still the same: adding one to the other would say nothing

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "p t c"],
        image: Float[Array, "p n c"],
        prompts: Float[Array, "p t c"],
        positions: Float[Array, "p n c"],
    ) -> tuple[Float[Array, "p t c"], Float[Array, "p n c"]]:
        o = self.options

        def norm(name: str, x):
            return nn.LayerNorm(epsilon=o.decoder_norm_eps, use_fast_variance=False, dtype=o.dtype, name=name)(x)

        attend = CrossAttention(o, downsample=1, name="self_attn")
        if self.first:
            tokens = attend(tokens, tokens, tokens)
        else:
            tokens = tokens + attend(tokens + prompts, tokens + prompts, tokens)
        tokens = norm("norm1", tokens)
        attend = CrossAttention(o, downsample=2, name="cross_attn_token_to_image")
        tokens = norm("norm2", tokens + attend(tokens + prompts, image + positions, image))
        tokens = norm("norm3", tokens + Mlp(o.decoder_mlp_dim, nn.relu, dtype=o.dtype, name="mlp")(tokens))
        attend = CrossAttention(o, downsample=2, name="cross_attn_image_to_token")
        image = norm("norm4", image + attend(image + positions, tokens + prompts, tokens))
        return tokens, image


class CrossAttention(nn.Module):
    """Attention whose inner width is that of the query divided by `downsample`."""

    options: SamOptions
    downsample: int

    @nn.compact
    def __call__(
        self, query: Float[Array, "p n c"], key: Float[Array, "p m c"], value: Float[Array, "p m c"]
    ) -> Float[Array, "p n c"]:
        o, c = self.options, query.shape[-1]

        def project(name: str, x):
            x = dense(c // self.downsample, dtype=o.dtype, name=name)(x)
            return x.reshape(*x.shape[:2], o.decoder_heads, -1)

        y = attention(project("q_proj", query), project("k_proj", key), project("v_proj", value))
        return dense(c, dtype=o.dtype, name="out_proj")(y.reshape(*query.shape[:2], -1))


class DoubleSize(nn.Module):
    """A transposed convolution of kernel 2 and stride 2: each pixel becomes four, each by its own matrix.

    `kernel` is [row, column, in, out]; XLA's general transposed convolution would multiply mostly zeros.
    """

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "p h w c"]) -> Float[Array, "p h2 w2 d"]:
        p, h, w, c = x.shape
        init = nn.initializers.lecun_normal(batch_axis=(0, 1))
        kernel = self.param("kernel", init, (2, 2, c, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = jnp.einsum("nc,ijcd->nijd", x.reshape(-1, c), kernel.astype(self.dtype))
        y = jnp.swapaxes(y.reshape(p, h, w, 2, 2, -1), 2, 3).reshape(p, 2 * h, 2 * w, -1)
        return y + bias.astype(self.dtype)[None, None, None]


class Head(nn.Module):
    """Linear layers of these widths with ReLU between them."""

    widths: tuple[int, ...]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "p c"]) -> Float[Array, "p d"]:
        for i, width in enumerate(self.widths):
            x = dense(width, dtype=self.dtype, name=f"layers_{i}")(nn.relu(x) if i else x)
        return x
