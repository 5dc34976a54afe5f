"""Detection: is there an attack in a graph, was an image generated? One logit, or two, of which the second says yes."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kdjax.config import ConfigError, Data, Term, nearest
from kdjax.models.layers.resize import resize
from kdjax.report.metrics.detection import CALIBRATIONS
from kdjax.tasks import alarms
from kdjax.tasks.task import Arrays, Tested

DAMAGES = ("jpeg", "blur", "resize")
SHOWN = 8  # images whose patches the report shows
MAP = 32  # the largest side of the maps of patches that are kept of a test set


@dataclass(frozen=True)
class Detection(alarms.Scored):
    """Supervised terms, measures and scores of examples of class 0 or 1.

    `by` is the measure that counts, "f1" or "auc"; `threshold` what the threshold is the best for on validation data,
    "f1" or "accuracy"; `damages` are done to test images to see how far the measure falls (`DAMAGES`).
    """

    by: str = "f1"
    threshold: str = "f1"
    damages: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, data: Data, by: str = "f1", threshold: str = "f1", damages: tuple[str, ...] | list[str] = ()
    ) -> "Detection":
        faults = [f"by: no measure {by!r}; {nearest(by, alarms.FIRST)}"] if by not in alarms.FIRST else []
        if threshold not in CALIBRATIONS[:2]:
            faults.append(f"threshold: expected {' or '.join(CALIBRATIONS[:2])}, found {threshold!r}")
        faults += [f"damages: no kind {kind!r}; {nearest(kind, DAMAGES)}" for kind in damages if kind not in DAMAGES]
        if faults:
            raise ConfigError("the task 'detection' cannot be used:\n  " + "\n  ".join(faults))
        return cls(by, threshold, tuple(damages))

    @property
    def primary(self) -> str:
        return self.by

    @property
    def measures(self) -> tuple[str, ...]:
        return ("f1", "confidence", "auc") if self.by == "auc" else ("f1", "confidence")

    def terms(self) -> dict[str, Term]:
        return {"bce": Term("bce", label="class")}

    def check(self, outputs: dict[str, Any]) -> None:
        """Refuses a model that does not give the logits this task needs."""
        shape = list(outputs["logits"].shape) if "logits" in outputs else []
        if len(shape) not in (2, 3) or shape[-1] > 2:
            raise ConfigError(
                "detection needs 'logits' [images, 1 or 2] or [packs, graphs, 1 or 2], the model gives "
                f"{shape or 'none'}"
            )

    def predict(self, outputs: dict[str, Array], batch: dict[str, Any]) -> dict[str, Array]:
        """`score`, the logit of class 1; the `embedding` that the model knows the example by; the `patches` of an
        image, the logit of each place of it."""
        known = alarms.embedded(outputs)
        if outputs.get("features", outputs["logits"]).shape[:-1] == outputs["logits"].shape[:-1]:
            known = {"embedding": outputs["features"].astype(jnp.float32)} if "features" in outputs else known
        maps = {"patches": patches(outputs["patch_logits"])} if "patch_logits" in outputs else {}
        return {"score": logit(outputs["logits"]), **known, **maps}

    def measure(self, outputs: dict[str, Array], batch: dict[str, Any]) -> dict[str, tuple[Array, Array]]:
        """F1 at probability one half, and the mean probability of the chosen side. NaN where a logit is not finite."""
        return alarms.measured(logit(outputs["logits"]), batch)

    def gathered(self, predictions: Arrays, labels: Int[np.ndarray, " n"]) -> dict[str, float]:
        return {"auc": alarms.area(predictions["score"], labels)} if self.by == "auc" else {}

    def calibrate(self, predictions: Arrays, dataset: Any) -> dict[str, float]:
        return {"threshold": alarms.threshold(predictions["score"], dataset.labels("val"), self.threshold)}

    def pictures(self, tested: list[Tested]) -> dict[str, str]:
        last = tested[-1].dataset
        drawn = alarms.pictures("Detection", tested, f"logit of {_with_article(last.kinds[1])}")
        seen = {stage.title: stage for stage in tested if "patches" in stage.predicted and stage.role != "control"}
        return {**drawn, **robustness(tested), **({"Where they look": heat_maps(seen)} if seen else {})}


def logit(logits: Float[Array, "*b k"]) -> Float[Array, "*b"]:
    """The logit of class 1 against class 0."""
    logits = logits.astype(jnp.float32)
    return logits[..., 0] if logits.shape[-1] == 1 else logits[..., 1] - logits[..., 0]


def heat_maps(seen: dict[str, Tested]) -> str:
    """An image of each class from each test set, and the patches of every model that was tested on them."""
    from kdjax.report.figures import heat

    last = [*seen.values()][-1]
    labels, groups, names = last.dataset.labels("test"), np.array(last.dataset.groups), last.dataset.called("test")[1]
    alike = {title: stage for title, stage in seen.items() if list(stage.dataset.called("test")[1]) == list(names)}
    chosen = [
        np.flatnonzero((groups == name) & (labels == k)) for name in dict.fromkeys(last.dataset.groups) for k in (0, 1)
    ]
    rows = []
    for i in [int(where[0]) for where in chosen if len(where)][:SHOWN]:
        models = {
            title: (stage.predicted["patches"][i], float(stage.predicted["score"][i]), stage.row["threshold"])
            for title, stage in alike.items()
        }
        image = last.dataset.resized("test", i)[last.dataset.picture]
        told = {"name": f"{groups[i]}: {names[i]}", "truth": last.dataset.kinds[labels[i]]}
        rows.append({**told, "image": image, "models": models})
    return heat.maps(rows, last.dataset.kinds)


def robustness(tested: list[Tested]) -> dict[str, str]:
    """The AUC of every model under JPEG compression, blur and resizing, where these were measured."""
    from kdjax.report.figures import heat
    from kdjax.report.page import figure

    kinds: dict[str, dict[str, dict[str, float]]] = {}
    for stage in tested:
        for kind, values in (stage.row.get("robustness") or {}).items():
            kinds.setdefault(kind, {})[stage.title] = values
    drawn = heat.robustness(kinds, "AUC")
    columns = "".join(figure(title, svg) for title, svg in drawn.items())
    return {"Robustness": f'<div class="curves">{columns}</div>'} if drawn else {}


def patches(logits: Float[Array, "b h w k"]) -> Float[Array, "b r c"]:
    """The logits of class 1 at each place, brought to `MAP` rows and columns where there are more."""
    h, w = logits.shape[1:3]
    return resize(logit(logits)[..., None], (min(h, MAP), min(w, MAP)), antialias=True)[..., 0]


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
