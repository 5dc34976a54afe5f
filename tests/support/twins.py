"""A model of ours and its PyTorch twin, `convert.originals.*`, with the same random weights."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import torch
from flax.traverse_util import flatten_dict
from torch import nn

from convert.example import example
from kdjax.models.vision.tinyusfm import Classifier
from tests.support.quick import QUICK
from tests.support.torch_names import to_flax


def randomised(module: nn.Module, seed: int = 0) -> Any:
    """Nothing keeps its initial value: biases, norms, running statistics."""
    generator = torch.Generator().manual_seed(seed)
    random = lambda x: torch.randn(x.shape, generator=generator)  # noqa: E731
    with torch.no_grad():
        for name, x in module.named_parameters():
            if x.ndim == 1:
                x.copy_(random(x) * 0.2 + (1.0 if name.endswith("weight") else 0.0))
            else:
                x.copy_(random(x) * (x[0].numel() ** -0.5 if name.endswith("weight") else 0.3))
        for name, x in module.named_buffers():
            if name.endswith("running_mean"):
                x.copy_(random(x))
            elif name.endswith("running_var"):
                x.copy_(torch.rand(x.shape, generator=generator) + 0.5)
    return module


def converted(state: nn.Module | Mapping[str, torch.Tensor], model: Any) -> dict:
    """Our variables of a twin, or of tensors under its names."""
    state = state.state_dict() if isinstance(state, nn.Module) else state
    at = "model." if isinstance(model, Classifier) else ""  # our classifier has the encoder in a module of its own
    kept = {at + name: x.detach().numpy() for name, x in state.items() if not name.endswith("relative_position_index")}
    return to_flax(kept, jax.eval_shape(model.init, jax.random.key(0), *example(model)))


def images(size, batch=2) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(batch, *size, 3)).astype(np.float32)


def by_name(tree: dict) -> dict[str, np.ndarray]:
    return {"/".join(path): np.asarray(x) for path, x in flatten_dict(tree).items()}


def to_torch(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x).permute(0, 3, 1, 2)


def to_numpy(x: torch.Tensor) -> np.ndarray:
    return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).detach().numpy()


def close(found, expected, relative=1e-5, name=""):
    assert found.shape == expected.shape, name
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error < relative, f"{name}: {error:.2e}"


def compared(original: Any, module: nn.Module, model: Any, image: np.ndarray) -> dict:
    """Our outputs, after every endpoint was compared with the twin's; `original` is the twin's file."""
    found = jax.jit(model.apply, compiler_options=QUICK)(converted(module, model), image)
    with torch.no_grad():
        expected = original.outputs(module, image)
    assert set(found) == set(expected) == set(model.endpoints)
    for name, y in expected.items():
        close(found[name], y, name=name)
    return found


def same_slopes(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> set[str]:
    """Compares the gradients of every parameter; the names of those on which the loss does not depend."""
    assert found.keys() == expected.keys()
    largest, nothing = max(np.abs(slope).max() for slope in expected.values()), set()
    for name, slope in expected.items():
        if np.abs(slope).max() < 1e-6 * largest:
            nothing.add(name)
            assert np.abs(found[name]).max() < 1e-6 * largest, name
        else:
            close(found[name], slope, 1e-4, name)
    return nothing
