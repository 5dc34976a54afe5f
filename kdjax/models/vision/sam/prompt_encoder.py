"""SAM's prompt encoder: points, boxes and masks, each where given."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from kdjax.config import ConfigError
from kdjax.models.layers.gelu import gelu
from kdjax.models.vision.sam.options import SamOptions

Points = tuple[Num[Array, "p n 2"], Num[Array, "p n"]]


class PromptEncoder(nn.Module):
    """Prompts -> (tokens [p, n, c], map added to the image embeddings [p, gh, gw, c], position of each patch).

    `points` are (x, y) in pixels of the model's input with labels 1 (foreground), 0 (background) or -1 (none);
    `boxes` are (x0, y0, x1, y1); `masks` are logits at four times the grid. Without any prompt p is 1.
    Every parameter exists whatever prompts are given, so that all of a checkpoint has its place.
    """

    options: SamOptions

    @nn.compact
    def __call__(
        self,
        points: Points | None = None,
        boxes: Num[Array, "p 4"] | None = None,
        masks: Float[Array, "p mh mw 1"] | None = None,
    ) -> tuple[Float[Array, "p t c"], Float[Array, "p gh gw c"], Float[Array, "gh gw c"]]:
        o = self.options
        encode = FourierPositions(o.embed_dim // 2, name="pe_layer")
        kinds = [learned(f"point_embeddings_{i}", 1, o.embed_dim)[0] for i in range(4)]
        no_point = learned("not_a_point_embed", 1, o.embed_dim)[0]
        no_mask = learned("no_mask_embed", 1, o.embed_dim)[0]

        count = next((len(x) for x in (points and points[0], boxes, masks) if x is not None), 1)
        size = jnp.array(o.image_hw[::-1], jnp.float32)[None, None]
        tokens = [jnp.zeros((count, 0, o.embed_dim))]
        if points is not None:
            xy, label = points
            if boxes is None:
                # The original stands a point of no kind, at the origin, in the place of the absent box.
                xy = jnp.pad(xy.astype(jnp.float32), ((0, 0), (0, 1), (0, 0)), constant_values=-0.5)
                label = jnp.pad(label, ((0, 0), (0, 1)), constant_values=-1)
            label = label[..., None]
            kind = jnp.where(label == 1, kinds[1][None, None], 0) + jnp.where(label == 0, kinds[0][None, None], 0)
            tokens.append(jnp.where(label == -1, no_point[None, None], encode((xy + 0.5) / size) + kind))
        if boxes is not None:
            corners = encode((boxes.reshape(-1, 2, 2) + 0.5) / size)
            tokens.append(corners + jnp.stack(kinds[2:])[None])
        if masks is None and self.is_initializing():
            self._downscale(jnp.zeros((1, 4 * o.grid[0], 4 * o.grid[1], 1)))
        dense = no_mask[None, None, None] if masks is None else self._downscale(masks)
        dense = jnp.broadcast_to(dense, (count, *o.grid, o.embed_dim))
        return jnp.concatenate(tokens, axis=1), dense, encode(_centres(*o.grid))

    def _downscale(self, masks: Float[Array, "p mh mw 1"]) -> Float[Array, "p gh gw c"]:
        o, x = self.options, masks
        expected = (4 * o.grid[0], 4 * o.grid[1])
        if x.shape[1:3] != expected:
            raise ConfigError(f"mask prompts: expected logits of {expected} (low_res_logits), found {x.shape[1:3]}")
        for i, channels in ((0, o.mask_channels // 4), (3, o.mask_channels)):
            x = nn.Conv(channels, (2, 2), (2, 2), "VALID", dtype=o.dtype, name=f"mask_downscaling_{i}")(x)
            x = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, dtype=o.dtype, name=f"mask_downscaling_{i + 1}")(x)
            x = gelu(x)
        return nn.Conv(o.embed_dim, (1, 1), dtype=o.dtype, name="mask_downscaling_6")(x)


class FourierPositions(nn.Module):
    """Points in [0, 1]² -> sines and cosines of `frequencies` random projections.

    The projections are drawn once and never trained, so they live in `batch_stats`: saved, but not optimised.
    """

    frequencies: int

    @nn.compact
    def __call__(self, xy: Float[Array, "*n 2"]) -> Float[Array, "*n c"]:
        name, shape = "positional_encoding_gaussian_matrix", (2, self.frequencies)
        matrix = self.variable("batch_stats", name, lambda: jax.random.normal(self.make_rng("params"), shape))
        # High frequencies turn a rounded product into another position: never in bfloat16 or TF32.
        phase = 2 * math.pi * jnp.matmul(2 * xy - 1, matrix.value, precision=jax.lax.Precision.HIGHEST)
        return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)


def learned(name: str, count: int, width: int) -> Float[Array, "n c"]:
    """A table of `count` learned vectors, a child of the module that is being run."""
    return nn.Embed(count, width, embedding_init=nn.initializers.normal(1.0), name=name).embedding


def _centres(rows: int, columns: int) -> Float[Array, "gh gw 2"]:
    """(x, y) of the centre of each patch, in [0, 1]."""
    y, x = jnp.meshgrid((jnp.arange(rows) + 0.5) / rows, (jnp.arange(columns) + 0.5) / columns, indexing="ij")
    return jnp.stack([x, y], axis=-1)
