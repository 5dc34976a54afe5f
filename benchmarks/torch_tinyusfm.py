"""TinyUSFM in plain PyTorch, to be measured against; attribute names are the keys of its checkpoints."""

import torch
from torch import nn
from torch.nn import functional as F


class DropPath(nn.Module):
    """Drops the whole residual branch of an example, and scales up what is kept."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x):
        if not self.training or self.rate == 0:
            return x
        keep = torch.rand(len(x), 1, 1, device=x.device) >= self.rate
        return x * keep / (1 - self.rate)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2)) * (d // self.heads) ** -0.5
        return self.proj((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(b, n, d))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, rate: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(rate)

    def forward(self, x):
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    def __init__(self, patch: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)

    def forward(self, image):
        return self.proj(image).flatten(2).transpose(1, 2)


class Encoder(nn.Module):
    """The ViT; with `num_classes` it ends in mean pooling, `fc_norm` and `head` in place of `norm`."""

    def __init__(self, image_size=(224, 224), dim=192, depth=12, heads=12, drop_path=0.1, num_classes=0, patch=16):
        super().__init__()
        self.grid = tuple(side // patch for side in image_size)
        self.patch_embed = PatchEmbed(patch, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1] + 1, dim))
        rates = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(dim, heads, rate) for rate in rates)
        if num_classes:
            self.fc_norm = nn.LayerNorm(dim, eps=1e-6)
            self.head = nn.Linear(dim, num_classes)
        else:
            self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.num_classes = num_classes

    def hidden(self, image):
        """The tokens after each block."""
        x = self.patch_embed(image)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
            yield x

    def forward(self, image):
        *_, x = self.hidden(image)
        return self.head(self.fc_norm(x[:, 1:].mean(dim=1))) if self.num_classes else self.norm(x)

    def maps(self, image, taps):
        """[b, d, gh, gw] after each block in `taps`, without the class token."""
        kept = [x for i, x in enumerate(self.hidden(image)) if i in taps]
        return [x[:, 1:].transpose(1, 2).unflatten(2, self.grid) for x in kept]


class Classifier(nn.Module):
    def __init__(self, num_classes, **options):
        super().__init__()
        self.model = Encoder(num_classes=num_classes, **options)

    def forward(self, image):
        return self.model(image)


class Neck(nn.Module):
    def __init__(self, dim: int, channels: int):
        super().__init__()
        self.projections = nn.ModuleList(nn.Conv2d(dim, channels, 1) for _ in range(4))

    def forward(self, maps):
        scales = (4, 2, 1, 0.5)
        maps = [project(x) for project, x in zip(self.projections, maps, strict=True)]
        return [
            x if s == 1 else F.interpolate(x, scale_factor=s, mode="bilinear", align_corners=False)
            for x, s in zip(maps, scales, strict=True)
        ]


def conv_bn_relu(inside: int, outside: int, size: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, size, padding=size // 2), nn.BatchNorm2d(outside), nn.ReLU())


class DecodeHead(nn.Module):
    def __init__(self, inside: int, channels: int, out: int, dropout: float):
        super().__init__()
        self.lateral_convs = nn.ModuleList(conv_bn_relu(inside, channels, 1) for _ in range(4))
        self.fpn_convs = nn.ModuleList(conv_bn_relu(channels, channels, 3) for _ in range(4))
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(channels, out, 1)

    def fused(self, maps):
        maps = [conv(x) for conv, x in zip(self.lateral_convs, maps, strict=True)]
        for i in (3, 2, 1):
            maps[i - 1] = maps[i - 1] + resize(maps[i], maps[i - 1].shape[2:])
        maps = [conv(x) for conv, x in zip(self.fpn_convs, maps, strict=True)]
        return sum(resize(x, maps[0].shape[2:]) for x in maps)

    def forward(self, maps):
        return self.conv_seg(self.dropout(self.fused(maps)))


def resize(x, size):
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


class SegmentationModel(nn.Module):
    def __init__(
        self,
        num_classes=2,
        image_size=(224, 224),
        dim=192,
        depth=12,
        heads=12,
        drop_path=0.1,
        dropout=0.1,
        taps=(3, 5, 7, 11),
        neck_dim=48,
        head_dim=128,
        patch=16,
    ):
        super().__init__()
        self.taps = taps
        self.backbone = Encoder(image_size, dim, depth, heads, drop_path, patch=patch)
        self.neck = Neck(dim, neck_dim)
        self.decode_head = DecodeHead(neck_dim, head_dim, 1 if num_classes == 2 else num_classes, dropout)

    def forward(self, image):
        logits = self.decode_head(self.neck(self.backbone.maps(image, self.taps)))
        return resize(logits, image.shape[2:])
