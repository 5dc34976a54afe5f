"""The variational graph autoencoder of CAN windows, GraphAutoencoderNeighborhood: it learns what normal traffic is.

Module names follow the checkpoints': `encoder_layers_0/lin/kernel`, `encoder_bns_0`, `neighborhood_decoder_3`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph
from jaxtyping import Array

from kdjax.config import ConfigError, nearest
from kdjax.models.graphs.can_errors import node_errors
from kdjax.models.graphs.can_gat import with_ids
from kdjax.models.graphs.gat_conv import CONVS
from kdjax.models.inputs import GraphInput
from kdjax.models.layers.batch_norm import BatchNorm
from kdjax.models.layers.dense import dense
from kdjax.models.options import options_of

WIDEST = 20.0  # of the logarithm of the posterior's variance, either way

VARIANTS: dict[str, dict[str, Any]] = {
    "b_teacher": {
        "encoder": (128, 32, 32),
        "encoder_heads": (4, 1, 1),
        "latent": 32,
        "decoder": (128, 128),
        "decoder_heads": (4, 4),
    },
    "b_student": {
        "encoder": (32, 16),
        "encoder_heads": (2, 1),
        "latent": 16,
        "decoder": (32,),
        "decoder_heads": (2,),
    },
    "c_large": {
        "encoder": (480, 240),
        "encoder_heads": (4, 1),
        "latent": 48,
        "decoder": (240,),
        "decoder_heads": (4,),
        "embed_dim": 32,
        "dropout": 0.15,
    },
    "c_small": {
        "encoder": (80, 40),
        "encoder_heads": (1, 1),
        "latent": 16,
        "decoder": (40,),
        "decoder_heads": (1,),
        "embed_dim": 4,
        "dropout": 0.1,
    },
}

# Parameters as published, of the number of ids that they were counted with. The published 186,947 and 88,945 of
# generation b are the numbers in the state dict, running statistics and counters of 448 and 80 channels included.
PARAMETERS = {
    "b_teacher": (2032, 186_947 - 2 * 448 - 5),
    "b_student": (2032, 88_945 - 2 * 80 - 3),
    "c_large": (30, 185_850),
    "c_small": (30, 9_186),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The dimensions of a VGAE and how it computes."""

    encoder: tuple[int, ...]  # width of each layer, all heads together
    encoder_heads: tuple[int, ...]
    latent: int
    decoder: tuple[int, ...]  # of each layer but the last, which has one head and the width of the features
    decoder_heads: tuple[int, ...]
    neighbour_hidden: int = 0  # width of the neighbourhood decoder; 0: as z
    num_ids: int = 2032
    embed_dim: int = 8
    features: int = 10
    conv: str = "gat"
    dropout: float = 0.35
    dtype: Any = "float32"  # of the computation; parameters stay float32
    remat: bool = False  # recompute each convolution in the backward pass: less memory, more time

    def __post_init__(self):
        faults = []
        for part in ("encoder", "decoder"):
            widths, heads = getattr(self, part), getattr(self, f"{part}_heads")
            if len(widths) != len(heads) or any(h < 1 or w % h for w, h in zip(widths, heads, strict=False)):
                faults.append(f"{part}_heads: expected a divisor of each of {part} {widths}, found {heads}")
        if not self.encoder:
            faults.append("encoder: expected at least one layer, found none")
        if self.conv not in CONVS:
            faults.append(f"conv: no {self.conv!r}; {nearest(self.conv, CONVS)}")
        for name in ("latent", "num_ids", "features"):
            if getattr(self, name) < 1:
                faults.append(f"{name}: expected at least 1, found {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            faults.append(f"dropout: expected a rate in [0, 1), found {self.dropout}")
        if faults:
            raise ConfigError("The VGAE cannot be built:\n  " + "\n  ".join(faults))


class CanVgae(nn.Module):
    """Graphs -> what each node should be like, and how far it is from that.

    Of each node, [n, ...]: `z_mean` and `z_logvar` [d] of the posterior (the logarithm within ±20), `posterior` [2d]
    both side by side, `z` [d], which is a sample in training and else the mean; `features` [f] in [0, 1], `id_logits`
    and `neighbour_logits` [num_ids], decoded from z. And `feature_error`, `id_error`, `neighbour_error`,
    `anomaly_parts`: see kdjax.models.graphs.can_errors. In training the last graph is padding, which is no part of the
    statistics; they are of all packs where the model is mapped over packs.
    """

    options: Options

    endpoints: ClassVar[tuple[str, ...]] = (
        *("features", "id_logits", "neighbour_logits", "z", "z_mean", "z_logvar", "posterior"),
        *("feature_error", "neighbour_error", "id_error", "anomaly_parts"),
    )

    @property
    def inputs(self) -> dict[str, GraphInput]:
        return {"graphs": GraphInput(self.options.features, self.options.num_ids)}

    @nn.compact
    def __call__(self, graphs: jraph.GraphsTuple, train: bool = False) -> dict[str, Array]:
        o = self.options
        real = jraph.get_node_padding_mask(graphs) if train else None
        Conv = nn.remat(CONVS[o.conv], static_argnums=(4,)) if o.remat else CONVS[o.conv]
        drop = lambda x: nn.Dropout(o.dropout, deterministic=not train)(x)  # noqa: E731

        def conv(x: Array, width: int, heads: int, name: str) -> Array:
            return Conv(width // heads, heads, dtype=o.dtype, name=name)(x, graphs.senders, graphs.receivers, train)

        def stack(x: Array, part: str, widths: tuple[int, ...], heads: tuple[int, ...]) -> Array:
            for i, (width, h) in enumerate(zip(widths, heads, strict=True)):
                x = conv(x, width, h, f"{part}_layers_{i}")
                x = drop(nn.relu(BatchNorm(o.dtype, axis_name="packs", name=f"{part}_bns_{i}")(x, train, real)))
            return x

        layer = lambda x, width, name: dense(width, dtype=o.dtype, name=name)(x)  # noqa: E731
        h = stack(with_ids(o, graphs.nodes), "encoder", o.encoder, o.encoder_heads)
        mean = layer(h, o.latent, "z_mean")
        logvar = jnp.clip(layer(h, o.latent, "z_logvar"), -WIDEST, WIDEST)
        z = mean
        if train:
            z = mean + jnp.exp(logvar / 2) * jax.random.normal(self.make_rng("dropout"), mean.shape, mean.dtype)
        nodes, h = stack(z, "decoder", o.decoder, o.decoder_heads), z
        for i, width in enumerate((o.neighbour_hidden or o.latent,) * 2):
            h = drop(nn.relu(layer(h, width, f"neighborhood_decoder_{3 * i}")))
        decoded = {
            "features": nn.sigmoid(conv(nodes, o.features, 1, f"decoder_layers_{len(o.decoder)}")),
            "id_logits": layer(z, o.num_ids, "canid_classifier"),
            "neighbour_logits": layer(h, o.num_ids, "neighborhood_decoder_6"),
        }
        posterior = jnp.concatenate([mean, logvar], axis=-1)
        latent = {"z": z, "z_mean": mean, "z_logvar": logvar, "posterior": posterior}
        return decoded | latent | node_errors(**decoded, graphs=graphs)


def build_can_vgae(variant: str = "b_student", **overrides) -> CanVgae:
    """`overrides` are fields of Options."""
    return CanVgae(options_of(Options, "VGAE", VARIANTS, variant, overrides))
