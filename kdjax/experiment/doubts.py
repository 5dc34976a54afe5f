"""What running statistics have against the way in which weights are used, asked whenever they meet images."""

from kdjax.config import Model
from kdjax.data.dataset import Dataset
from kdjax.distill.teachers import build_model
from kdjax.models import statistics


def doubts(model: Model, variables: dict, dataset: Dataset, split: str = "train") -> str:
    """A warning where the model is built otherwise than these weights were trained with; "" where all seems well."""
    pictures = [name for name, field in dataset.fields.items() if field.kind == "image"]
    if not pictures or not getattr(build_model(model), "choices", None):
        return ""
    return statistics.mismatch(model, variables, next(iter(dataset.evaluate(split, statistics.MOST)))[pictures[0]])
