"""The families of foreign checkpoints, by name."""

import importlib

from convert.family import Family

NAMES = (
    "bert",
    "can_gat",
    "can_vgae",
    "convnextv2",
    "convnextv2_hf",
    "dinov2",
    "dinov2_hf",
    "distilbert",
    "ladeda",
    "mobilenetv2",
    "mobilevit",
    "pyg_gat",
    "sam",
    "sam_hf",
    "samed_lora",
    "segformer",
    "swinv2",
    "swinv2_hf",
    "tiny_ladeda",
    "tinyusfm",
    "usfm",
    "vit",
    "vit_hf",
)


def get(name: str) -> Family:
    return importlib.import_module(f"convert.families.{name}").FAMILY


def all() -> dict[str, Family]:
    return {name: get(name) for name in NAMES}
