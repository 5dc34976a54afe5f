"""The nine fusions in PyTorch, written from what is known of them: image and text [b, d] and which of them are there
[b, 2] -> {"fused": ..., "shares": ..., "energy": ...}."""

import re

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

HEADS, LAYERS = 2, 2


def absent(there: torch.Tensor) -> torch.Tensor:
    """What attention leaves out; nothing where nothing is there, for a softmax of nothing is none."""
    return ~there & there.any(1, keepdim=True)


def mean(x: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    kept = there.to(x.dtype)[..., None]
    return (x * kept).sum(1) / kept.sum(1).clamp(min=1)


class Encoder(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        layer = nn.TransformerEncoderLayer(dim, HEADS, 4 * dim, 0.0, "gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False).layers

    def forward(self, image, text, there, route=None):
        x, weights = torch.stack([image, text], 1), None
        for layer in self.layers:
            weights = layer.self_attn(x, x, x, key_padding_mask=absent(there))[1]
            x = layer(x, src_key_padding_mask=absent(there))
        return {"fused": mean(x, there), "shares": mean(weights, there)}


class FeedForward(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        return self.linear2(F.gelu(self.linear1(x)))


class CrossAttention(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.norm1, self.norm2, self.ffn = nn.LayerNorm(dim), nn.LayerNorm(dim), FeedForward(dim)
        self.cross_attn = nn.MultiheadAttention(dim, HEADS, batch_first=True)

    def forward(self, image, text, there, route=None):
        tokens = torch.stack([image, text], 1)
        query = self.norm1(tokens.mean(1, keepdim=True))
        x, weights = self.cross_attn(query, tokens, tokens, key_padding_mask=absent(there))
        x = x[:, 0]
        return {"fused": x + self.ffn(self.norm2(x)), "shares": weights[:, 0]}


class ConcatMlp(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.mlp = nn.ModuleList([nn.Linear(2 * dim, 2 * dim), nn.Linear(2 * dim, dim)])

    def forward(self, image, text, there, route=None):
        return {"fused": self.mlp[1](F.gelu(self.mlp[0](torch.cat([image, text], 1))))}


class ModalityDropout(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.mlp = nn.ModuleList([nn.Linear(2 * dim, dim), nn.Linear(dim, dim)])

    def forward(self, image, text, there, route=None):
        return {"fused": self.mlp[1](F.relu(self.mlp[0](torch.cat([image, text], 1))))}


class Gated(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.gate = nn.Linear(2 * dim, dim)

    def forward(self, image, text, there, route=None):
        g = torch.sigmoid(self.gate(torch.cat([image, text], 1)))
        return {"fused": g * image + (1 - g) * text, "shares": torch.stack([g.mean(1), (1 - g).mean(1)], 1)}


class Film(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.gamma, self.beta = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, image, text, there, route=None):
        return {"fused": self.gamma(text) * image + self.beta(text)}


class Scores(nn.Module):
    def __init__(self, dim: int, choices: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(2 * dim, dim), nn.Linear(dim, choices)

    def forward(self, both, allowed):
        scores = self.fc2(F.gelu(self.fc1(both)))
        some = allowed.any(1, keepdim=True)
        return scores.masked_fill(~allowed & some, -torch.inf).softmax(1) * some


class Routed(nn.Module):
    """What energy_aware_adaptive and shomr have in common; `route` [b] is what chance gave, or None."""

    def __init__(self, dim: int):
        super().__init__()
        self.router, self.gated, self.ffn = Scores(dim, 3), Gated(dim), FeedForward(dim)
        self.cross_attn = nn.MultiheadAttention(dim, HEADS, batch_first=True)

    def read(self, image, text, there):
        tokens = torch.stack([image, text], 1)
        p = self.router(torch.cat([image, text], 1), torch.cat([there, there.all(1, keepdim=True)], 1))
        attended = self.cross_attn(tokens, tokens, tokens, key_padding_mask=absent(there))[0]
        return p, self.gated(image, text, there), mean(attended, there)

    def straight(self, p, route):
        return F.one_hot(route, 3) + p - p.detach()

    def shares(self, weights, gated):
        return weights[:, :2] + weights[:, 2:] * gated["shares"]


class EnergyAwareAdaptive(Routed):
    def __init__(self, dim: int):
        super().__init__(dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, image, text, there, route=None):
        p, gated, attended = self.read(image, text, there)
        weights = p if route is None else self.straight(p, route)
        routes = (image, text, self.ffn(self.norm(gated["fused"] + attended)))
        fused = torch.stack([weights[:, i, None] * x for i, x in enumerate(routes)]).sum(0)
        energy = 3.2 * p[:, 0] + 4.1 * p[:, 1] + 9.8 * p[:, 2]
        return {"fused": fused, "shares": self.shares(weights, gated), "energy": energy}


class Shomr(Routed):
    def __init__(self, dim: int):
        super().__init__(dim)
        self.conf_net, self.norm1, self.norm2 = Scores(dim, 2), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.proj_single = nn.Linear(dim, dim)

    def forward(self, image, text, there, route=None):
        p, gated, attended = self.read(image, text, there)
        sure = self.conf_net(torch.cat([image, text], 1), there)
        x = self.norm1(sure[:, :1] * image + sure[:, 1:] * text + attended)
        soft, x = x + self.ffn(x), self.norm2(gated["fused"] + attended)
        routes = (F.gelu(self.proj_single(image)), F.gelu(self.proj_single(text)), x + self.ffn(x))
        weights = self.straight(p, p.argmax(1) if route is None else route)
        one = torch.stack([weights[:, i, None] * x for i, x in enumerate(routes)]).sum(0)
        hard = sure.amax(1, keepdim=True) > 0.6
        energy = 3.2 * p[:, 0] + 4.1 * p[:, 1] + 9.8 * p[:, 2]
        return {
            "fused": torch.where(hard, one, soft),
            "shares": torch.where(hard, self.shares(weights, gated), sure),
            "energy": torch.where(hard[:, 0], energy, 9.8 * there.any(1)),
        }


FUSIONS = {
    "simple": Encoder,
    "concat_mlp": ConcatMlp,
    "cross_attention": CrossAttention,
    "gated": Gated,
    "transformer_concat": Encoder,
    "modality_dropout": ModalityDropout,
    "film": Film,
    "energy_aware_adaptive": EnergyAwareAdaptive,
    "shomr": Shomr,
}


def renamed(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Tensors under our names: torch keeps query, key and value in one matrix, and a layer's MLP in the layer."""
    ours = {}
    for name, x in state.items():
        if "in_proj_" in name:
            at, leaf = name.split("in_proj_")
            ours |= {f"{at}{k}.{leaf}": part.numpy() for k, part in zip("qkv", x.chunk(3), strict=True)}
        else:
            ours[re.sub(r"(layers\.\d+)\.linear", r"\1.ffn.linear", name)] = x.numpy()
    return ours
