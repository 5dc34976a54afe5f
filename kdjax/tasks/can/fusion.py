"""Fusion: how much to believe an anomaly score and how much a classifier, graph by graph, and who does it best."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from jaxtyping import Array, Float

from kdjax.config import ConfigError, Data, Term, nearest
from kdjax.report.figures import detection as detection_figures
from kdjax.report.page import figure
from kdjax.tasks import alarms
from kdjax.tasks.can import fusing
from kdjax.tasks.detection import logit
from kdjax.tasks.task import Predictions, Tested

NEEDED = ("state", "q", "anomaly", "probability", "alpha", "logits")
SEEN = ("state", "anomaly", "probability")  # what `fusing.Seen` is made of


@dataclass(frozen=True, slots=True)
class Agent:
    """How an agent learns from episodes: double Q-learning with a target network and a memory of what it did."""

    gamma: float = 0.9  # what the next reward is worth now
    explore: float = 0.2  # share of actions at random, at first
    explore_end: float = 0.01
    explore_decay: float = 0.995  # for each episode
    replay: int = 50_000  # transitions in memory
    batch_size: int = 128  # transitions that an update reads
    acts: int = 8  # actions between two updates
    target_every: int = 100  # updates between two copies of the network to its target


@dataclass(frozen=True)
class Fusion(alarms.Scored):
    """What an action earns, how the agent learns, and its measures beside simpler ways to fuse."""

    agent: Agent = Agent()
    primary: ClassVar[str] = "f1"
    measures: ClassVar[tuple[str, ...]] = ("f1", "confidence")

    @classmethod
    def of(cls, data: Data, **agent_options: Any) -> "Fusion":
        known = [field.name for field in fields(Agent)]
        if faults := [f"no option {name!r}; {nearest(name, known)}" for name in agent_options if name not in known]:
            raise ConfigError("the task 'fusion' cannot be used:\n  " + "\n  ".join(faults))
        return cls(Agent(**agent_options))

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

    def predict(self, outputs: dict[str, Array], batch: dict[str, Any]) -> dict[str, Array]:
        """`score`, the logit of the fused score; `anomaly`, `probability`, `alpha`; and `state`."""
        return {"score": logit(outputs["logits"]), **{name: outputs[name] for name in (*SEEN, "alpha")}}

    def measure(self, outputs: dict[str, Array], batch: dict[str, Any]) -> dict[str, tuple[Array, Array]]:
        return alarms.measured(logit(outputs["logits"]), batch)

    def test(self, predictions: Predictions, dataset: Any, calibrated: dict[str, float]) -> tuple[dict, list[list]]:
        """The agent's measures, and those of every simpler way with a threshold found in the same manner."""
        calibrated = calibrated or self.calibrate(predictions("val"), dataset)
        result, table = alarms.tested(predictions("test")["score"], dataset, calibrated["threshold"], self.by)
        splits = {
            split: fusing.Seen(**{name: predictions(split)[name] for name in SEEN}, label=dataset.labels(split))
            for split in ("train", "val", "test")
        }
        beside = []
        for title, scores in fusing.baselines(splits["train"], splits["val"]).items():
            limit = alarms.threshold(scores(splits["val"]), dataset.labels("val"))
            measures, _ = alarms.tested(scores(splits["test"]), dataset, limit, self.by)
            beside.append({"title": title, **measures})
        return {**result, "beside": beside}, table

    def pictures(self, tested: list[Tested]) -> dict[str, str]:
        last = tested[-1].predicted
        shown = detection_figures.policy(*(last[name] for name in ("anomaly", "probability", "alpha")))
        policy = figure("weight of the classifier over what both models say", shown, wide=True)
        return {"Fusion": alarms.pictures("Fusion", tested, "logit of the fused score")["Fusion"] + policy}
