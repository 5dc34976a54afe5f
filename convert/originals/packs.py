"""Modules that read one pack of graphs."""

import jax
import jraph
import numpy as np
import torch
from torch import nn


def outputs(module: nn.Module, graphs: jraph.GraphsTuple) -> dict[str, np.ndarray]:
    """The endpoints of our models: `module.endpoints` of a pack."""
    with torch.no_grad():
        return {name: value.numpy() for name, value in endpoints(module, graphs).items()}


def endpoints(module: nn.Module, graphs: jraph.GraphsTuple) -> dict[str, torch.Tensor]:
    """As `outputs`, with what gradients need."""
    graphs = jax.tree.map(tensor, graphs)
    return module.endpoints(**graphs.nodes, senders=graphs.senders, receivers=graphs.receivers, n_node=graphs.n_node)  # type: ignore[operator]


def tensor(x: np.ndarray) -> torch.Tensor:
    """Indices as PyTorch wants them."""
    value = torch.from_numpy(np.array(x))
    return value.long() if value.dtype == torch.int32 else value


def graph_of_node(n_node: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(n_node)).repeat_interleave(n_node)
