"""Classes for nodes from their features alone: the student of GLNN (Zhang et al., arXiv 2110.08727)."""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jraph
from jaxtyping import Array

from kdjax.config import ConfigError
from kdjax.models.inputs import GraphInput
from kdjax.models.layers.dense import dense
from kdjax.models.options import options_of

VARIANTS: dict[str, dict[str, Any]] = {"cora": {"features": 1433, "hidden": (128,)}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The dimensions of a node MLP and how it computes."""

    features: int
    hidden: tuple[int, ...]
    dropout: float = 0.5  # after each hidden layer
    dtype: Any = "float32"  # of the computation; parameters stay float32

    def __post_init__(self):
        faults = []
        if min(self.hidden, default=1) < 1:
            faults.append(f"hidden: expected widths of at least 1, found {self.hidden}")
        if not 0 <= self.dropout < 1:
            faults.append(f"dropout: expected a rate in [0, 1), found {self.dropout}")
        if faults:
            raise ConfigError("The node MLP cannot be built:\n  " + "\n  ".join(faults))


class NodeMlp(nn.Module):
    """A node's features -> its class: `logits` [n, k], and `layer_i` [n, c] after each hidden layer."""

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
        for i, width in enumerate(o.hidden):
            x = nn.relu(dense(width, dtype=o.dtype, name=f"layers_{i}")(x))
            x = out[f"layer_{i}"] = nn.Dropout(o.dropout, deterministic=not train)(x)
        return out | {"logits": dense(self.num_classes, dtype=o.dtype, name=f"layers_{len(o.hidden)}")(x)}


def build_node_mlp(variant: str = "cora", num_classes: int = 7, **overrides) -> NodeMlp:
    """`overrides` are fields of Options."""
    if num_classes < 2:
        raise ConfigError(f"num_classes: expected at least 2, found {num_classes}")
    return NodeMlp(options_of(Options, "node MLP", VARIANTS, variant, overrides), num_classes)
