"""Examples for a training step, made up: texts, with or without an image, and their labels."""

from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int

from benchmarks.cases import CLASSES, LABELS, Case, arrays
from kdjax.data.dataset import Batch, Dataset
from kdjax.data.fields import COMMON, FLAG, IMAGE_THERE, TEXT_THERE, Field, with_flags

KINDS = {"image": "image", "input_ids": "tokens", "attention_mask": "tokens"}  # others are classes


class MadeUp(Dataset):
    """One batch, dealt out as training, validation and test alike."""

    item: ClassVar[str] = "example"

    def __init__(self, case: Case):
        self.given, n = arrays(case), case.batch
        super().__init__(dict.fromkeys(("train", "val", "test"), n), np.ones(n, bool), ())
        there = {IMAGE_THERE: FLAG, TEXT_THERE: FLAG} if "image" in self.given else {}
        own = {
            k: Field(x.shape[1:], str(x.dtype), KINDS.get(k, "class"), 0 if k in KINDS else -1)
            for k, x in self.given.items()
        }
        self.fields = {**with_flags(own), **there, **COMMON}
        self.facts = {"num_classes": CLASSES, "labels": LABELS}

    def batch(self, split: str, indices: Int[np.ndarray, " b"], share: slice) -> Batch:
        i = indices[share]
        numbers = {"index": i.astype(np.int32), "view": np.zeros(len(i), np.int32)}
        flags = {name: i >= 0 for name, field in self.fields.items() if field == FLAG}
        return {name: x[i] for name, x in self.given.items()} | flags | numbers

    def labels(self, split: str) -> Int[np.ndarray, " n"]:
        return next(x for name, x in self.given.items() if name not in KINDS)

    def called(self, split: str) -> tuple[str, list[str]]:
        return "example", [str(i) for i in range(self.sizes[split])]

    def content(self, split: str) -> list[Any]:
        return list(self.given.values())
