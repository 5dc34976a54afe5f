"""Several votes on each image: by models of several runs, on views that are exact turns of its pixels.

Together they give the mean of their probabilities (Lakshminarayanan et al. 2017, arXiv 1612.01474), which has a
temperature of its own: the mean of models that are as sure as right is not as sure as right (Rahaman and Thiery 2020,
arXiv 2007.08792).
"""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Float64
from scipy.special import log_softmax, logsumexp

from kdjax.config import ConfigError, Data, Experiment, nearest
from kdjax.data.dataset import Dataset
from kdjax.deploy.classify import names_of
from kdjax.deploy.predict import Kept, calibrated, chosen, load
from kdjax.experiment import checks
from kdjax.experiment.cost import costs
from kdjax.experiment.saved import from_json
from kdjax.experiment.workdir import CONFIG, config_of
from kdjax.report.metrics import outside
from kdjax.tasks.classification import completed
from kdjax.tasks.task import Arrays, Predictions
from kdjax.train.evaluation import evaluate
from kdjax.train.finish import count
from kdjax.train.setup import Learner, prepare

VIEWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # of square images [b, s, s, c]
    "hflip": lambda images: images[:, :, ::-1],
    "vflip": lambda images: images[:, ::-1],
    "rot90": lambda images: np.rot90(images, 1, (1, 2)),
    "rot180": lambda images: np.rot90(images, 2, (1, 2)),
    "rot270": lambda images: np.rot90(images, 3, (1, 2)),
}
AS_IT_IS = "as it is"


@dataclasses.dataclass(frozen=True)
class Opened:
    """A finished model whose weights have been read, before anything is computed."""

    place: str  # as a person calls it; "" is the stage that was asked for
    name: str  # of its stage
    kept: Kept

    @property
    def title(self) -> str:
        title = self.kept.stage.title or self.name
        return f"{title} ({self.place})" if self.place else title

    @property
    def classes(self) -> list[str]:
        return names_of(self.kept)

    def view(self, data: Data) -> Data:
        """These data at the size at which this model was trained."""
        seen = copy.copy(data)
        seen.image_size, seen.augment = self.kept.stage.data.image_size, {}
        return seen


@dataclasses.dataclass(frozen=True)
class Member:
    """A model that votes."""

    opened: Opened
    learner: Learner
    variables: dict

    def votes(self, dataset: Dataset, views: Sequence[str], split: str = "test") -> list[Arrays]:
        """What it predicts of each view of the images in a split of this data set."""
        learner = dataclasses.replace(self.learner, dataset=dataset)
        images = [name for name, field in dataset.fields.items() if field.kind == "image"]
        return [evaluate(learner, self.variables, split, change=turning(view, images))[1] for view in views]

    def row(self, predictions: Predictions) -> dict:
        """Its scores on the test images, and what it costs."""
        name, dataset = self.opened.name, self.learner.dataset
        result, _ = self.learner.task.test(predictions, dataset, calibrated(self.opened.kept.about))
        row = {"stage": name, "role": "other", "title": self.opened.title, "test_images": dataset.sizes["test"]}
        row |= {"parameters": count(self.variables["params"]), **result}
        return row | costs({name: (self.learner, self.variables)})[name]


class Ballot(NamedTuple):
    """What was predicted of the same images."""

    own: Arrays  # by the first member, of the images as they are
    all: Arrays  # by all members of all views


@dataclasses.dataclass(frozen=True)
class Jury:
    """Models that vote on the same images, each at its own size, and on the same views of them."""

    members: list[Member]
    views: tuple[str, ...]  # besides the images as they are

    @property
    def voters(self) -> int:
        return len(self.members) * (1 + len(self.views))

    def tested(self) -> tuple[list[dict], Ballot]:
        """A row for each member, one for all votes where there are several, and what they are on the test images."""
        datasets = [member.learner.dataset for member in self.members]
        alone = [
            cache(lambda split, member=member: member.votes(member.learner.dataset, (AS_IT_IS,), split)[0])
            for member in self.members
        ]
        rows = [member.row(predictions) for member, predictions in zip(self.members, alone, strict=True)]
        own = alone[0]("test")
        if self.voters == 1:
            return rows, Ballot(own, own)
        pooled = cache(
            lambda split: together([*(of(split) for of in alone), *self._votes(datasets, self.views, split)])
        )
        return [*rows, self._row(rows, pooled)], Ballot(own, pooled("test"))

    def ask(self, datasets: list[Dataset]) -> Ballot:
        """Of other images, given to each member as it sees them."""
        votes = self._votes(datasets, (AS_IT_IS, *self.views), "test")
        return Ballot(votes[0], votes[0] if self.voters == 1 else together(votes))

    def _votes(self, datasets: list[Dataset], views: Sequence[str], split: str) -> list[Arrays]:
        asked = zip(self.members, datasets, strict=True)
        return [vote for member, dataset in asked for vote in member.votes(dataset, views, split)]

    def _row(self, rows: list[dict], predictions: Predictions) -> dict:
        """Of all votes together, which have a temperature of their own."""
        learner, views = self.members[0].learner, 1 + len(self.views)
        result, _ = learner.task.test(predictions, learner.dataset, {})
        parts = [f"{n} {what}s" for n, what in ((len(rows), "model"), (views, "view")) if n > 1]
        row = {"stage": rows[0]["stage"], "role": "student", "title": f"mean of {' × '.join(parts)}"}
        row |= {"parameters": sum(row["parameters"] for row in rows), "test_images": rows[0]["test_images"]}
        return row | result | {"ms_per_image": views * sum(row["ms_per_image"] for row in rows)}


def turning(view: str, images: Sequence[str]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What makes a batch that view of itself; `images` are the fields to turn."""
    if view == AS_IT_IS:
        return dict
    return lambda batch: {**batch, **{name: np.ascontiguousarray(VIEWS[view](batch[name])) for name in images}}


def together(votes: list[Arrays]) -> Arrays:
    """As `logits` the logarithm of the mean probabilities, and the mean `energy`."""
    logits = [vote["logits"] for vote in votes]
    return {"logits": mean_probability(logits), "energy": np.mean([outside.energy(rows) for rows in logits], axis=0)}


def mean_probability(logits: list[Float[np.ndarray, "n k"]]) -> Float64[np.ndarray, "n k"]:
    """Its logarithm; nan where one of the logits is not finite."""
    rows = np.stack([np.where(np.isfinite(x), x, np.nan).astype(np.float64) for x in logits])
    return logsumexp(log_softmax(rows, axis=-1), axis=0) - np.log(len(logits))


# -- what was asked for ----------------------------------------------------------------------------------------------


def refuse_unknown_views(views: Sequence[str]) -> None:
    if unknown := [view for view in views if view not in VIEWS]:
        raise ConfigError(
            f"--tta: no view {unknown[0]!r}; {nearest(unknown[0], VIEWS)}; images as they are always vote"
        )


def member_of(opened: Opened, data: Data, experiment: Experiment, mesh: Mesh, dataset: Dataset) -> Member:
    """On these data, which `dataset` are, and on the mesh of `experiment`, whichever its own run was of."""
    stage = dataclasses.replace(opened.kept.stage, data=data)
    return Member(opened, prepare(opened.name, stage, experiment, mesh, dataset, {}), opened.kept.whole)


def open_stage(experiment: Experiment, workdir: Path, stage: str, weights: str = "") -> Opened:
    checks.validate(experiment)
    name, plain = chosen(experiment, stage)
    return Opened("", name, load(plain, workdir, name, weights))


def open_other(place: str) -> Opened:
    """A finished stage of another run, "WORKDIR" or "WORKDIR:STAGE"."""
    folder, _, stage = (place, "", "") if Path(place).expanduser().is_dir() else place.rpartition(":")
    workdir = Path(folder or place).expanduser()
    text = config_of(workdir) if workdir.is_dir() else None
    if text is None:
        actual = "no config.json in it" if workdir.is_dir() else "no such folder"
        raise ConfigError(f"--ensemble: expected WORKDIR or WORKDIR:STAGE of a run, found {place!r}: {actual}")
    try:
        return dataclasses.replace(open_stage(from_json(text, workdir / CONFIG), workdir, stage), place=place)
    except ConfigError as error:
        raise ConfigError(f"--ensemble={place}: {error}") from error


def refuse_other_classes(own: Opened, others: list[Opened]) -> None:
    """Members whose classes have other names, another number or another order."""
    if strange := [other for other in others if other.classes != own.classes]:
        listed = [f"{one.kept.path}: {_listed(one.classes)}" for one in (own, *strange)]
        raise ConfigError(
            "--ensemble: expected models of the same classes in the same order, found\n  "
            + "\n  ".join(listed)
            + "\nName runs that were trained on the same classes"
        )


def refuse_other_data(own: Opened, dataset: Dataset, source: str) -> None:
    """Test data with classes of other names than those that the model was trained on; numbers are no names."""
    k = own.kept.stage.data.class_count
    found, expected, numbers = completed(getattr(dataset, "image_classes", ()), k), own.classes, completed((), k)
    if found != expected and numbers not in (found, expected):
        raise ConfigError(
            f"the data {source!r}: expected the classes of {own.kept.path}, {_listed(expected)}, found "
            f"{_listed(found)}; name the folders alike, or choose other data"
        )


def _listed(names: list[str]) -> str:
    return f"{len(names)} classes ({', '.join(names[:12])}{', ...' if len(names) > 12 else ''})"
