"""Small checkpoints of every family that are as they should be, and the kinds of files that they may lie in."""

import functools
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from convert import families
from convert.family import leaves
from convert.table import slots
from kdjax.config import Model
from tests.convert.test_families import CASES

State = dict[str, torch.Tensor]
PAIRS: dict[str, Any] = {"variant": "vit_t", "window": 3, "decoder_mlp_dim": 48, "embed_dim": 32, "image_size": 64}


@dataclass(frozen=True)
class Valid:
    family: str
    model: Model
    words: tuple[str, ...]  # of --set

    @functools.cached_property
    def state(self) -> State:
        """Random numbers under the original's names."""
        family, draw = families.get(self.family), np.random.default_rng(0)
        if family.held:
            rank = {"w_a_000": (3, 128), "prompt_encoder.x": (), "mask_decoder.x": ()}
            found = slots(family.rows(self.model), family.held(self.model, rank), family.stacks)
        else:
            found = slots(family.rows(self.model), leaves(self.model), family.stacks)
        made = {name: draw.normal(size=shape) for slot in found for name, shape in slot.shapes.items()}
        copies = {copy: made[name] for slot in found for copy, name in slot.tied.items()}
        return {name: torch.tensor(x, dtype=torch.float32) for name, x in (made | copies).items()}


def _words(options: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"{name}={value}".replace(" ", "") for name, value in options.items())


VALID = {name: Valid(case.family, case.model, _words(case.options)) for name, case in CASES.items()} | {
    "samed_lora": Valid("samed_lora", Model("sam_seg", **PAIRS, num_classes=3), _words(PAIRS))
}


# -- containers: (what is to be saved, folder) -> the path to give to the command ------------------------------------


def zipped(content: Any, folder: Path) -> Path:
    torch.save(content, folder / "model.pth")
    return folder / "model.pth"


def packed(content: Any, folder: Path) -> Path:
    """As people get it who unpack and pack the archive again."""
    whole = zipped(content, folder)
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(folder / "packed.pth", "w", zipfile.ZIP_DEFLATED) as out:
        for name in archive.namelist():
            out.writestr(name, archive.read(name))
    os.replace(folder / "packed.pth", whole)
    return whole


def legacy(content: Any, folder: Path) -> Path:
    torch.save(content, folder / "model.pth", _use_new_zipfile_serialization=False)
    return folder / "model.pth"


def lightning(content: Any, folder: Path) -> Path:
    around = {"pytorch-lightning_version": "2.4.0", "epoch": 3, "optimizer_states": [{"state": {0: torch.ones(9)}}]}
    torch.save({**around, "state_dict": content, "hyper_parameters": {"lr": 0.1}}, folder / "last.ckpt")
    return folder / "last.ckpt"


def header(content: Any, folder: Path) -> Path:
    state = {name: x.clone().contiguous() for name, x in content.items() if isinstance(x, torch.Tensor)}
    safetensors.torch.save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder / "model.safetensors"


def _sharded(content: Any, folder: Path, save: Callable[[Any, Path], Path], stem: str) -> Path:
    names = [name for name, x in content.items() if isinstance(x, torch.Tensor)]
    where = {}
    for i, mine in enumerate((names[::2], names[1::2]), 1):
        shard = f"{stem.partition('.')[0]}-{i:05}-of-00002.{stem.rpartition('.')[2]}"
        os.replace(save({name: content[name] for name in mine}, folder), folder / shard)
        where |= dict.fromkeys(mine, shard)
    (folder / f"{stem}.index.json").write_text(json.dumps({"metadata": {"total_size": 9}, "weight_map": where}))
    return folder


def shards(content: Any, folder: Path) -> Path:
    return _sharded(content, folder, header, "model.safetensors")


def torch_shards(content: Any, folder: Path) -> Path:
    return _sharded(content, folder, zipped, "pytorch_model.bin")


CONTAINERS = {
    "zip": zipped,
    "packed zip": packed,
    "legacy": legacy,
    "Lightning": lightning,
    "safetensors": header,
    "shards": shards,
    "PyTorch shards": torch_shards,
}
