"""The tokenizer of a trained model: the file beside its weights that belongs to the tokens which it reads."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from kdjax.config import ConfigError
from kdjax.data.text import tokenizers
from kdjax.data.text.tokenizers import Tokenizer
from kdjax.data.text.tokens import IDS, MASK, suffixed
from kdjax.deploy.predict import Kept
from kdjax.distill.vocabularies import fits, known, told


class Reader(NamedTuple):
    """Makes tokens of captions as a model reads them."""

    path: Path
    tokenizer: Tokenizer  # cuts where the tokens of training were cut, or where the model ends

    def read(self, captions: list[str]) -> tuple[dict[str, Int32[np.ndarray, "n w"]], int]:
        """The inputs of the model, rows as long as the longest of them, and how many captions were cut."""
        rows = self.tokenizer.rows(captions)
        return {IDS: rows.ids, MASK: rows.mask}, rows.cut


def reader_of(loaded: Kept, model: Any) -> Reader:
    """Refuses a model whose tokenizer is not there, and one that knows other tokens."""
    field = loaded.stage.inputs.get(IDS, IDS)
    if field != IDS and not field.startswith(f"{IDS}_"):
        raise ConfigError(f"the stage reads {IDS!r} in the field {field!r}, which no tokenizer makes; name {IDS}_NAME")
    file = f"{suffixed('tokenizer', field.removeprefix(IDS).removeprefix('_'))}.json"
    if file not in loaded.keepsakes:
        raise ConfigError(
            f"{loaded.path}: expected {file} beside it, which makes tokens of captions, found none; copy it from the "
            "run that the weights come from"
        )
    path, spec = loaded.keepsakes[file], model.inputs[IDS]
    tokenizer, longest = tokenizers.read(path), spec.shape(1).shape[-1]
    if not fits(spec, tokenizer):
        raise ConfigError(
            f"{path}: expected the tokenizer of {loaded.path}, of {told(*known(spec))}, found one of "
            f"{told(tokenizer.vocab_size, tokenizer.vocabulary)}, which are other words; put back the one that the run "
            "left beside these weights"
        )
    return Reader(path, tokenizer if tokenizer.length <= longest else tokenizers.read(path, longest))
