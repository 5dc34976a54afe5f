"""Texts for a training step: random tokens of several lengths, each text with a class."""

from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int

from benchmarks.cases import CLASSES, Case, arrays
from kdjax.data.dataset import Batch, Dataset
from kdjax.data.fields import COMMON, Field, with_flags


class Texts(Dataset):
    """One batch, dealt out as training, validation and test alike."""

    item: ClassVar[str] = "text"

    def __init__(self, case: Case):
        self.given, n = arrays(case), case.batch
        super().__init__(dict.fromkeys(("train", "val", "test"), n), np.ones(n, bool), ())
        tokens = Field((case.size,), "int32", "tokens")
        labelled = with_flags({"class": Field((), "int32", "class", -1)})
        self.fields = {"input_ids": tokens, "attention_mask": tokens, **labelled, **COMMON}
        self.facts = {"num_classes": CLASSES}

    def batch(self, split: str, indices: Int[np.ndarray, " b"], share: slice) -> Batch:
        i = indices[share]
        numbers = {
            "index": i.astype(np.int32),
            "valid": i >= 0,
            "class_known": i >= 0,
            "view": np.zeros(len(i), np.int32),
        }
        return {name: x[i] for name, x in self.given.items()} | numbers

    def labels(self, split: str) -> Int[np.ndarray, " n"]:
        return self.given["class"]

    def called(self, split: str) -> tuple[str, list[str]]:
        return "text", [str(i) for i in range(self.sizes[split])]

    def content(self, split: str) -> list[Any]:
        return list(self.given.values())
