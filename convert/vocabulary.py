"""The vocabulary that lies beside weights: tokenizer.json of the library tokenizers, else vocab.txt, a token a line."""

import json
from typing import Any

from convert.config_json import LARGEST, Config
from convert.sources import SourceError
from kdjax.vocabulary import vocabulary_of

AWAY = "fetch it again, or where it belongs to other weights move it away"


def vocabulary_beside(config: Config, rows: int) -> dict[str, str]:
    """{"vocabulary": digest}, or {} where there is none; a number of a token that the weights have no row for is a
    fault of the config."""
    for name, tokens_of in (("tokenizer.json", _tokenizer), ("vocab.txt", _lines)):
        path = config.path.parent / name
        if not path.is_file():
            continue
        if path.stat().st_size > LARGEST:
            raise SourceError(f"{path}: {path.stat().st_size:,} bytes are no vocabulary; {AWAY}")
        try:
            vocab = tokens_of(path.read_bytes().decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{path}: no whole file of a tokenizer; {AWAY}") from error
        if not vocab or not all(isinstance(k, str) and type(i) is int and i >= 0 for k, i in vocab.items()):
            raise SourceError(f"{path}: expected tokens and their numbers, found something else; {AWAY}")
        if (last := max(vocab.values())) >= rows:
            config.faults.append(f"{name} numbers tokens up to {last:,}, the tensors have {rows:,} rows")
        return {"vocabulary": vocabulary_of(vocab)}
    return {}


def _tokenizer(text: str) -> dict[Any, Any]:
    """The model's tokens and those added to them; {} where it says something else."""
    match json.loads(text):
        case {"model": {"vocab": dict(vocab)}, **rest}:
            added = rest.get("added_tokens", [])
            pairs = [(token.get("content"), token.get("id")) for token in added if isinstance(token, dict)]
            return {**vocab, **dict(pairs)} if len(pairs) == len(added) else {}
    return {}


def _lines(text: str) -> dict[Any, Any]:
    return {line.removesuffix("\r"): i for i, line in enumerate(text.removesuffix("\n").split("\n"))}
