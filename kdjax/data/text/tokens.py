"""Captions as the tokens that models read, made once and kept on disk."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, Int32

from kdjax.config import ConfigError
from kdjax.data import cache as store
from kdjax.data.fields import Field, TokensField
from kdjax.data.text import tokenizers
from kdjax.data.text.tokenizers import LONGEST, Encoded, Tokenizer

IDS, MASK = "input_ids", "attention_mask"  # fields, "_NAME" behind them where a tokenizer has a name
ROUND = 8  # rows are as long as the longest caption, rounded up to a multiple of it
TRAINED = 2_000  # tokens of a tokenizer that nobody names
EDITION = 1  # of what is kept on disk


def suffixed(field: str, tokenizer: str) -> str:
    return f"{field}_{tokenizer}" if tokenizer else field


@dataclass(frozen=True)
class Tokens:
    """The captions of all records by one tokenizer or several; a further row is that of a caption without words."""

    fields: dict[str, Field]
    ids: dict[str, Int32[np.ndarray, "m n"]]  # by the name of the tokenizer
    lengths: dict[str, Int32[np.ndarray, " m"]]
    keepsakes: dict[str, Any]  # the tokenizers themselves, by the name of the file to write
    notes: tuple[str, ...]

    def batch(self, rows: Int[np.ndarray, " b"]) -> dict[str, Int32[np.ndarray, "b n"]]:
        """The fields of the records at these places; -1 is none, and reads as one without a caption."""
        fields = {}
        for name, ids in self.ids.items():
            mask = tokenizers.mask_of(self.lengths[name][rows], ids.shape[1])
            fields |= {suffixed(IDS, name): ids[rows], suffixed(MASK, name): mask.astype(np.int32)}
        return fields


@dataclass(frozen=True)
class Captions:
    """The captions of a data set, None where a record has none, and where its tokenizers come from.

    `tokenizers` are {"": option} or {"teacher": option, "student": option}, an option being {"path": FILE, FOLDER or
    "hf:NAME"} or {"train": SIZE}, which learns from the captions of the training split alone. Captions are cut at
    `length` tokens. Tokens are kept in the folder `cache` ("auto" is kdjax/tokens in the user's cache folder, "" none).
    """

    texts: tuple[str | None, ...]
    tokenizers: Mapping[str, Mapping[str, Any]]
    length: int = LONGEST
    cache: str = store.AUTO

    def faults(self) -> list[str]:
        """What is wrong with the options, as far as it shows before the training split is known."""
        faults = [] if self.length >= 4 else [f"length: expected at least 4 tokens, found {self.length}"]
        if not isinstance(self.tokenizers, Mapping):
            return [f'tokenizers: expected {{"NAME": {{"path": ...}} or {{"train": ...}}}}, found {self.tokenizers!r}']
        for name, option in self.tokenizers.items():
            at = f"tokenizers[{name!r}]: "
            if name and not name.isidentifier():
                faults.append(f"{at}expected a name of letters and digits, which fields are called by")
            if own := tokenizers.option_faults(option):
                faults += [at + fault for fault in own]
            elif "path" in option:
                try:
                    tokenizers.read(option["path"], self.length)
                except ConfigError as error:
                    faults.append(f"{at}{error}")
        return faults

    def tokens(self, train: Int[np.ndarray, " n"]) -> Tokens:
        """The tokens of all captions; `train` are the places of the training split."""
        fields, ids, lengths, keepsakes, notes = {}, {}, {}, {}, []
        learned_from = [text for i in train if (text := self.texts[int(i)]) is not None]
        for name, option in self.tokenizers.items():
            try:
                tokenizer = (
                    tokenizers.read(option["path"], self.length)
                    if "path" in option
                    else tokenizers.trained(learned_from, option["train"], self.length)
                )
            except ConfigError as error:
                raise ConfigError(f"tokenizers[{name!r}]: {error}") from error
            encoded, more = self._encoded(tokenizer)
            width = min(self.length, -(-int(encoded.lengths.max()) // ROUND) * ROUND)
            ids[name], lengths[name] = tokenizer.padded(encoded, width), encoded.lengths
            about = {"vocab_size": tokenizer.vocab_size, "vocabulary": tokenizer.vocabulary}
            fields[suffixed(IDS, name)] = TokensField((width,), "int32", "tokens", tokenizer.pad_id, **about)
            fields[suffixed(MASK, name)] = TokensField((width,), "int32", "tokens", 0, **about)
            keepsakes[f"{suffixed('tokenizer', name)}.json"] = tokenizer.keepsake()
            notes += more
            if encoded.cut:
                longer = f"{encoded.cut:,} captions are longer than {self.length} tokens and are cut"
                notes.append(f"{longer} for the {name}" if name else longer)
        return Tokens(fields, ids, lengths, keepsakes, tuple(notes))

    def _encoded(self, tokenizer: Tokenizer) -> tuple[Encoded, list[str]]:
        """The tokens of all captions and of an empty one, from the disk where they are kept there, and notes."""
        texts = [*(text or "" for text in self.texts), ""]
        if not self.cache:
            return tokenizer.encode(texts), []
        path = store.folder(self.cache, "tokens") / f"{_key(tokenizer, texts)}.npz"
        saved = store.load(path)
        if saved is not None and {"ids", "lengths"} <= set(saved[0]) and len(saved[0]["lengths"]) == len(texts):
            return Encoded(saved[0]["ids"], saved[0]["lengths"], saved[1]["cut"]), []
        encoded = tokenizer.encode(texts)
        try:
            store.save(path, {"ids": encoded.ids, "lengths": encoded.lengths}, {"cut": encoded.cut})
        except OSError as error:
            return encoded, [f"the tokens could not be kept in {path.parent} ({error})"]
        return encoded, []


def _key(tokenizer: Tokenizer, texts: Sequence[str]) -> str:
    """The key of the cache; it changes with each text, the tokenizer and the length."""
    whole = hashlib.blake2b(digest_size=16)
    whole.update(json.dumps([EDITION, tokenizer.keepsake()], sort_keys=True).encode())
    for text in texts:
        whole.update(b"%d " % len(raw := text.encode("utf-8", "surrogatepass")) + raw)
    return whole.hexdigest()
