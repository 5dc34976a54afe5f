"""Tokenizers of captions: read from a file, a folder or the hub, or trained on the captions that there are."""

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from kdjax import hub
from kdjax.config import ConfigError, nearest
from kdjax.vocabulary import vocabulary_of

PAD, UNKNOWN, FIRST, LAST, MASK = SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PADS = (PAD, "<pad>")
JSON, TABLE, SETTINGS = FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json")
CHUNK = 20_000  # captions that the library holds at a time, with all that it knows of them
BEHIND = "##"  # a piece that goes on with a word
LONGEST = 256  # tokens of a caption


class Encoded(NamedTuple):
    """The tokens of captions, one after the other."""

    ids: Int32[np.ndarray, " t"]
    lengths: Int32[np.ndarray, " n"]
    cut: int  # captions that were longer


class Rows(NamedTuple):
    """Captions as a model reads them."""

    ids: Int32[np.ndarray, "n w"]
    mask: Int32[np.ndarray, "n w"]
    cut: int  # captions that were longer


@dataclass(frozen=True)
class Tokenizer:
    """Captions to ids, [CLS] before them and [SEP] behind; what is longer than `length` is cut before [SEP]."""

    library: Any  # tokenizers.Tokenizer, without cutting and padding
    length: int
    pad: str

    @property
    def vocab(self) -> dict[str, int]:
        return self.library.get_vocab()

    @property
    def vocab_size(self) -> int:
        return 1 + max(self.vocab.values())

    @property
    def vocabulary(self) -> str:
        return vocabulary_of(self.vocab)

    @property
    def pad_id(self) -> int:
        return self.vocab[self.pad]

    def keepsake(self) -> dict[str, Any]:
        """What `tokenizer.json` holds, for this library and for transformers: also where it cuts and pads."""
        whole = _library().Tokenizer.from_str(self.library.to_str())
        whole.enable_truncation(self.length)
        whole.enable_padding(pad_id=self.pad_id, pad_token=self.pad)
        return json.loads(whole.to_str())

    def encode(self, captions: Sequence[str]) -> Encoded:
        ids, lengths, cut = [], [], 0
        for begin in range(0, len(captions), CHUNK):
            rows = [row.ids for row in self.library.encode_batch_fast(list(captions[begin : begin + CHUNK]))]
            longer = [i for i, row in enumerate(rows) if len(row) > self.length]
            for i in longer:
                rows[i] = [*rows[i][: self.length - 1], rows[i][-1]]
            cut += len(longer)
            lengths.append(np.fromiter(map(len, rows), np.int32, len(rows)))
            ids.append(np.fromiter(chain.from_iterable(rows), np.int32))
        return Encoded(np.concatenate(ids), np.concatenate(lengths), cut)

    def padded(self, encoded: Encoded, width: int) -> Int32[np.ndarray, "n w"]:
        """Rows of `width`, at least that of the longest."""
        rows = np.full((len(encoded.lengths), width), self.pad_id, np.int32)
        rows[mask_of(encoded.lengths, width)] = encoded.ids
        return rows

    def rows(self, captions: Sequence[str]) -> Rows:
        """As long as the longest of them."""
        encoded = self.encode([*captions, ""])  # there is always one
        width = int(encoded.lengths.max())
        mask = mask_of(encoded.lengths, width)[:-1].astype(np.int32)
        return Rows(self.padded(encoded, width)[:-1], mask, encoded.cut)


def mask_of(lengths: Int32[np.ndarray, " n"], width: int) -> np.ndarray:
    """True for a token, False for padding."""
    return np.arange(width) < lengths[:, None]


# -- where they come from --------------------------------------------------------------------------------------------


def option_faults(option: Any) -> list[str]:
    """What is wrong with the option that says where a tokenizer comes from."""
    expected = '{"path": FILE, FOLDER or "hf:NAME"} or {"train": SIZE of the vocabulary}'
    if not isinstance(option, Mapping) or len(option) != 1:
        return [f"expected {expected}, found {option!r}"]
    ((key, value),) = option.items()
    if key not in ("path", "train"):
        return [f"no {key!r}; {nearest(key, ('path', 'train'))}"]
    if type(value) is not (str if key == "path" else int):
        return [f"expected {expected}, found {value!r}"]
    return []


def read(place: str | Path, length: int = 0) -> Tokenizer:
    """A tokenizer.json, a folder with one or with BERT's vocab.txt, or such a repository of the hub, "hf:NAME".

    Without `length` it cuts where its file says, else at `LONGEST` tokens.
    """
    library = _library()
    path = hub.fetch(str(place), FILES) if str(place).startswith(hub.PREFIX) else Path(place).expanduser()
    if path.is_dir():
        path = next((path / name for name in (JSON, TABLE) if (path / name).is_file()), path)
    if not path.is_file():
        seen = "a folder without them" if path.is_dir() else "nothing there"
        raise ConfigError(f"{place}: expected {JSON}, {TABLE} or a folder with one of them, found {seen}; mend it")
    if path.suffix == ".txt":
        tokenizer, settings = bert(_table(path), **_settings(path.with_name(SETTINGS))), {}
    else:
        try:
            text = path.read_text(encoding="utf-8")
            tokenizer, settings = library.Tokenizer.from_str(text), json.loads(text)
        except Exception as error:  # the library has no kind of its own for what it cannot read
            raise ConfigError(
                f"{path}: expected a tokenizer as the library tokenizers saves it, but it cannot be read ({error}); "
                "replace the file"
            ) from error
    own = (settings.get("truncation") or {}).get("max_length", LONGEST)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    vocab = tokenizer.get_vocab()
    pad = (settings.get("padding") or {}).get("pad_token") or next((name for name in PADS if name in vocab), "")
    if pad not in vocab or len(tokenizer.encode("").ids) < 2:
        raise ConfigError(
            f"{path}: expected a tokenizer with {PAD} that puts {FIRST} before a text and {LAST} behind it, as BERT's, "
            "found one that does not; name another one"
        )
    return Tokenizer(tokenizer, length or own, pad)


def trained(captions: Sequence[str], size: int, length: int) -> Tokenizer:
    """A WordPiece tokenizer of at most `size` tokens, lower case and without accents; the same for the same captions.

    The trainer numbers letters as it happens to meet them, so they are given to it beforehand, in order.
    """
    library = _library()
    tokenizer = bert({name: i for i, name in enumerate(SPECIALS)})
    words = {
        word
        for caption in captions
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(caption))
    }
    letters = [*sorted({word[0] for word in words}), *sorted({BEHIND + x for word in words for x in word[1:]})]
    least = len(SPECIALS) + len(letters)
    if not words or size < least:
        found = f"{size}; set train={least} or more" if words else "captions without a word to train on; add some"
        raise ConfigError(f"expected a vocabulary of at least {least} tokens, one for each letter, found {found}")
    trainer = library.trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=[*SPECIALS, *letters],
        continuing_subword_prefix=BEHIND,
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return Tokenizer(bert(tokenizer.get_vocab()), length, PAD)  # anew, as letters are no special tokens


def bert(vocab: Mapping[str, int], lower: bool = True, strip_accents: bool | None = None, chinese: bool = True) -> Any:
    """BERT's: words and punctuation apart, then the longest pieces of the vocabulary."""
    library = _library()
    tokenizer = library.Tokenizer(
        library.models.WordPiece(dict(vocab), unk_token=UNKNOWN, max_input_chars_per_word=100)
    )
    tokenizer.normalizer = library.normalizers.BertNormalizer(
        handle_chinese_chars=chinese, strip_accents=strip_accents, lowercase=lower
    )
    tokenizer.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens([name for name in SPECIALS if name in vocab])
    tokenizer.post_processor = library.processors.BertProcessing((LAST, vocab[LAST]), (FIRST, vocab[FIRST]))
    tokenizer.decoder = library.decoders.WordPiece(prefix=BEHIND)
    return tokenizer


def _table(path: Path) -> dict[str, int]:
    """A token on each line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected a token on each line in UTF-8 ({error}); replace the file") from error
    tokens = [line.removesuffix("\r") for line in lines]
    tokens = tokens[:-1] if tokens and not tokens[-1] else tokens
    vocab = {token: i for i, token in enumerate(tokens)}
    if absent := [name for name in SPECIALS[:4] if name not in vocab]:
        raise ConfigError(f"{path}: expected BERT's table of tokens, found none of {', '.join(absent)}; replace it")
    return vocab


def _settings(path: Path) -> dict[str, Any]:
    """How the file beside a vocab.txt says that texts are normalised; BERT's way where there is none."""
    if not path.is_file():
        return {}
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: expected JSON, but it cannot be read ({error}); replace the file") from error
    names = {"do_lower_case": "lower", "strip_accents": "strip_accents", "tokenize_chinese_chars": "chinese"}
    return {ours: said[theirs] for theirs, ours in names.items() if isinstance(said, dict) and theirs in said}


def _library() -> Any:
    try:
        return importlib.import_module("tokenizers")
    except ImportError as error:
        raise ConfigError("captions need the package tokenizers: pip install 'kdjax[text]'") from error
