"""Options of models that a config leaves open, filled in from the file that a stage starts from, or from its data."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from kdjax import registry
from kdjax.config import ConfigError, Model, Stage, nearest
from kdjax.data.text.tokens import IDS

CLASSES = ("num_classes", "labels")  # which a model takes from the data where it is silent about them


def resolved(stage: Stage, facts: dict[str, Any], file: Model | None = None) -> Stage:
    """The stage with all options of its model known: from the data, or, where it adopts them, from its file.

    A model that takes the classes and is not told them has those of the data, and one that reads tokens, and does not
    say of which vocabulary, reads that of the data. Of several tokenizers `inputs` says which.
    """
    options = stage.model.options
    takes = inspect.signature(registry.get("models", stage.model.name)).parameters
    options = {**{name: None for name in CLASSES if name in facts and name in takes}, **options}
    if stage.adopt and file is not None:
        options = {**file.options, **{k: v for k, v in options.items() if k in CLASSES}}
    told = facts_for(stage.inputs, facts)
    model = _filled("model", Model(stage.model.name, **_reading(options) if "vocabulary" in told else options), told)
    teachers = {
        k: dataclasses.replace(t, model=_filled(f"teachers.{k}.model", t.model, facts_for(t.inputs, facts)))
        if t.model
        else t
        for k, t in stage.teachers.items()
    }
    return dataclasses.replace(stage, model=model, teachers=teachers)


def facts_for(inputs: Mapping[str, str], facts: dict[str, Any]) -> dict[str, Any]:
    """The facts for a model whose inputs are these fields, where they differ: with the vocabulary of its tokens."""
    tokens = facts.get("tokens", {})
    return {k: v for k, v in facts.items() if k != "tokens"} | tokens.get(inputs.get(IDS, IDS), {})


def _reading(options: dict[str, Any]) -> dict[str, Any]:
    """The options, in which every model that has a vocabulary takes that of the data unless it names its own."""
    inside = {k: {**v, "options": _reading(v["options"])} if _is_model(v) else v for k, v in options.items()}
    return inside | ({"vocabulary": inside.get("vocabulary") or None} if "vocab_size" in inside else {})


def _filled(what: str, model: Model, facts: dict[str, Any]) -> Model:
    """Also in the models that are options of this one."""

    def fill(options: dict) -> dict:
        if untold := [k for k, v in options.items() if v is None and k not in facts]:
            remedy = f"say which tokens it reads, inputs={{{IDS!r}: FIELD}}" if "vocab" in untold[0] else ""
            told = remedy or nearest(untold[0], facts)
            raise ConfigError(f"{what}.options: the data do not tell {', '.join(untold)}; {told}")
        return {
            k: facts[k] if v is None else {**v, "options": fill(v["options"])} if _is_model(v) else v
            for k, v in options.items()
        }

    return Model(model.name, **fill(model.options))


def _is_model(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"name", "options"}
