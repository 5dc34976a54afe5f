"""Small tables of captions, tokenizers in files, and a model that reads tokens."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kdjax.data.text.medpix import LOCATIONS, MODALITIES
from kdjax.data.text.source import Record, RecordSource
from kdjax.data.text.tokenizers import SPECIALS
from kdjax.models.inputs import ArrayInput
from tests.support import folders

SIZES = {"train": 12, "dev": 5, "test": 4}
WORDS = ("ct", "mr", "of", "the", "head", "chest", "knee", "axial", "shows", "a", "mass", "with", "contrast")


def description(i: int, **changes: Any) -> dict:
    """A line of MedPix; two images of each patient."""
    words = np.random.default_rng(i).choice(WORDS, 3 + i % 4)
    line = {
        "Type": MODALITIES[i % 2],
        "U_id": f"MPX{i // 2}",
        "image": f"MPX{i // 2}_{i}",
        "Description": {"Caption": " ".join(words), "Age": None},
        "Location Category": LOCATIONS[i % 5],
    }
    return line | changes


def lines(**changes: dict) -> dict[str, list[str]]:
    """The lines of each split as text; `train_3={...}` changes the fourth line of train."""
    start, made = 0, {}
    for split, n in SIZES.items():
        made[split] = [json.dumps(description(start + i, **changes.get(f"{split}_{i}", {}))) for i in range(n)]
        start += 2 * n
    return made


def medpix(root: Path, images: bool = True, **changes: dict) -> dict[str, Any]:
    """A folder as MedPix is unpacked; options of its reader."""
    where = root / "splitted_dataset"
    where.mkdir(parents=True)
    for split, written in lines(**changes).items():
        (where / f"descriptions_{split}.jsonl").write_text("\n".join(written) + "\n")
        for i, line in enumerate(written if images else ()):
            folders.picture(root / "images" / f"{json.loads(line)['image']}.png", 1000 * len(split) + i)
    return {"root": str(root)}


def table(path: Path, words: tuple[str, ...] = WORDS) -> str:
    """A tokenizer's vocab.txt of these words; in another order its ids mean other words."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*SPECIALS, *words]) + "\n")
    return str(path)


class Texts(RecordSource):
    """Captions in memory, of two classes."""

    def __init__(self, tokenizers: dict | None = None, cache: str = ""):
        made = [Record(f"{i}", None, f"a mass of the {WORDS[i % 13]}", {"class": "ab"[i % 2]}) for i in range(20)]
        super().__init__(made, {"class": ("a", "b")}, tokenizers, cache=cache)


@dataclass(frozen=True)
class Tokens:
    """Token ids as a model reads them."""

    packed: ClassVar[bool] = False

    length: int
    vocab_size: int
    vocabulary: str = ""

    def shape(self, rows: int) -> Any:
        return jax.ShapeDtypeStruct((rows, self.length), jnp.int32)

    def view(self, value: Any) -> Any:
        return value


class Bag(nn.Module):
    """The mean of the words' vectors, and the logits of its classes."""

    vocab_size: int
    vocabulary: str
    num_classes: int
    dtype: Any = jnp.float32

    endpoints = ("logits",)

    @property
    def inputs(self) -> dict:
        return {"input_ids": Tokens(8, self.vocab_size, self.vocabulary), "attention_mask": ArrayInput((8,), "int32")}

    @nn.compact
    def __call__(self, input_ids, attention_mask, train=False):
        words = nn.Embed(self.vocab_size, 4, dtype=self.dtype, name="words")(input_ids)
        mask = attention_mask[..., None].astype(words.dtype)
        return {"logits": nn.Dense(self.num_classes, name="head")((words * mask).sum(1) / mask.sum(1))}

    def logits_of(self, input_ids):
        return self(input_ids, jnp.ones_like(input_ids))


def build(vocab_size: int = 8, vocabulary: str = "", num_classes: int = 2, dtype: Any = jnp.float32) -> Bag:
    return Bag(vocab_size, vocabulary, num_classes, dtype)
