"""Repositories of the Hugging Face hub, "hf:owner/name[@revision]"."""

import importlib
from collections.abc import Sequence
from pathlib import Path

from kdjax.config import ConfigError

PREFIX = "hf:"


def fetch(name: str, patterns: Sequence[str]) -> Path:
    """The folder of a repository, whose files of these patterns are fetched into the cache of huggingface_hub unless
    they are there."""
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ConfigError(f"{name}: is fetched by huggingface_hub; run: pip install huggingface_hub") from error
    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    try:
        return Path(hub.snapshot_download(repository, revision=revision or None, allow_patterns=list(patterns)))
    except Exception as error:  # of the network, the hub or the name
        text = " ".join(str(error).split())[:200] or "no reason given"
        text = text if text.isprintable() else ascii(text)[1:-1]
        raise ConfigError(
            f"{name}: could not be fetched ({type(error).__name__}: {text}); check the name and the network, or fetch "
            "the repository elsewhere and give its folder"
        ) from error
