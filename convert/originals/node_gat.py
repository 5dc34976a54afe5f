"""GATs for nodes in plain PyTorch, to be measured against.

Without self-loops as in pytorch-GAT, whose checkpoint of Cora has the names here; with them as a list of PyTorch
Geometric's layers.
"""

import torch
from torch import nn
from torch.nn import functional as F

from convert.families.pyg_gat import geometric
from convert.originals.gat_conv import CONVS
from convert.originals.packs import outputs
from kdjax import registry
from kdjax.config import Model

__all__ = ["Gat", "GeometricGat", "build", "outputs"]


class Layer(nn.Module):
    def __init__(self, c, d, heads, concat):
        super().__init__()
        self.shape, self.concat = (heads, d), concat
        self.linear_proj = nn.Linear(c, heads * d, bias=False)
        self.scoring_fn_target, self.scoring_fn_source = (nn.Parameter(torch.zeros(1, heads, d)) for _ in range(2))
        self.bias = nn.Parameter(torch.zeros(heads * d if concat else d))

    def forward(self, x, senders, receivers):
        values = self.linear_proj(x).unflatten(-1, self.shape)
        source, target = ((values * v).sum(-1) for v in (self.scoring_fn_source, self.scoring_fn_target))
        scores = F.leaky_relu(source[senders] + target[receivers], 0.2)
        weights = (scores - scores.max()).exp()
        total = torch.zeros_like(source).index_add(0, receivers, weights)
        # Against empty sums; float32 does not show it, and nor shall float64, in which 1e-16 would be seen.
        guard = 1e-16 if total.dtype == torch.float32 else 1e-200
        weights = weights / (total[receivers] + guard)
        out = torch.zeros_like(values).index_add(0, receivers, values[senders] * weights[:, :, None])
        return (out.flatten(1) if self.concat else out.mean(1)) + self.bias


class Gat(nn.Module):
    def __init__(self, o, k):
        super().__init__()
        self.dropout = nn.Dropout(o.dropout)
        last = len(o.hidden)
        widths = [o.features, *(h * d for h, d in zip(o.heads, o.hidden, strict=False))]
        dims = zip(widths, (*o.hidden, k), o.heads, strict=True)
        self.gat_net = nn.ModuleList(self.layer(o, c, d, h, i != last) for i, (c, d, h) in enumerate(dims))

    def layer(self, o, c, d, heads, concat):
        return Layer(c, d, heads, concat)

    def layers(self):
        return self.gat_net

    def endpoints(self, x, id, senders, receivers, n_node):
        """As those of kdjax.models.graphs.node_gat."""
        out = {}
        for i, layer in enumerate(self.layers()):
            x = layer(self.dropout(x), senders, receivers)
            last = i == len(self.layers()) - 1
            x = out["logits" if last else f"layer_{i}"] = x if last else F.elu(x)
        return out


class GeometricGat(Gat):
    def __init__(self, o, k):
        super().__init__(o, k)
        self.convs = self.gat_net
        del self.gat_net

    def layer(self, o, c, d, heads, concat):
        return CONVS[o.conv](c, d, heads, concat, o.self_loops)

    def layers(self):
        return self.convs


def build(model: Model) -> nn.Module:
    ours = registry.get("models", model.name)(**model.options)
    return (GeometricGat if geometric(model) else Gat)(ours.options, ours.num_classes).eval()
