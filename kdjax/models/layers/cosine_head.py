"""A classifier by angles (ArcFace, arXiv 1801.07698), with several centres of a class (sub-centre ArcFace, ECCV 2020).

It knows no margin: that is a loss on its cosines, so that nothing here ever wants a label.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.models.layers.largest import largest
from kdjax.models.layers.precision import at_least_float32


class CosineHead(nn.Module):
    """The cosine between features and the nearest centre of each class, in float32 at least."""

    num_classes: int
    centres: int = 1  # of each class

    @nn.compact
    def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b k"]:
        d = x.shape[-1]
        centres = self.param("centres", nn.initializers.normal(d**-0.5), (self.num_classes, self.centres, d))
        x, centres = unit(at_least_float32(x)), unit(at_least_float32(centres))
        cosines = jnp.dot(x, centres.reshape(-1, d).T, precision=jax.lax.Precision.HIGHEST)
        return largest(cosines.reshape(len(x), self.num_classes, self.centres), -1)


def unit(x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """Of length 1; zeros stay zeros, with a finite gradient."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-12))
