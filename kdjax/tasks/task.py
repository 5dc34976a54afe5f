"""The interface of a task: what it learns, measures, tests and draws."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array

from kdjax.config import Data, Term

Arrays = dict[str, np.ndarray]  # predictions by name, with a row for each example
Predictions = Callable[[str], Arrays]  # of a split, its examples in order


@runtime_checkable
class Task(Protocol):
    """One kind of problem, made for its data. It is hashable: a student and its control share compiled programs."""

    primary: ClassVar[str]  # the measure that says which epoch is best; more is better
    measures: ClassVar[tuple[str, ...]]  # all that `measure` and `gathered` give

    damages: ClassVar[tuple[str, ...]]  # the kinds of damage to images under which the test is repeated

    @classmethod
    def of(cls, data: Data, **options: Any) -> "Task": ...

    def terms(self) -> dict[str, Term]:
        """The supervised terms; a stage's terms of the same names replace them."""
        ...

    def check(self, outputs: Mapping[str, Any]) -> None:
        """Refuses a model whose outputs, as shapes, are not what this task reads."""
        ...

    def predict(self, outputs: dict[str, Array], batch: dict[str, Any]) -> dict[str, Array]:
        """Named arrays; their first axes are those of the batch's `index`."""
        ...

    def measure(self, outputs: dict[str, Array], batch: dict[str, Any]) -> dict[str, tuple[Array, Array]]:
        """(total, count) of each measure over the examples that can be judged."""
        ...

    def gathered(self, predictions: Arrays, labels: np.ndarray) -> dict[str, float]:
        """The measures of a split that are no sums over examples, such as an AUC."""
        ...

    def calibrate(self, predictions: Arrays, dataset: Any) -> dict[str, float]:
        """The numbers that validation data set, such as a threshold."""
        ...

    def test(self, predictions: Predictions, dataset: Any, calibrated: dict[str, float]) -> tuple[dict, list[list]]:
        """What the summary holds of a finished stage, and a table with a row for each example, names first."""
        ...

    def words(self, dataset: Any) -> dict[str, Any]:
        """How the report calls things."""
        ...

    def sketches(self, predictions: Arrays, dataset: Any, split: str) -> dict[str, np.ndarray]:
        """A few pictures of a split to watch while training goes on, uint8 [h, w, 3] by name."""
        ...

    def pictures(self, tested: list["Tested"]) -> dict[str, str]:
        """Sections of the report, as HTML by their heading."""
        ...


@runtime_checkable
class Acting(Task, Protocol):
    """A task that is learnt by acting, from rewards."""

    agent: Any  # how: see kdjax.tasks.can.fusion.Agent

    def reward(self, alpha: Array, anomaly: Array, probability: Array, label: Array) -> Array:
        """What an action earns."""
        ...


@dataclass(frozen=True)
class Tested:
    """A finished stage: its row in the summary, and what it made of its test data."""

    row: dict[str, Any]
    dataset: Any
    predicted: Arrays

    @property
    def title(self) -> str:
        return self.row["title"]

    @property
    def role(self) -> str:
        return self.row["role"]
