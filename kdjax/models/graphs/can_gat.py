"""Classifiers of CAN windows: graph attention with jumping knowledge, three generations of GATWithJK.

Generation a reads raw ids as a feature, and an LSTM weighs its layers; b embeds ids and joins the layers; c is b with
other sizes and two logits. Module names follow the checkpoints': `convs_0/lin/kernel`, `jk/lstm`, `fc_layers_3`.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import jraph
from jaxtyping import Array, Float

from kdjax.config import ConfigError, nearest
from kdjax.models.graphs.gat_conv import CONVS
from kdjax.models.graphs.jumping import JUMPINGS, LstmJumping
from kdjax.models.graphs.pooling import graph_mean
from kdjax.models.inputs import GraphInput
from kdjax.models.layers.dense import dense
from kdjax.models.options import options_of

_A: dict[str, Any] = {"jumping": "lstm", "fc_layers": 0, "num_ids": 0, "hidden": 32}

VARIANTS: dict[str, dict[str, Any]] = {
    "a_student": _A | {"heads": 4, "layers": 2},
    "a_teacher": _A | {"heads": 8, "layers": 5},
    "b_student": {"hidden": 16, "heads": 4, "layers": 2},
    "b_teacher": {"hidden": 32, "heads": 8, "layers": 5},
    "c_small": {"hidden": 24, "heads": 4, "layers": 2, "fc_layers": 2, "dropout": 0.1},
    "c_large": {"hidden": 48, "heads": 8, "layers": 3, "fc_layers": 1, "embed_dim": 16},
    "c_teacher": {"hidden": 64, "heads": 8, "layers": 5, "fc_layers": 1, "embed_dim": 32, "dropout": 0.1},
}

# Parameters as published, of the ids and logits that they were counted with: (num_ids, logits, parameters).
PARAMETERS = {
    "a_student": (0, 1, 283_010),
    "b_student": (2032, 1, 55_041),
    "c_small": (30, 2, 49_202),
    "c_large": (30, 2, 311_138),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The dimensions of a GATWithJK and how it computes."""

    hidden: int  # width of each head
    heads: int
    layers: int
    jumping: str = "cat"
    fc_layers: int = 3  # of the classifier, the last one the logits; 0: one layer, called `lin`
    num_ids: int = 2032  # rows of the embedding, the last one for unknown ids; 0: none, ids are not read
    embed_dim: int = 8
    features: int = 10
    conv: str = "gat"
    dropout: float = 0.2  # of the layers' outputs and of the classifier
    dtype: Any = "float32"  # of the computation; parameters stay float32
    remat: bool = False  # recompute each convolution in the backward pass: less memory, more time

    def __post_init__(self):
        faults = []
        if self.jumping not in JUMPINGS:
            faults.append(f"jumping: no {self.jumping!r}; {nearest(self.jumping, JUMPINGS)}")
        if self.conv not in CONVS:
            faults.append(f"conv: no {self.conv!r}; {nearest(self.conv, CONVS)}")
        for name in ("hidden", "heads", "layers"):
            if getattr(self, name) < 1:
                faults.append(f"{name}: expected at least 1, found {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            faults.append(f"dropout: expected a rate in [0, 1), found {self.dropout}")
        if self.num_ids < 0 or (self.num_ids == 0 and self.features == 0):
            faults.append("num_ids: expected at least 1 where there are no features, found " + str(self.num_ids))
        if faults:
            raise ConfigError("GATWithJK cannot be built:\n  " + "\n  ".join(faults))


class CanGat(nn.Module):
    """Graphs -> a class for each graph.

    Endpoints: `logits` [g, k]; `embedding` [g, d], the mean of a graph's nodes after jumping knowledge; `layer_i`
    [n, c], the nodes after each layer. Of two classes there is one logit, the second class's, unless `binary_logit`
    is False.
    """

    options: Options
    num_classes: int = 2
    binary_logit: bool = True

    @property
    def endpoints(self) -> tuple[str, ...]:
        return ("logits", "embedding", *(f"layer_{i}" for i in range(self.options.layers)))

    @property
    def inputs(self) -> dict[str, GraphInput]:
        return {"graphs": GraphInput(self.options.features, self.options.num_ids)}

    @nn.compact
    def __call__(self, graphs: jraph.GraphsTuple, train: bool = False) -> dict[str, Array]:
        o = self.options
        x = with_ids(o, graphs.nodes)
        conv, out, layers = CONVS[o.conv], {}, []
        conv = nn.remat(conv, static_argnums=(4,)) if o.remat else conv
        for i in range(o.layers):
            layer = conv(o.hidden, o.heads, dtype=o.dtype, name=f"convs_{i}")
            x = nn.relu(layer(x, graphs.senders, graphs.receivers, train))
            x = nn.Dropout(o.dropout, deterministic=not train)(x)
            layers.append(x)
            out[f"layer_{i}"] = x
        x = LstmJumping(o.dtype, name="jk")(layers) if o.jumping == "lstm" else jnp.concatenate(layers, axis=-1)
        x = out["embedding"] = graph_mean(x, graphs)
        k = 1 if self.num_classes == 2 and self.binary_logit else self.num_classes
        for i in range(o.fc_layers - 1):
            x = nn.relu(dense(x.shape[-1], dtype=o.dtype, name=f"fc_layers_{3 * i}")(x))
            x = nn.Dropout(o.dropout, deterministic=not train)(x)
        name = f"fc_layers_{3 * (o.fc_layers - 1)}" if o.fc_layers else "lin"
        return out | {"logits": dense(k, dtype=o.dtype, name=name)(x)}


def with_ids(o: Any, nodes: dict[str, Array]) -> Float[Array, "n c"]:
    """The embeddings of the nodes' ids before their features; to be called in a compact method."""
    x = nodes["x"].astype(o.dtype)
    if not o.num_ids:
        return x
    initial = nn.initializers.normal(1.0)
    embed = nn.Embed(o.num_ids, o.embed_dim, dtype=o.dtype, embedding_init=initial, name="id_embedding")
    return jnp.concatenate([embed(nodes["id"]), x], axis=-1)


def build_can_gat(variant: str = "b_student", num_classes: int = 2, binary_logit: bool = True, **overrides) -> CanGat:
    """`overrides` are fields of Options."""
    if num_classes < 2:
        raise ConfigError(f"num_classes: expected at least 2, found {num_classes}")
    return CanGat(options_of(Options, "GATWithJK", VARIANTS, variant, overrides), num_classes, binary_logit)
