"""ViT, DeiT and DINOv2 in plain PyTorch; attribute names are the keys of timm's checkpoints."""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from kdjax import registry
from kdjax.config import ConfigError, Model


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
    def __init__(self, dim: int, heads: int, bias: bool):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2)) * (d // self.heads) ** -0.5
        return self.proj((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(b, n, d))


ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
}


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int, activation: str):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x):
        return self.fc2(self.activation(self.fc1(x)))


class LayerScale(nn.Module):
    def __init__(self, dim: int, initial: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x):
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, dim, heads, rate, mlp_ratio, qkv_bias, eps, activation, layer_scale=0.0):
        super().__init__()
        self.ls1, self.ls2 = (LayerScale(dim, layer_scale) if layer_scale else nn.Identity() for _ in range(2))
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads, qkv_bias)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), activation)
        self.drop_path = DropPath(rate)

    def forward(self, x):
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class PatchEmbed(nn.Module):
    def __init__(self, patch: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)

    def forward(self, image):
        return self.proj(image).flatten(2).transpose(1, 2)


class Encoder(nn.Module):
    """The ViT; `pool` as in kdjax.models.vision.vit, which says where the final norm is and what it is called."""

    def __init__(
        self,
        image_size=(224, 224),
        dim=192,
        depth=12,
        heads=12,
        drop_path=0.1,
        num_classes=0,
        patch=16,
        pool="token",
        distilled=False,
        mlp_ratio=4.0,
        qkv_bias=True,
        eps=1e-6,
        activation="gelu",
        taps=(),
        layer_scale=0.0,
        registers=0,
        class_position=True,
    ):
        super().__init__()
        self.grid = tuple(side // patch for side in image_size)
        self.pool, self.first, self.taps = pool, 1 + distilled + registers, taps
        self.placed = (1 + distilled) * class_position  # tokens before the patches that have positions
        self.patch_embed = PatchEmbed(patch, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        if distilled:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, dim))
        if registers:
            tokens = nn.Parameter(torch.zeros(1, registers, dim))
            setattr(self, "register_tokens" if class_position else "reg_token", tokens)  # Meta's, and timm's
        if registers and class_position:
            self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.registers, self.distilled = registers, distilled
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1] + self.placed, dim))
        rates = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            Block(dim, heads, rate, mlp_ratio, qkv_bias, eps, activation, layer_scale) for rate in rates
        )
        setattr(self, "fc_norm" if pool == "fc_norm" else "norm", nn.LayerNorm(dim, eps=eps))
        if num_classes:
            self.head = nn.Linear(dim * (1 + (pool == "token_mean")), num_classes)
        if num_classes and distilled:
            self.head_dist = nn.Linear(dim, num_classes)
        self.num_classes = num_classes

    def hidden(self, image):
        """The tokens after each block."""
        x = self.patch_embed(image)
        tokens = (self.cls_token, self.dist_token) if self.distilled else (self.cls_token,)
        tokens = torch.cat(tokens, dim=1).expand(len(x), -1, -1)
        if self.placed:
            tokens = tokens + self.pos_embed[:, : self.placed]
        if self.registers:
            registers = self.register_tokens if self.placed else self.reg_token
            tokens = torch.cat([tokens, registers.expand(len(x), -1, -1)], dim=1)
        x = torch.cat([tokens, x + self.pos_embed[:, self.placed :]], dim=1)
        for block in self.blocks:
            x = block(x)
            yield x

    def maps(self, image, taps):
        """[b, d, gh, gw] after each block in `taps`, without the class token."""
        return [self.map(x) for i, x in enumerate(self.hidden(image)) if i in taps]

    def map(self, x):
        return x[:, self.first :].transpose(1, 2).unflatten(2, self.grid)

    def endpoints(self, image):
        """As those of kdjax.models.vision.vit, maps with their channels first."""
        after = list(self.hidden(image))
        out = {f"block_{i}": self.map(after[i]) for i in self.taps}
        x = after[-1]
        if self.pool == "fc_norm":
            features = self.fc_norm(x[:, self.first :].mean(dim=1))
        else:
            x = self.norm(x)
            token, mean = x[:, 0], x[:, self.first :].mean(dim=1)
            features = {"token": token, "mean": mean, "token_mean": torch.cat([token, mean], dim=1)}[self.pool]
        out |= {"tokens": x, "features": features}
        if self.num_classes:
            out["logits"] = self.head(features)
        if self.num_classes and self.distilled:
            out |= {"logits_class": out["logits"], "logits_distilled": self.head_dist(x[:, 1])}
            out["logits"] = (out["logits_class"] + out["logits_distilled"]) / 2
        return out

    def forward(self, image):
        return self.endpoints(image)["logits" if self.num_classes else "features"]


def arguments(options: Any) -> dict[str, Any]:
    """Of Encoder, from the options of our model."""
    refuse_merging(options)
    names = ("dim", "depth", "heads", "drop_path", "pool", "distilled", "mlp_ratio", "qkv_bias", "activation", "taps")
    names += ("layer_scale", "registers", "class_position")
    same = {name: getattr(options, name) for name in names}
    return same | {"image_size": options.image_hw, "patch": options.patch_size, "eps": options.norm_eps}


def refuse_merging(options: Any) -> None:
    if options.merge:
        raise ConfigError(f"the original merges no tokens; compare with merge=0, found {options.merge}")


def build(model: Model) -> nn.Module:
    ours = registry.get("models", model.name)(**model.options)
    return Encoder(num_classes=ours.num_classes, **arguments(ours.options)).eval()


def outputs(module: nn.Module, image: np.ndarray) -> dict[str, np.ndarray]:
    """The endpoints of our models for normalised images [b, h, w, 3], channels last."""
    found = module.endpoints(torch.from_numpy(np.moveaxis(image, -1, 1).copy()))
    last = lambda x: np.moveaxis(x, 1, -1) if x.ndim == 4 else x  # noqa: E731
    return {name: last(x.detach().numpy()) for name, x in found.items()}
