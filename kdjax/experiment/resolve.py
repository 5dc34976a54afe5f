"""Options of models that a config leaves open, filled in from the file that a stage starts from, or from its data."""

import dataclasses
import inspect
from typing import Any

from kdjax import registry
from kdjax.config import ConfigError, Model, Stage, nearest


def resolved(stage: Stage, facts: dict[str, Any], file: Model | None = None) -> Stage:
    """The stage with all options of its model known: from the data, or, where it adopts them, from its file.

    A model that takes the number of classes and is not told it has that of the data.
    """
    options = stage.model.options
    if (
        "num_classes" in facts
        and "num_classes" in inspect.signature(registry.get("models", stage.model.name)).parameters
    ):
        options = {"num_classes": None, **options}
    if stage.adopt and file is not None:
        options = {**file.options, **{k: v for k, v in options.items() if k == "num_classes"}}
    model = _filled("model", Model(stage.model.name, **options), facts)
    teachers = {
        k: dataclasses.replace(t, model=_filled(f"teachers.{k}.model", t.model, facts)) if t.model else t
        for k, t in stage.teachers.items()
    }
    return dataclasses.replace(stage, model=model, teachers=teachers)


def _filled(what: str, model: Model, facts: dict[str, Any]) -> Model:
    """Also in the models that are options of this one."""

    def fill(options: dict) -> dict:
        if untold := [k for k, v in options.items() if v is None and k not in facts]:
            raise ConfigError(f"{what}.options: the data do not tell {', '.join(untold)}; {nearest(untold[0], facts)}")
        return {
            k: facts[k] if v is None else {**v, "options": fill(v["options"])} if _is_model(v) else v
            for k, v in options.items()
        }

    return Model(model.name, **fill(model.options))


def _is_model(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"name", "options"}
