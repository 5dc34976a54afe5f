"""Classes for nodes: the graph attention network of Velickovic et al. (arXiv 1710.10903), as it learnt Cora.

Module names are those of PyTorch Geometric's layers in a list: `convs_0/lin/kernel`, `convs_0/att_src`.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jraph
from jaxtyping import Array

from kdjax.config import ConfigError, nearest
from kdjax.models.graphs.gat_conv import CONVS
from kdjax.models.inputs import GraphInput
from kdjax.models.options import options_of

VARIANTS: dict[str, dict[str, Any]] = {
    "cora": {"features": 1433, "hidden": (8,), "heads": (8, 1)},
    "cora_pyg": {"features": 1433, "hidden": (8,), "heads": (8, 1), "self_loops": True},
}

PARAMETERS = {"cora": 92_373, "cora_pyg": 92_373}  # of seven classes


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The dimensions of a GAT and how it computes."""

    features: int
    hidden: tuple[int, ...]  # width of each head, of all layers but the last
    heads: tuple[int, ...]  # of all layers; the last layer's answers are averaged, the others' joined
    self_loops: bool = False  # each node gets an edge to itself; False: the edges already have them
    conv: str = "gat"
    dropout: float = 0.6  # of each layer's input and attention
    dtype: Any = "float32"  # of the computation; parameters stay float32

    def __post_init__(self):
        faults = []
        if len(self.heads) != len(self.hidden) + 1 or min(self.heads, default=0) < 1:
            faults.append(f"heads: expected one number more than widths in hidden {self.hidden}, found {self.heads}")
        if self.features < 1:
            faults.append(f"features: expected at least 1, found {self.features}")
        if min(self.hidden, default=1) < 1:
            faults.append(f"hidden: expected widths of at least 1, found {self.hidden}")
        if self.conv not in CONVS:
            faults.append(f"conv: no {self.conv!r}; {nearest(self.conv, CONVS)}")
        if not 0 <= self.dropout < 1:
            faults.append(f"dropout: expected a rate in [0, 1), found {self.dropout}")
        if faults:
            raise ConfigError("The node GAT cannot be built:\n  " + "\n  ".join(faults))


class NodeGat(nn.Module):
    """Graphs -> a class for each node: `logits` [n, k]; `layer_i` [n, c] after each layer but the last.

    Cora's features are divided by their sum over each node; ids are not read.
    """

    options: Options
    num_classes: int = 7

    @property
    def endpoints(self) -> tuple[str, ...]:
        return ("logits", *(f"layer_{i}" for i in range(len(self.options.hidden))))

    @property
    def inputs(self) -> dict[str, GraphInput]:
        return {"graphs": GraphInput(self.options.features)}

    @nn.compact
    def __call__(self, graphs: jraph.GraphsTuple, train: bool = False) -> dict[str, Array]:
        o, x, out = self.options, graphs.nodes["x"], {}
        for i, (width, heads) in enumerate(zip((*o.hidden, self.num_classes), o.heads, strict=True)):
            last = i == len(o.hidden)
            x = nn.Dropout(o.dropout, deterministic=not train)(x)
            layer = CONVS[o.conv](width, heads, not last, o.self_loops, o.dropout, dtype=o.dtype, name=f"convs_{i}")
            x = layer(x, graphs.senders, graphs.receivers, train)
            x = x if last else nn.elu(x)
            out["logits" if last else f"layer_{i}"] = x
        return out


def build_node_gat(variant: str = "cora", num_classes: int = 7, **overrides) -> NodeGat:
    """`overrides` are fields of Options."""
    if num_classes < 2:
        raise ConfigError(f"num_classes: expected at least 2, found {num_classes}")
    return NodeGat(options_of(Options, "node GAT", VARIANTS, variant, overrides), num_classes)
