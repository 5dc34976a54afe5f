"""Several votes on each image: by models of several runs, on views that are exact turns of its pixels. What they give
together is the mean of their probabilities."""

import copy
import dataclasses
import json
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
from kdjax.deploy.predict import Kept, calibrated, chosen, load
from kdjax.experiment import checks
from kdjax.experiment.cost import costs
from kdjax.experiment.saved import from_json
from kdjax.experiment.workdir import CONFIG, config_of
from kdjax.report.metrics import outside
from kdjax.tasks.classification import completed
from kdjax.tasks.task import Arrays
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
        """The names of its classes as far as the file of weights tells them, then numbers."""
        return completed(json.loads(self.kept.about.get("image_classes", "[]")), self.kept.stage.data.class_count)

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

    def tested(self) -> tuple[dict, Arrays]:
        """Its scores on the test images as they are, what it costs, and what it predicts of them."""
        predictions = cache(lambda split: evaluate(self.learner, self.variables, split)[1])
        its, name = calibrated(self.opened.kept.about), self.opened.name
        result, _ = self.learner.task.test(predictions, self.learner.dataset, its)
        row = {"stage": name, "role": "other", "title": self.opened.title}
        row |= {"parameters": count(self.variables["params"]), "test_images": self.learner.dataset.sizes["test"]}
        return row | result | costs({name: (self.learner, self.variables)})[name], predictions("test")

    def votes(self, dataset: Dataset, views: Sequence[str]) -> list[Arrays]:
        """What it predicts of each view of the test images in this data set."""
        learner = dataclasses.replace(self.learner, dataset=dataset)
        return [evaluate(learner, self.variables, "test", change=turning(view, dataset))[1] for view in views]


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
        """A row for each member, one for all votes where there are several, and the votes."""
        tested = [member.tested() for member in self.members]
        rows = [row for row, _ in tested]
        votes = [
            [predicted, *member.votes(member.learner.dataset, self.views)]
            for member, (_, predicted) in zip(self.members, tested, strict=True)
        ]
        ballot = self._counted(votes, rows)
        return (rows if self.voters == 1 else [*rows, self._row(rows, ballot.all)]), ballot

    def ask(self, rows: list[dict], datasets: list[Dataset]) -> Ballot:
        """Of other images, given to each member as it sees them."""
        views = (AS_IT_IS, *self.views)
        votes = [member.votes(dataset, views) for member, dataset in zip(self.members, datasets, strict=True)]
        return self._counted(votes, rows)

    def _counted(self, votes: list[list[Arrays]], rows: list[dict]) -> Ballot:
        own = votes[0][0]
        if self.voters == 1:
            return Ballot(own, own)
        temperatures = [
            row.get("temperature", 1.0) for row, cast in zip(rows, votes, strict=False) for _ in cast
        ]  # of the members; a row of all may follow
        return Ballot(own, together([vote for cast in votes for vote in cast], temperatures))

    def _row(self, rows: list[dict], predicted: Arrays) -> dict:
        learner = self.members[0].learner
        result, _ = learner.task.test(lambda split: predicted, learner.dataset, {})
        costs = {
            key: (1 + len(self.views)) * sum(values)
            for key in ("ms_per_image", "flops_per_image")
            if None not in (values := [row[key] for row in rows])
        }
        parts = [f"{n} {what}s" for n, what in ((len(rows), "model"), (1 + len(self.views), "view")) if n > 1]
        row = {"stage": self.members[0].opened.name, "role": "student", "title": f"mean of {' × '.join(parts)}"}
        row |= {"parameters": sum(row["parameters"] for row in rows), "test_images": rows[0]["test_images"]}
        return row | result | costs


def turning(view: str, dataset: Dataset) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What makes a batch that view of itself."""
    if view == AS_IT_IS:
        return dict
    images = [name for name, field in dataset.fields.items() if field.kind == "image"]
    return lambda batch: {**batch, **{name: np.ascontiguousarray(VIEWS[view](batch[name])) for name in images}}


def together(votes: list[Arrays], temperatures: list[float]) -> Arrays:
    """As `logits` the logarithm of the mean probabilities, as `scaled` that of those after each vote's temperature, and
    the mean `energy`."""
    logits = [vote["logits"] for vote in votes]
    return {
        "logits": mean_probability(logits),
        "scaled": mean_probability([rows / t for rows, t in zip(logits, temperatures, strict=True)]),
        "energy": np.mean([outside.energy(rows) for rows in logits], axis=0),
    }


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
