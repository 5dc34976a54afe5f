"""The VGAE of CAN graphs in plain PyTorch, to be measured against; attribute names are the keys of its checkpoints."""

import torch
from torch import nn
from torch.nn import functional as F

from convert.originals.can_gat import mean
from convert.originals.gat_conv import CONVS
from convert.originals.packs import graph_of_node, outputs
from kdjax import registry
from kdjax.config import Model

__all__ = ["GraphAutoencoderNeighborhood", "build", "outputs"]


class GraphAutoencoderNeighborhood(nn.Module):
    def __init__(self, o):
        super().__init__()
        conv, hidden = CONVS[o.conv], o.neighbour_hidden or o.latent
        self.id_embedding = nn.Embedding(o.num_ids, o.embed_dim)
        widths = (o.embed_dim + o.features, *o.encoder)
        self.encoder_layers = nn.ModuleList(
            conv(c, d // h, heads=h) for c, d, h in zip(widths, o.encoder, o.encoder_heads, strict=False)
        )
        self.encoder_bns = nn.ModuleList(map(nn.BatchNorm1d, o.encoder))
        self.z_mean, self.z_logvar = (nn.Linear(o.encoder[-1], o.latent) for _ in range(2))
        widths, heads = (o.latent, *o.decoder), (*o.decoder_heads, 1)
        self.decoder_layers = nn.ModuleList(
            conv(c, d // h, heads=h) for c, d, h in zip(widths, (*o.decoder, o.features), heads, strict=True)
        )
        self.decoder_bns = nn.ModuleList(map(nn.BatchNorm1d, o.decoder))
        self.canid_classifier = nn.Linear(o.latent, o.num_ids)
        drop = lambda: (nn.ReLU(), nn.Dropout(o.dropout))  # noqa: E731
        self.neighborhood_decoder = nn.Sequential(
            nn.Linear(o.latent, hidden), *drop(), nn.Linear(hidden, hidden), *drop(), nn.Linear(hidden, o.num_ids)
        )
        self.dropout = nn.Dropout(o.dropout)

    def endpoints(self, x, id, senders, receivers, n_node):
        """As those of kdjax.models.graphs.can_vgae; z is the mean."""
        out = self.nodes(x, id, senders, receivers)
        wrong = mean((out["id_logits"].argmax(1) != id)[:, None].float(), n_node)
        errors = torch.stack([out["feature_error"], out["neighbour_error"]], dim=1)
        index = graph_of_node(n_node)[:, None].expand_as(errors)
        worst = errors.new_zeros(len(n_node), 2).scatter_reduce(0, index, errors, "amax")
        return out | {"anomaly_parts": torch.cat([worst, wrong], dim=1)}

    def nodes(self, x, id, senders, receivers):
        """The endpoints of each node."""
        h = torch.cat([self.id_embedding(id), x], dim=1)
        for conv, norm in zip(self.encoder_layers, self.encoder_bns, strict=True):
            h = self.dropout(norm(conv(h, senders, receivers)).relu())
        mu, logvar = self.z_mean(h), self.z_logvar(h).clamp(-20, 20)
        z = h = mu
        for conv, norm in zip(self.decoder_layers, self.decoder_bns, strict=False):
            h = self.dropout(norm(conv(h, senders, receivers)).relu())
        features = self.decoder_layers[-1](h, senders, receivers).sigmoid()
        ids, neighbours = self.canid_classifier(z), self.neighborhood_decoder(z)
        target = torch.zeros_like(neighbours)
        target[senders, id[receivers]] = 1
        binary = F.binary_cross_entropy_with_logits(neighbours, target, reduction="none")
        return {
            "features": features,
            "id_logits": ids,
            "neighbour_logits": neighbours,
            "z": z,
            "z_mean": mu,
            "z_logvar": logvar,
            "posterior": torch.cat([mu, logvar], dim=1),
            "feature_error": F.mse_loss(features, x, reduction="none").mean(1),
            "neighbour_error": binary.mean(1),
            "id_error": F.cross_entropy(ids, id, reduction="none"),
        }


def build(model: Model) -> nn.Module:
    return GraphAutoencoderNeighborhood(registry.get("models", model.name)(**model.options).options).eval()
