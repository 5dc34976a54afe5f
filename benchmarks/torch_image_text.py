"""A classifier of images with captions in plain PyTorch: a ViT, a reader of texts, an encoder over both."""

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.cases import LABELS
from convert.originals import vit
from kdjax.config import Model

DIM, HEADS, DROPOUT = 512, 8, 0.1
NORMAL = (0.5,) * 3, (0.5,) * 3  # of ViT


class ImageText(nn.Module):
    """Both are read by their first token."""

    def __init__(self, variant: str, size: int, text: nn.Module, layers: int):
        super().__init__()
        self.image = vit.build(Model("vit", variant=variant, image_size=size, num_classes=0))
        self.text = text
        self.from_image = nn.Linear(self.image.cls_token.shape[-1], DIM)
        self.from_text = nn.Linear(text.config.hidden_size, DIM)  # type: ignore
        layer = nn.TransformerEncoderLayer(DIM, HEADS, 4 * DIM, DROPOUT, "gelu", batch_first=True)
        self.fusion = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.heads = nn.ModuleDict({name: nn.Linear(DIM, classes) for name, classes in LABELS.items()})

    def forward(self, image: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        seen = self.from_image(self.image(image))
        read = self.from_text(self.text(ids, attention_mask=mask).last_hidden_state[:, 0])
        both = self.dropped(self.fusion(torch.stack([seen, read], dim=1)).mean(dim=1))
        return {name: head(self.dropped(both)) for name, head in self.heads.items()}

    def dropped(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, DROPOUT, self.training)
