"""Swin-V2 in plain PyTorch; attribute names are the keys of timm's checkpoints."""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from convert.originals.vit import DropPath, Mlp
from kdjax import registry
from kdjax.config import Model


def steps(window: tuple[int, int], pretrained: int) -> torch.Tensor:
    """[2h - 1, 2w - 1, 2]: how far a query is from a key, up to 8 where training had its window's edge, log-spaced."""
    sides = []
    for n in window:
        x = 8 * torch.arange(1 - n, n, dtype=torch.float64) / max(1, (pretrained or n) - 1)
        sides.append(x.sign() * (1 + x.abs()).log2() / 3)
    return torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1)


def pairs(window: tuple[int, int]) -> torch.Tensor:
    """[n, n]: the row of `steps`, flattened, for each query and key."""
    rows, columns = (x.flatten() for x in torch.meshgrid(*map(torch.arange, window), indexing="ij"))
    down = rows[:, None] - rows + window[0] - 1
    return down * (2 * window[1] - 1) + columns[:, None] - columns + window[1] - 1


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, window: tuple[int, int], pretrained: int):
        super().__init__()
        self.heads, self.window, self.pretrained = heads, window, pretrained
        self.logit_scale = nn.Parameter(torch.zeros(heads, 1, 1))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, heads, bias=False))
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x, mask):
        """Windows [g, n, d]; `mask` [windows of an example, n, n] is added to their scores."""
        g, n, d = x.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        q, k, v = F.linear(x, self.qkv.weight, bias).view(g, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-1, -2)
        scores = scores * self.logit_scale.clamp(max=np.log(100)).exp()
        table = 16 * self.cpb_mlp(steps(self.window, self.pretrained).to(x)).flatten(0, 1).sigmoid()
        scores = scores + table[pairs(self.window)].permute(2, 0, 1)
        if mask is not None:
            scores = (scores.view(-1, len(mask), self.heads, n, n) + mask[:, None]).view_as(scores)
        return self.proj((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(g, n, d))


class Block(nn.Module):
    """`grid` is the map's rows and columns, `side` that of its windows, of which each second block's are shifted."""

    def __init__(self, dim, heads, grid, side, shifted, pretrained, mask, mlp_ratio, activation, rate):
        super().__init__()
        window = tuple(min(n, side) for n in grid)
        self.window, self.mask = window, mask
        self.shift = tuple(side // 2 if shifted and n > side else 0 for n in grid)
        self.attn = Attention(dim, heads, window, pretrained)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), activation)
        self.drop_path = DropPath(rate)

    def forward(self, x):
        b, h, w, d = x.shape
        y = self.cut(F.pad(x, (0, 0, 0, -w % self.window[1], 0, -h % self.window[0])))
        (down, across), n = y.shape[1:3], self.window[0] * self.window[1]
        y = self.attn(y.reshape(-1, n, d), self.apart(down, across, x) if any(self.shift) else None)
        y = y.view(b, down, across, *self.window, d).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        x = x + self.drop_path_of(self.norm1(y.roll(self.shift, (1, 2))[:, :h, :w]))
        return x + self.drop_path_of(self.norm2(self.mlp(x)))

    def drop_path_of(self, branch):
        return self.drop_path(branch.flatten(1, 2)).view_as(branch)

    def cut(self, x):
        """[b, rows of windows, windows of a row, h, w, d] of the map rolled by `shift`."""
        x = x.roll([-n for n in self.shift], (1, 2))
        return x.unflatten(2, (-1, self.window[1])).unflatten(1, (-1, self.window[0])).transpose(2, 3)

    def apart(self, down, across, like):
        """What is added for positions that only the roll brought together: a part of the map has a number."""
        part = torch.zeros(1, down * self.window[0], across * self.window[1], 1)
        for axis, shift in enumerate(self.shift, 1):
            if shift:  # all that is rolled in from the other edge lies behind the last `shift` rows or columns
                part.narrow(axis, part.shape[axis] - shift, shift).add_(axis)
        # The part is rolled already, so it is cut as it lies.
        parts = part.unflatten(2, (-1, self.window[1])).unflatten(1, (-1, self.window[0])).transpose(2, 3)
        parts = parts.reshape(down * across, -1)
        return -self.mask * (parts[:, :, None] != parts[:, None]).to(like)


class PatchMerging(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x):
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], dim=-1)
        return self.norm(self.reduction(x))


class Stage(nn.Module):
    def __init__(self, dim: int, blocks: list[Block], first: bool):
        super().__init__()
        self.downsample = nn.Identity() if first else PatchMerging(dim // 2)
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x):
        return self.blocks(self.downsample(x))


class PatchEmbed(nn.Module):
    def __init__(self, patch: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)
        self.norm = nn.LayerNorm(dim)

    def forward(self, image):
        return self.norm(self.proj(image).permute(0, 2, 3, 1))


class Head(nn.Module):
    def __init__(self, dim: int, classes: int):
        super().__init__()
        self.fc = nn.Linear(dim, classes) if classes else nn.Identity()

    def forward(self, x):
        return self.fc(x)


class Swin(nn.Module):
    def __init__(self, o: Any, classes: int):
        super().__init__()
        self.classes = classes
        self.patch_embed = PatchEmbed(o.patch_size, o.dim)
        rates = iter(torch.linspace(0, o.drop_path, sum(o.depths)).tolist())
        stages = []
        for i, depth in enumerate(o.depths):
            dim, grid = o.dim * 2**i, tuple(-(-n // 2**i) for n in o.grid)
            before = o.pretrained_windows[i] if o.pretrained_windows else 0
            shared = (dim, o.heads[i], grid, o.window)
            more = (before, o.mask, o.mlp_ratio, o.activation)
            blocks = [Block(*shared, j % 2 == 1, *more, next(rates)) for j in range(depth)]
            stages.append(Stage(dim, blocks, first=i == 0))
        self.layers = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(dim)
        self.head = Head(dim, classes)

    def endpoints(self, image):
        """As those of kdjax.models.vision.swin."""
        x, out = self.patch_embed(image), {}
        for i, stage in enumerate(self.layers):
            x = out[f"stage_{i}"] = stage(x)
        out["features"] = self.norm(x).mean(dim=(1, 2))
        return out | ({"logits": self.head(out["features"])} if self.classes else {})

    def forward(self, image):
        return self.endpoints(image)["logits" if self.classes else "features"]


def build(model: Model) -> Swin:
    ours = registry.get("models", model.name)(**model.options)
    return Swin(ours.options, ours.num_classes).eval()


def outputs(module: Any, image: np.ndarray) -> dict[str, np.ndarray]:
    """The endpoints of our models for normalised images [b, h, w, 3], channels last."""
    found = module.endpoints(torch.from_numpy(np.moveaxis(image, -1, 1).copy()))
    return {name: x.detach().numpy() for name, x in found.items()}
