"""TinyUSFM in plain PyTorch, to be measured against; attribute names are the keys of its checkpoints."""

from typing import Any

from torch import nn
from torch.nn import functional as F

from convert.originals.vit import Encoder, arguments, outputs
from kdjax import registry
from kdjax.config import Model

__all__ = ["DecodeHead", "Neck", "SegmentationModel", "build", "outputs"]


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


class Segmenter(nn.Module):
    """Neck and head on a backbone with `maps` and `endpoints`."""

    def __init__(self, backbone, dim, num_classes, taps, neck_dim, head_dim, dropout):
        super().__init__()
        self.taps = taps
        self.backbone = backbone
        self.neck = Neck(dim, neck_dim)
        self.decode_head = DecodeHead(neck_dim, head_dim, 1 if num_classes == 2 else num_classes, dropout)

    def endpoints(self, image):
        out = self.backbone.endpoints(image)
        necks = self.neck([out[f"block_{i}"] for i in self.taps])
        out |= {f"neck_{i}": x for i, x in enumerate(necks)}
        fused = self.decode_head.fused(necks)
        logits = self.decode_head.conv_seg(self.decode_head.dropout(fused))
        return out | {"fused": fused, "logits": resize(logits, image.shape[2:])}

    def forward(self, image):
        logits = self.decode_head(self.neck(self.backbone.maps(image, self.taps)))
        return resize(logits, image.shape[2:])


class SegmentationModel(Segmenter):
    def __init__(
        self,
        num_classes=2,
        dim=192,
        dropout=0.1,
        taps=(3, 5, 7, 11),
        neck_dim=48,
        head_dim=128,
        **options,
    ):
        backbone = Encoder(dim=dim, taps=taps, **{"pool": "mean"} | options)
        super().__init__(backbone, dim, num_classes, taps, neck_dim, head_dim, dropout)


def build(model: Model) -> nn.Module:
    ours = registry.get("models", model.name)(**model.options)
    given: dict[str, Any] = arguments(ours.options)
    if model.name == "tinyusfm_seg":
        given |= {name: getattr(ours.options, name) for name in ("neck_dim", "head_dim", "dropout")}
        return SegmentationModel(ours.num_classes, **given).eval()
    return Encoder(num_classes=getattr(ours, "num_classes", 0), **given).eval()
