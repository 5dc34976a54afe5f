"""LaDeDa and Tiny-LaDeDa in plain PyTorch, to be measured against; attribute names are their checkpoints' keys."""

import math

from torch import nn
from torch.nn import functional as F

from convert.originals.vit import outputs
from kdjax import registry
from kdjax.config import Model

__all__ = ["Ladeda", "TinyLadeda", "build", "outputs"]

FILTERS = {
    "x_grad": [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]],
    "y_grad": [[-1, -2, -1], [0, 0, 0], [1, 2, 1]],
    "left_diag": [[0, 1, 2], [-1, 0, 1], [-2, -1, 0]],
    "right_diag": [[-2, -1, 0], [-1, 0, 1], [0, 1, 2]],
}


def preprocessed(image, name):
    if name == "raw":
        return image
    if name == "npr":
        half = F.interpolate(image, scale_factor=0.5, mode="nearest", recompute_scale_factor=True)
        return image - F.interpolate(half, scale_factor=2, mode="nearest", recompute_scale_factor=True)
    kernel = image.new_tensor(FILTERS[name]).expand(3, 1, 3, 3)
    return F.conv2d(image, kernel, padding=1, groups=3)


def conv(inside, outside, side=1, stride=1):
    return nn.Conv2d(inside, outside, side, stride, bias=False)


class Patchwise(nn.Module):
    def __init__(self, preprocess, pooling, width):
        super().__init__()
        self.preprocess, self.pooling = preprocess, pooling
        self.conv1, self.conv2 = conv(3, width), conv(width, width, 3)

    def stem(self, image):
        return self.bn1(self.conv2(self.conv1(preprocessed(image, self.preprocess)))).relu()

    def patches(self, x):
        return self.fc(x.movedim(1, -1)).movedim(-1, 1)

    def pooled(self, patches):
        flat = patches.flatten(1)
        if self.pooling == "topk":
            flat = flat.topk(min(flat.shape[1], max(5, math.ceil(flat.shape[1] / 10))), dim=1).values
        return flat.mean(1, keepdim=True)

    def endpoints(self, image):
        """As those of kdjax.models.vision.ladeda, maps with their channels first."""
        maps = self.maps(image)
        last = [*maps.values()][-1]
        patches = self.patches(last)
        return {"logits": self.pooled(patches), "patch_logits": patches, "features": last.mean((2, 3)), **maps}

    def forward(self, image):
        return self.pooled(self.patches([*self.maps(image).values()][-1]))


class Bottleneck(nn.Module):
    def __init__(self, inside, width, side, stride, first):
        super().__init__()
        self.conv1, self.bn1 = conv(inside, width), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, side, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, 4 * width), nn.BatchNorm2d(4 * width)
        beside = [conv(inside, 4 * width, 1, stride), nn.BatchNorm2d(4 * width)]
        self.downsample = nn.Sequential(*beside) if first else None

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        y = self.bn3(self.conv3(y))
        x = x if self.downsample is None else self.downsample(x)
        return (y + x[..., : y.shape[2], : y.shape[3]]).relu()


class Ladeda(Patchwise):
    def __init__(self, preprocess, pooling, receptive_field, widths, depths, momentum):
        super().__init__(preprocess, pooling, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0], momentum=momentum)
        inside = widths[0]
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            side, stride = 3 if receptive_field >= (5, 9, 17, 33)[i] else 1, (2, 2, 2, 1)[i]
            blocks = [Bottleneck(inside, width, side, stride, True)]
            blocks += [Bottleneck(4 * width, width, 1, 1, False) for _ in range(depth - 1)]
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
            inside = 4 * width
        self.fc = nn.Linear(inside, 1)

    def maps(self, image):
        x, maps = self.stem(image), {}
        for i in range(1, 5):
            x = maps[f"layer_{i}"] = getattr(self, f"layer{i}")(x)
        return maps


class Pair(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.bn1 = conv(width, width), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, 2), nn.BatchNorm2d(width)

    def forward(self, x):
        return self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()


class TinyLadeda(Patchwise):
    def __init__(self, preprocess, pooling, width, crop, stride):
        super().__init__(preprocess, pooling, width)
        self.crop, self.stride = crop, stride
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(Pair(width))
        self.fc = nn.Linear(width, 1)

    def maps(self, image):
        """With crops, each of them goes through the network as an image."""
        if not self.crop:
            return {"layer_1": self.layer1(self.stem(image))}
        crops = image.unfold(2, self.crop, self.stride).unfold(3, self.crop, self.stride)  # [b, 3, rows, columns, s, s]
        b, _, rows, columns = crops.shape[:4]
        x = self.layer1(self.stem(crops.permute(0, 2, 3, 1, 4, 5).flatten(0, 2))).mean((2, 3))
        return {"layer_1": x.reshape(b, rows, columns, -1).movedim(-1, 1)}


def build(model: Model) -> nn.Module:
    o = registry.get("models", model.name)(**model.options).options
    if model.name == "tiny_ladeda":
        return TinyLadeda(o.preprocess, o.pooling, o.width, o.crop, o.stride).eval()
    return Ladeda(o.preprocess, o.pooling, o.receptive_field, o.widths, o.depths, 1 - o.stem_momentum).eval()
