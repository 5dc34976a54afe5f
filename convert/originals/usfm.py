"""USFM in plain PyTorch, to be measured against; attribute names are the keys of its checkpoints."""

from functools import cache

import torch
from torch import nn
from torch.nn import functional as F

from convert.originals.tinyusfm import Segmenter
from convert.originals.vit import DropPath, Mlp, PatchEmbed, arguments, outputs
from kdjax import registry
from kdjax.config import Model

__all__ = ["Encoder", "build", "outputs"]


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, bias: bool, grid: tuple[int, int]):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim)) if bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if bias else None
        index = relative_position_index(grid)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(int(index.max()) + 1, heads))
        self.register_buffer("relative_position_index", index)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        b, n, d = x.shape
        bias = None
        if self.q_bias is not None:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias)
        q, k, v = qkv.reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2)) * (d // self.heads) ** -0.5
        scores = scores + self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        return self.proj((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(b, n, d))


@cache
def relative_position_index(grid: tuple[int, int]) -> torch.Tensor:
    """[n, n]: the table has a row for each step between two patches, by rows and then by columns, each from the most
    negative one on; then one for class token to patch, patch to class token, and class token to itself."""
    height, width = grid
    steps = [(y, x) for y in range(1 - height, height) for x in range(1 - width, width)]
    row = {step: i for i, step in enumerate(steps)}
    patches = [(y, x) for y in range(height) for x in range(width)]
    index = [[len(steps) + 2, *[len(steps)] * len(patches)]]
    for y, x in patches:
        index.append([len(steps) + 1, *(row[y - v, x - u] for v, u in patches)])
    return torch.tensor(index)


class Block(nn.Module):
    def __init__(self, dim, heads, rate, mlp_ratio, qkv_bias, eps, activation, layer_scale, grid):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads, qkv_bias, grid)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), activation)
        self.gamma_1 = nn.Parameter(torch.full((dim,), layer_scale)) if layer_scale else 1.0
        self.gamma_2 = nn.Parameter(torch.full((dim,), layer_scale)) if layer_scale else 1.0
        self.drop_path = DropPath(rate)

    def forward(self, x):
        x = x + self.drop_path(self.gamma_1 * self.attn(self.norm1(x)))
        return x + self.drop_path(self.gamma_2 * self.mlp(self.norm2(x)))


class Encoder(nn.Module):
    """BEiT-like: no absolute positions, and the patches' mean goes through `fc_norm`."""

    def __init__(
        self,
        image_size=(224, 224),
        dim=768,
        depth=12,
        heads=12,
        drop_path=0.1,
        num_classes=0,
        patch=16,
        mlp_ratio=4.0,
        qkv_bias=True,
        eps=1e-6,
        activation="gelu",
        layer_scale=0.1,
        taps=(3, 5, 7, 11),
    ):
        super().__init__()
        self.grid, self.taps = tuple(side // patch for side in image_size), taps
        self.patch_embed = PatchEmbed(patch, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        rates = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            Block(dim, heads, rate, mlp_ratio, qkv_bias, eps, activation, layer_scale, self.grid) for rate in rates
        )
        self.fc_norm = nn.LayerNorm(dim, eps=eps)
        self.head = nn.Linear(dim, num_classes) if num_classes else None

    def endpoints(self, image):
        """As those of kdjax.models.vision.vit, maps with their channels first."""
        x = self.patch_embed(image)
        x, out = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1), {}
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.taps:
                out[f"block_{i}"] = x[:, 1:].transpose(1, 2).unflatten(2, self.grid)
        out |= {"tokens": x, "features": self.fc_norm(x[:, 1:].mean(dim=1))}
        return out if self.head is None else out | {"logits": self.head(out["features"])}

    def maps(self, image, taps):
        out = self.endpoints(image)
        return [out[f"block_{i}"] for i in taps]

    def forward(self, image):
        return self.endpoints(image)["features" if self.head is None else "logits"]


def build(model: Model) -> nn.Module:
    """`usfm_seg` is ours: the neck and head of TinyUSFM on USFM's maps."""
    ours = registry.get("models", model.name)(**model.options)
    o = ours.options
    other = ("pool", "distilled", "registers", "class_position")
    given = {name: x for name, x in arguments(o).items() if name not in other}
    encoder = Encoder(num_classes=0 if model.name == "usfm_seg" else ours.num_classes, **given)
    if model.name != "usfm_seg":
        return encoder.eval()
    return Segmenter(encoder, o.dim, ours.num_classes, o.taps, o.neck_dim, o.head_dim, o.dropout).eval()
