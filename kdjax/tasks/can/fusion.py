"""Fusion: how much to believe an anomaly score and how much a classifier, graph by graph, and who does it best."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kdjax.config import ConfigError, Data, Term
from kdjax.report.figures import detection as detection_figures
from kdjax.report.page import figure
from kdjax.tasks.can import alarms, fusing
from kdjax.tasks.can.detection import logit
from kdjax.tasks.task import Predictions, Tested

NEEDED = ("state", "q", "anomaly", "probability", "alpha", "logits")


@dataclass(frozen=True)
class Fusion:
    """What an action earns, and the measures of the agent beside simpler ways to fuse."""

    primary: ClassVar[str] = "f1"
    acts: ClassVar[bool] = True

    @classmethod
    def of(cls, data: Data) -> "Fusion":
        return cls()

    def terms(self) -> dict[str, Term]:
        return {}

    def check(self, outputs: dict[str, Any]) -> None:
        """Refuses a model that does not give what this task reads."""
        if missing := [name for name in NEEDED if name not in outputs]:
            raise ConfigError(f"fusion needs a model with {', '.join(NEEDED)}; this one has no {', '.join(missing)}")

    def reward(
        self, alpha: Float[Array, "*b"], anomaly: Float[Array, "*b"], probability: Float[Array, "*b"], label: Array
    ) -> Float[Array, "*b"]:
        return fusing.reward(alpha, anomaly, probability, label)

    def predict(self, outputs: dict[str, Array], batch: dict[str, Array]) -> Float[Array, "p g d"]:
        """The logit of the fused score, anomaly, probability, alpha, and the state."""
        told = jnp.stack(
            [logit(outputs["logits"]), *(outputs[k] for k in ("anomaly", "probability", "alpha"))], axis=-1
        )
        return jnp.concatenate([told, outputs["state"]], axis=-1)

    def measure(self, outputs: dict[str, Array], batch: dict[str, Array]) -> dict[str, tuple[Array, Array]]:
        return alarms.measured(logit(outputs["logits"]), batch)

    def calibrate(self, predicted: np.ndarray, dataset: Any) -> dict[str, float]:
        return {"threshold": alarms.threshold(predicted[:, 0], dataset.labels("val"))}

    def test(self, predictions: Predictions, dataset: Any, calibrated: dict[str, float]) -> tuple[dict, list[list]]:
        """The agent's measures, and those of every simpler way with a threshold found in the same manner."""
        calibrated = calibrated or self.calibrate(predictions("val"), dataset)
        result, table = alarms.tested(predictions("test")[:, 0], dataset, calibrated["threshold"])
        splits = {split: _seen(predictions(split), dataset.labels(split)) for split in ("train", "val", "test")}
        beside = []
        for title, scores in fusing.baselines(splits["train"], splits["val"]).items():
            limit = alarms.threshold(scores(splits["val"]), dataset.labels("val"))
            found, _ = alarms.tested(scores(splits["test"]), dataset, limit)
            beside.append({"title": title, **found})
        return {**result, "beside": beside}, table

    def words(self, dataset: Any) -> dict[str, Any]:
        """How the report calls things."""
        return alarms.words(dataset)

    def pictures(self, tested: list[Tested]) -> dict[str, str]:
        last = tested[-1].predicted
        shown = detection_figures.policy(*last[:, 1:4].T)
        policy = figure("weight of the classifier over what both models say", shown, wide=True)
        return {"Fusion": alarms.pictures("Fusion", tested, "logit of the fused score")["Fusion"] + policy}


def _seen(predicted: np.ndarray, labels: np.ndarray) -> fusing.Seen:
    return fusing.Seen(predicted[:, 4:], predicted[:, 1], predicted[:, 2], labels)
