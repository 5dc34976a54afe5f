"""ConvNeXt-V2 in plain PyTorch; attribute names are the keys of timm's checkpoints."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from convert.families.convnextv2 import CONVOLVED
from convert.originals.vit import ACTIVATIONS
from kdjax import registry
from kdjax.config import Model

EPS = 1e-6


class LayerNorm2d(nn.LayerNorm):
    """Over the channels of a map, which come first."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GlobalResponseNorm(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        strength = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        relative = strength / (strength.mean(-1, keepdim=True) + EPS)
        return x + self.weight * (x * relative) + self.bias


class Mlp(nn.Module):
    def __init__(self, dim: int, activation: str, convolved: bool):
        super().__init__()
        layer = (lambda a, b: nn.Conv2d(a, b, 1)) if convolved else nn.Linear
        self.fc1, self.grn, self.fc2 = layer(dim, 4 * dim), GlobalResponseNorm(4 * dim), layer(4 * dim, dim)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x):
        return _product(self.fc2, self.grn(self.activation(_product(self.fc1, x))))


def _product(layer, x):
    """Of channels that come last, where a 1 × 1 convolution is a linear layer."""
    return F.linear(x, layer.weight.flatten(1), layer.bias)


class Block(nn.Module):
    def __init__(self, dim: int, activation: str, convolved: bool):
        super().__init__()
        self.conv_dw = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, activation, convolved)

    def forward(self, x):
        y = self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 1)))
        return x + y.permute(0, 3, 1, 2)


class Stage(nn.Module):
    def __init__(self, before: int, dim: int, depth: int, activation: str, convolved: bool):
        super().__init__()
        down = nn.Sequential(LayerNorm2d(before, eps=EPS), nn.Conv2d(before, dim, 2, 2)) if before else nn.Identity()
        self.downsample = down
        self.blocks = nn.Sequential(*(Block(dim, activation, convolved) for _ in range(depth)))

    def forward(self, x):
        return self.blocks(self.downsample(x))


class ConvNext(nn.Module):
    def __init__(self, dims, depths, num_classes, activation="gelu", eps=EPS):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, dims[0], 4, 4), LayerNorm2d(dims[0], eps=EPS))
        shapes = zip((0, *dims), dims, depths, strict=False)
        self.stages = nn.ModuleList(Stage(*shape, activation, dims[0] in CONVOLVED) for shape in shapes)
        self.head = nn.ModuleDict({"norm": nn.LayerNorm(dims[-1], eps=eps)})
        if num_classes:
            self.head["fc"] = nn.Linear(dims[-1], num_classes)

    def endpoints(self, image):
        """As those of kdjax.models.vision.convnext, maps with their channels first."""
        x, found = self.stem(image), {}
        for i, stage in enumerate(self.stages):
            x = found[f"stage_{i}"] = stage(x)
        found["features"] = self.head["norm"](x.mean((2, 3)))
        return found | {"logits": self.head["fc"](found["features"])} if "fc" in self.head else found

    def forward(self, image):
        found = self.endpoints(image)
        return found.get("logits", found["features"])


def build(model: Model) -> ConvNext:
    ours = registry.get("models", model.name)(**model.options)
    o = ours.options
    return ConvNext(o.dims, o.depths, ours.num_classes, o.activation, o.head_norm_eps).eval()


def outputs(module: ConvNext, image: np.ndarray) -> dict[str, np.ndarray]:
    """The endpoints of our models for normalised images [b, h, w, 3], channels last."""
    found = module.endpoints(torch.from_numpy(np.moveaxis(image, -1, 1).copy()))
    last = lambda x: np.moveaxis(x, 1, -1) if x.ndim == 4 else x  # noqa: E731
    return {name: last(x.detach().numpy()) for name, x in found.items()}
