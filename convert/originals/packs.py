"""Modules that read one pack of graphs, on all packs of a batch."""

import numpy as np
import torch
from torch import nn


def outputs(module: nn.Module, *inputs: np.ndarray) -> dict[str, np.ndarray]:
    """The endpoints of our models: `module.endpoints` of each pack, in the order of the inputs of can_gat."""
    with torch.no_grad():
        each = [module.endpoints(*map(whole, pack)) for pack in zip(*inputs, strict=True)]
    return {name: np.stack([pack[name].numpy() for pack in each]) for name in each[0]}


def whole(x: np.ndarray) -> torch.Tensor:
    """Indices as PyTorch wants them."""
    found = torch.from_numpy(np.array(x))
    return found.long() if found.dtype == torch.int32 else found
