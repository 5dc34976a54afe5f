"""Models of transformers under the names that their files have."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from convert.originals.transformers_config import from_config
from kdjax.weights import safetensors


class Published(torch.nn.Module):
    """A model of transformers whose tensors go by the names in its files; since version 5 they have others in memory.

    `before` is what a file of a larger model has before all names.
    """

    def __init__(self, module: Any, before: str = ""):
        super().__init__()
        self.module = module
        self.inside = {before + name: inside for name, inside in names_in_files(module).items()}

    def forward(self, *args, **kwargs) -> Any:
        return self.module(*args, **kwargs)

    def state_dict(self, *args, **kwargs) -> dict[str, torch.Tensor]:
        state = self.module.state_dict(*args, **kwargs)
        return {name: state[inside] for name, inside in self.inside.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False):
        """Of names that the files do not have, a dot before them makes strangers."""
        state = {self.inside.get(name, f".{name}"): x for name, x in state_dict.items()}
        return self.module.load_state_dict(state, strict, assign)


def names_in_files(module: Any) -> dict[str, str]:
    """name in a file -> name in memory, of each tensor: transformers writes a number in the place of each."""
    from transformers.utils import logging

    names = list(module.state_dict())
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with tempfile.TemporaryDirectory() as folder:
            module.save_pretrained(folder, state_dict={name: torch.tensor(i) for i, name in enumerate(names)})
            arrays, _ = safetensors.views(Path(folder) / "model.safetensors")
            written = {name: int(x) for name, x in arrays.items()}
    finally:
        if shown:
            logging.enable_progress_bar()
    assert sorted(written.values()) == list(range(len(names))), "transformers does more than rename tensors"
    return {name: names[i] for name, i in written.items()}


def classifier(settings: Any, classes: int, base: str) -> Published:
    """In eval mode; without classes its `base` alone, whose names in files begin with that."""
    kind = "AutoModelForImageClassification" if classes else "AutoModel"
    return Published(from_config(kind, settings), "" if classes else f"{base}.").eval()
