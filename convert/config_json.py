"""What transformers writes beside its weights: config.json tells what no tensor's shape does, preprocessor_config.json
how images are normalised. Nothing in them is run; a value counts where it is of the kind that it should be.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convert.sources import SourceError, plain

LARGEST = 16_000_000  # bytes; those of models with 22,000 classes have 2 MB
AWAY = "correct it, or where it belongs to other weights move it away"
# Names of transformers -> of kdjax.models.layers.activation.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu6": "relu6",
    "silu": "silu",
    "swish": "silu",
}
THEIRS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "quick_gelu": "quick_gelu"}
THEIRS |= {name: name for name in ("relu", "relu6", "silu")}


@dataclass(frozen=True)
class Config:
    """The values of a config.json, or of a part of it. What is wrong with them is gathered and told by `check`.

    A value that is not there is the default of transformers, as it leaves out some of those when it writes.
    """

    path: Path
    values: Mapping[str, Any] = field(repr=False)
    at: str = ""
    faults: list[str] = field(default_factory=list)

    def part(self, name: str) -> "Config":
        """The config of a part of the model."""
        values = self.get(name, {})
        return Config(self.path, values, f"{self.at}{name}.", self.faults)

    def get(self, name: str, default: Any) -> Any:
        """The value, of the kind of `default`: True, a whole number, a number, a text, a tuple of whole numbers, {}."""
        value = self.values.get(name)
        if value is None:
            return default
        value = tuple(value) if isinstance(value, list) else value
        if not _is_like(value, default):
            self.fault(name, f"expected a value such as {_json(default)}", value)
            return default
        return value

    def only(self, name: str, default: Any) -> None:
        """Nothing but the default can be said with our model."""
        if (value := self.get(name, default)) != default:
            self.fault(name, f"kdjax computes it as {_json(default)} alone", value)

    def agrees(self, name: str, default: Any, tensors: Any) -> None:
        """The tensors' shapes tell it too."""
        if (value := self.get(name, default)) != tensors:
            self.fault(name, f"the tensors have {_json(tensors)}", value)

    def sides(self, name: str, default: int, tensors: int | tuple[int, ...] | None) -> int | tuple[int, ...]:
        """As `agrees`, of the sides of an image or a patch: one number for a square, or two."""
        value = self.values.get(name)
        value = self.get(name, default if not isinstance(value, list) else (default, default))
        if isinstance(value, tuple) and len(set(value)) == 1:
            value = value[0]
        if tensors is not None and value != tensors:
            self.fault(name, f"the tensors have {_json(tensors)}", value)
        return value

    def activation(self, name: str, default: str) -> str:
        value = self.get(name, default)
        if value not in ACTIVATIONS:
            self.fault(name, f"kdjax has {', '.join(ACTIVATIONS)}", value)
        return ACTIVATIONS.get(value, default)

    def classes(self, tensors: int) -> None:
        """As `agrees`; transformers counts the names, and writes no number."""
        names = self.get("id2label", {})
        if (count := len(names) if names else self.get("num_labels", 2)) != tensors:
            self.fault("id2label", f"the tensors have {tensors} labels", count)

    def check(self) -> None:
        """One error with everything that is wrong."""
        if self.faults:
            raise SourceError(f"{self.path} does not fit; {AWAY}:\n  " + "\n  ".join(dict.fromkeys(self.faults)))

    def fault(self, name: str, expected: str, found: Any) -> None:
        self.faults.append(f"{self.at}{name}: {expected}, found {plain(_json(found))[:80]}")


def beside(source: Path) -> Config | None:
    """The config.json of transformers in the folder of the weights, if there is one."""
    values = _read(source.parent / "config.json")
    if {"type_vocab_size", "num_attention_heads"} <= values.keys():
        values = {"model_type": "bert", **values}  # of BERT's early files some do not say it
    return Config(source.parent / "config.json", values) if isinstance(values.get("model_type"), str) else None


def preprocessing(source: Path) -> Config:
    """The preprocessor_config.json beside the weights, without values where there is none."""
    path = source.parent / "preprocessor_config.json"
    return Config(path, _read(path))


def normalisation(source: Path, usual: bool = True) -> dict[str, tuple[float, ...]]:
    """Mean and std of the channels, as far as a preprocessor_config.json beside the weights tells them; `usual` is
    whether images are normalised where it does not say."""
    values = preprocessing(source).values
    said = values.get("do_normalize")
    if said is False or (values and said is None and not usual):
        return {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    found: dict[str, Any] = {"mean": values.get("image_mean"), "std": values.get("image_std")}
    return {name: tuple(map(float, x)) for name, x in found.items() if _are_channels(x)}


def _are_channels(x: Any) -> bool:
    return isinstance(x, list) and len(x) == 3 and all(_is_like(n, 0.5) and 0 <= n <= 1 for n in x)


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    if path.stat().st_size > LARGEST:
        raise SourceError(f"{path}: {path.stat().st_size:,} bytes are no settings of a model; move it away")
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: no whole JSON file; {AWAY}") from error
    return values if isinstance(values, dict) else {}


def _is_like(value: Any, default: Any) -> bool:
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, int):
        return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    if isinstance(default, tuple):
        return isinstance(value, tuple) and all(_is_like(one, 1) or one == 0 for one in value)
    return isinstance(value, type(default))


def _json(value: Any) -> str:
    return json.dumps(value)
