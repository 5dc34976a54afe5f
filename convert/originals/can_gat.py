"""GATWithJK in plain PyTorch, to be measured against; attribute names are the keys of its checkpoints."""

import torch
from torch import nn
from torch.nn import functional as F

from convert.originals.gat_conv import CONVS
from convert.originals.packs import graph_of_node, outputs
from kdjax import registry
from kdjax.config import Model

__all__ = ["GATWithJK", "build", "outputs"]


class GATWithJK(nn.Module):
    def __init__(self, o, k):
        super().__init__()
        self.dropout = o.dropout
        self.id_embedding = nn.Embedding(o.num_ids, o.embed_dim) if o.num_ids else None
        c, width = o.features + (o.embed_dim if o.num_ids else 0), o.hidden * o.heads
        self.convs = nn.ModuleList(CONVS[o.conv](width if i else c, o.hidden, heads=o.heads) for i in range(o.layers))
        self.jk = Jumping(width, o.layers) if o.jumping == "lstm" else None
        d = width if self.jk else width * o.layers
        if o.fc_layers:
            hidden = [
                part for _ in range(o.fc_layers - 1) for part in (nn.Linear(d, d), nn.ReLU(), nn.Dropout(o.dropout))
            ]
            self.fc_layers = nn.Sequential(*hidden, nn.Linear(d, k))
        else:
            self.lin = nn.Linear(d, k)

    def endpoints(self, x, id, senders, receivers, n_node):
        """As those of kdjax.models.graphs.can_gat."""
        x = x if self.id_embedding is None else torch.cat([self.id_embedding(id), x], dim=1)
        layers = []
        for conv in self.convs:
            x = F.dropout(conv(x, senders, receivers).relu(), self.dropout, self.training)
            layers.append(x)
        out = {f"layer_{i}": x for i, x in enumerate(layers)}
        x = self.jk(layers) if self.jk else torch.cat(layers, dim=1)
        out["embedding"] = mean(x, n_node)
        head = self.fc_layers if hasattr(self, "fc_layers") else self.lin
        return out | {"logits": head(out["embedding"])}


class Jumping(nn.Module):
    def __init__(self, width, layers):
        super().__init__()
        hidden = layers * width // 2
        self.lstm = nn.LSTM(width, hidden, bidirectional=True, batch_first=True)
        self.att = nn.Linear(2 * hidden, 1)

    def forward(self, layers):
        x = torch.stack(layers, dim=1)
        return (x * self.att(self.lstm(x)[0]).softmax(dim=1)).sum(dim=1)


def mean(x, n_node):
    """Of the nodes of each graph."""
    total = x.new_zeros(len(n_node), x.shape[1]).index_add(0, graph_of_node(n_node), x)
    return total / n_node[:, None].clamp(min=1)


def build(model: Model) -> nn.Module:
    ours = registry.get("models", model.name)(**model.options)
    k = 1 if ours.num_classes == 2 and ours.binary_logit else ours.num_classes
    return GATWithJK(ours.options, k).eval()
