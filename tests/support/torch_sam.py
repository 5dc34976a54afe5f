"""The original SAM at any dimensions, with weights that leave nothing at zero."""

import torch

from convert.originals.sam import build_like
from kdjax.models.vision.sam import SamOptions


def original(options: SamOptions, masks: int = 4, seed: int = 0) -> torch.nn.Module:
    """segment_anything's Sam built like `options`, in eval mode."""
    torch.manual_seed(seed)
    sam = build_like(options, masks)
    for name, parameter in sam.named_parameters():
        if parameter.ndim < 2:  # norms around one, biases around zero
            torch.nn.init.normal_(parameter, float(name.endswith("weight")), 0.2)
        elif "pos" in name:
            torch.nn.init.normal_(parameter, 0.0, 0.3)
    return sam
