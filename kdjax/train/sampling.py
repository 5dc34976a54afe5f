"""Which examples a stage sees while it learns: all attacks, and more and more normal ones, the strangest first."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from kdjax import config
from kdjax.config import ConfigError


@dataclass(frozen=True)
class Ranked:
    """The training examples in order: the attacks, and the normal ones from the strangest on."""

    plan: config.Curriculum
    attacks: Int[np.ndarray, " a"]
    normals: Int[np.ndarray, " n"]

    @classmethod
    def by(cls, plan: config.Curriculum, scores: Float[np.ndarray, " m"], labels: Int[np.ndarray, " m"]) -> "Ranked":
        if not (labels == 1).any() or not (labels == 0).any():
            raise ConfigError("a curriculum needs attacks and normal examples to train on; leave stage.curriculum out")
        normals = np.flatnonzero(labels == 0)
        return cls(plan, np.flatnonzero(labels == 1), normals[np.argsort(-scores[normals], kind="stable")])

    def pool(self, ratio: float) -> Int[np.ndarray, " p"]:
        """All attacks, and `ratio` normal examples to each of them where there are so many."""
        return np.concatenate([self.attacks, self.normals[: max(1, round(ratio * len(self.attacks)))]])

    def next_ratio(self, epoch: int, before: float, confidence: float) -> float:
        """The ratio of normal examples to attacks in an epoch, counted from 0; the epoch before it had `before`."""
        plan = self.plan
        aim = plan.start + (plan.end - plan.start) * min(1.0, epoch / max(plan.warmup, 1.0))
        if confidence > plan.sure:
            aim *= 1.0 + 0.1 * (confidence - plan.sure)
        elif confidence < plan.unsure:
            aim *= 0.9
        return plan.momentum * before + (1.0 - plan.momentum) * aim
