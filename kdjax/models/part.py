"""A model that is a part of another one, named in its options as {"name": MODEL, "options": {...}}."""

import inspect
from typing import Any

from kdjax import registry
from kdjax.config import ConfigError
from kdjax.models.inputs import ImageInput

READS = {"images": ["image"], "text": ["input_ids", "attention_mask"]}


def part_of(name: str, part: dict, dtype: Any, reads: str = "images") -> Any:
    """A model that reads images, or text, alone, and returns `features`."""
    known = isinstance(part.get("name"), str) and isinstance(part.get("options", {}), dict)
    if not known or part.keys() - {"name", "options"}:
        raise ConfigError(f'{name}: expected {{"name": MODEL, "options": {{...}}}}, found {part}')
    options = {"dtype": dtype, **part.get("options", {})}
    try:
        if "num_classes" in inspect.signature(registry.get("models", part["name"])).parameters:
            options = {"num_classes": 0, **options}
        model = registry.build("models", part["name"], options)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
    fits = list(model.inputs) == READS[reads]
    if not fits or (reads == "images" and not isinstance(image_of(model), ImageInput)):
        raise ConfigError(f"{name}: expected a model of {reads}, found {part['name']}, of {', '.join(model.inputs)}")
    if "features" not in model.endpoints:
        returned = ", ".join(model.endpoints)
        raise ConfigError(f"{name}: expected a model that returns 'features', found {part['name']}, of {returned}")
    return model


def image_of(model: Any) -> ImageInput:
    return model.inputs["image"]
