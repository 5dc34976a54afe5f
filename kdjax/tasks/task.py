"""What a task is told of finished stages."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Predictions = Callable[[str], np.ndarray]  # the split -> the task's prediction for each of its examples, in order


@dataclass(frozen=True)
class Tested:
    """A finished stage: its row in the summary, and what it made of its test data."""

    row: dict[str, Any]
    dataset: Any
    predicted: np.ndarray

    @property
    def title(self) -> str:
        return self.row["title"]

    @property
    def role(self) -> str:
        return self.row["role"]
