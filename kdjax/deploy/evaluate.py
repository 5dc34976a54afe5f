"""Scoring what a stage left behind: on its test images or on others, alone or together with other models; of
classifiers also how sure they may be, and whether they know what they do not know."""

import copy
import dataclasses
import json
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from kdjax import config
from kdjax.config import ConfigError, Data, Experiment, Stage
from kdjax.data import pipeline
from kdjax.deploy import ensemble
from kdjax.deploy.ensemble import AS_IT_IS, Ballot, Jury, Member
from kdjax.deploy.pictures import bits_of, marked
from kdjax.deploy.predict import Kept
from kdjax.distill.teachers import build_model
from kdjax.experiment import outcome
from kdjax.experiment.doubts import doubts
from kdjax.report import evaluation, tables
from kdjax.report.evaluation import Evaluation, Outside
from kdjax.report.metrics import outside
from kdjax.report.page import MADE
from kdjax.tasks.classification import Classification, mistakes, scaled_logits
from kdjax.tasks.task import Arrays
from kdjax.train import kept, sharding
from kdjax.train.evaluation import evaluate as going_through
from kdjax.train.setup import task_of

RESULTS = "eval_results.txt"
FOLDER = "evaluation"  # in the working directory, where no other place is named
READERS = {"segmentation": "folder", "classification": "classes", "detection": "real_fake"}  # of other folders
OF_RECORDS = ("records", "medpix")  # readers of other records, the first where none is named
MOST = 20_000  # training images that say what is inside


@dataclasses.dataclass(frozen=True)
class Asked:
    """What an evaluation is to do besides scoring a stage on the test images that its config gives."""

    place: str = ""  # other labelled images: "FOLDER" or "READER:FOLDER"
    views: tuple[str, ...] = ()  # of `ensemble.VIEWS`, besides the images as they are
    others: tuple[str, ...] = ()  # "WORKDIR" or "WORKDIR:STAGE" of the ensemble's other members
    outside: str = ""  # images of no known class: "FOLDER" or "READER:FOLDER"
    output: str = ""  # the folder to write
    command: str = ""  # what was typed

    def folder(self, workdir: str | Path) -> Path:
        return Path(self.output or Path(workdir) / FOLDER).expanduser()

    def refuse_for(self, stage: str, task: str) -> None:
        """Where the task is not classification."""
        flags = {"tta": self.views, "ensemble": self.others, "outside": self.outside, "output": self.output}
        if given := [f"--{flag}" for flag, value in flags.items() if value]:
            raise ConfigError(
                f"{', '.join(given)}: expected a stage that learns classification, {stage!r} learns {task!r}; leave "
                "them out"
            )


class Evaluated(NamedTuple):
    summary: dict  # as `experiment.run` gives it: a row for each model, and one for all votes where there are several
    evaluation: Evaluation | None  # all there is to tell of a classifier, see `write`


def evaluate(
    experiment: Experiment, workdir: str | Path, stage: str = "", weights: str = "", asked: Asked | None = None
) -> Evaluated:
    """Scores a stage's model, or another file of weights for it. Without a name it is the last stage with teachers.

    All that is wrong with what is asked for is said before anything is computed.
    """
    asked = asked or Asked()
    own = ensemble.open_stage(experiment, Path(workdir), stage, weights)
    plain = own.kept.stage
    classifies = isinstance(task_of(plain), Classification)
    if not classifies:
        asked.refuse_for(own.name, config.task_of(plain).name)
    ensemble.refuse_unknown_views(asked.views)
    if asked.views and pipeline.kind(plain.data) != "images":
        raise ConfigError(f"--tta: expected a model of images, {own.name!r} reads {pipeline.kind(plain.data)}")
    opened = [own, *map(ensemble.open_other, asked.others)]
    data = plain.data
    if asked.place:
        of_records = pipeline.kind(plain.data) == "records"
        data = records_at(asked.place, own.kept) if of_records else data_at(asked.place, plain)
    mesh = sharding.make_mesh(experiment.mesh)
    build = building(sharding.parts(mesh, data.batch_size, 1, f"stages.{own.name}"))
    if classifies:
        ensemble.refuse_other_classes(own, opened[1:])
        ensemble.refuse_other_data(own, build(own.view(data)), asked.place or data.source)
        refuse_foreign(asked.folder(workdir))
    elif asked.place:
        refuse_other_labels(own.kept, build(own.view(data)), asked.place)
    far = [build(one.view(beyond_at(asked.outside, plain))) for one in opened] if asked.outside else []
    views = [one.view(data) for one in opened]
    members = [
        ensemble.member_of(one, view, experiment, mesh, build(view)) for one, view in zip(opened, views, strict=True)
    ]
    jury = Jury(members, asked.views)
    rows, ballot = jury.tested()
    dataset = members[0].learner.dataset
    summary = {
        "warnings": list(filter(None, [doubts(plain.model, own.kept.whole, dataset, "test")])),
        "name": f"{own.kept.path} on {asked.place or data.source}",
        "num_classes": data.num_classes,
        "test_images": rows[0]["test_images"],
        "item": dataset.item,
        **members[0].learner.task.words(dataset),
        "rows": rows,
    }
    if not classifies:
        return Evaluated(summary, None)
    scores = {}
    if far:
        known = trained(members[0], build(own.view(plain.data)))
        scores = outside_scores(known, ballot, jury.ask(far))
    return Evaluated(summary, told(asked, jury, summary, ballot, scores, far))


def building(parts: int) -> Callable[[Data], Any]:
    """Opens data sets, each once."""
    opened: dict[str, Any] = {}

    def build(data: Data) -> Any:
        key = json.dumps(config.to_dict(data), default=str)
        if key not in opened:
            opened[key] = pipeline.build(data, parts)
        return opened[key]

    return build


# -- what is outside -------------------------------------------------------------------------------------------------


class Known(NamedTuple):
    """What a model makes of its training images; class -1 where that may not be used."""

    predicted: Arrays
    labels: Int[np.ndarray, " n"]


def trained(member: Member, dataset: Any) -> Known:
    """Of `MOST` training images at most, evenly taken."""
    n, learner = dataset.sizes["train"], dataclasses.replace(member.learner, dataset=dataset)
    places = np.unique(np.linspace(0, n - 1, min(n, MOST)).round().astype(int))
    labels = np.where(dataset.labelled("train"), dataset.labels("train"), -1)
    return Known(going_through(learner, member.variables, "train", places)[1], labels[places])


def outside_scores(known: Known, inside: Ballot, beyond: Ballot) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of test images and of those beyond: the mean energy of all votes and, where the stage's own model has vectors of
    features, the other scores by these alone, of the images as they are."""
    scores = {"energy": (energy(inside.all), energy(beyond.all))}
    if "features" not in known.predicted:
        return scores
    near, far = inside.own, beyond.own
    if mahalanobis := outside.Mahalanobis.fitted(known.predicted["features"], known.labels):
        scores["mahalanobis"] = (mahalanobis(near["features"]), mahalanobis(far["features"]))
    if vim := outside.Vim.fitted(known.predicted["features"], known.predicted["logits"]):
        scores["vim"] = (vim(near["features"], near["logits"]), vim(far["features"], far["logits"]))
    return scores


def energy(predicted: Arrays) -> np.ndarray:
    return predicted["energy"] if "energy" in predicted else outside.energy(predicted["logits"])


# -- what is written -------------------------------------------------------------------------------------------------


def told(
    asked: Asked, jury: Jury, summary: dict, ballot: Ballot, scores: dict[str, tuple[np.ndarray, np.ndarray]], far: list
) -> Evaluation:
    own, row = jury.members[0], summary["rows"][-1]
    dataset = own.learner.dataset
    logits, names = ballot.all["logits"], own.opened.classes
    scaled = scaled_logits(logits, row)
    return Evaluation(
        summary=summary,
        names=names,
        examples=dataset.called("test")[1],
        labels=dataset.labels("test"),
        logits=logits,
        scaled=scaled,
        energy=energy(ballot.all),
        outside=Outside(asked.outside, far[0].called("test")[1], scores) if far else None,
        mistakes=mistakes(dataset, logits if scaled is None else scaled, names),
        facts={
            "Weights": ", ".join(str(member.opened.kept.path) for member in jury.members),
            "Data": asked.place or own.learner.stage.data.source,
            "Views": ", ".join((AS_IT_IS, *jury.views)),
            "Temperature": ", ".join(f"{row['temperature']:.4g}" for row in summary["rows"] if "temperature" in row),
            "Command": asked.command,
            "Date": time.strftime("%Y-%m-%d %H:%M"),
            "Hardware": outcome.hardware(),
            "Versions": ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "numpy")),
        },
    )


def write_results(summary: dict, workdir: Path) -> str:
    """Says where the scores are also to be found; a folder that cannot be written to takes nothing from them."""
    return written({workdir / RESULTS: tables.results(summary)}, f"also in {workdir / RESULTS}")


def write(of_classifier: Evaluation, folder: Path) -> str:
    """Tables, pictures and a page that shows all of it; says where, as `write_results` does."""
    files = {folder / name: text for name, text in evaluation.files(of_classifier).items()}
    return written(files, f"report: {folder / evaluation.PAGE}, tables and pictures beside it")


def written(files: dict[Path, str], said: str) -> str:
    for path, text in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept.write(path, text)
        except OSError as error:
            return f"not written to {path}: {error}"
    return said


def refuse_foreign(folder: Path) -> None:
    """A folder that holds something else than an earlier evaluation: nothing there is to be written over."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output={folder}: expected a folder, found a file; name another")
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    page = folder / evaluation.PAGE
    if names and not (page.exists() and marked(page, MADE)):
        listed = f"{', '.join(names[:4])}{', ...' if names[4:] else ''}"
        raise ConfigError(
            f"--output={folder}: expected an empty folder, or that of an evaluation, found {listed}; name another"
        )


def beyond_at(place: str, stage: Stage) -> Data:
    """Images of no class that is known: where they have classes, of as many as there are."""
    data = data_at(place, stage, "--outside", "unlabelled")
    data.num_classes = data.num_classes if data.source == "unlabelled" else None
    return data


def data_at(place: str, stage: Stage, flag: str = "--data", reader: str = "") -> Data:
    """All that lies in "FOLDER" or "READER:FOLDER" as test data, or what its own splits call so; read as training data
    are. A folder alone is read by `reader`, or by the one that fits the task."""
    name, colon, folder = place.rpartition(":")
    task = config.task_of(stage).name
    if not colon or Path(place).expanduser().exists():
        name, folder = reader or READERS.get(task, ""), place
    if task not in READERS or pipeline.kind(stage.data) != "images":
        raise ConfigError(f"{flag}: expected a task on images ({', '.join(READERS)}), found {task!r}")
    data = copy.copy(stage.data)
    alike = {} if bits_of(stage) is None else {"bits": bits_of(stage)}
    data.source, data.options, data.split = name, {"root": folder, **alike}, (0.0, 0.0, 1.0)
    data.labelled, data.augment = 1.0, {}
    return data


def records_at(place: str, loaded: Kept) -> Data:
    """All records of "TABLE" or "READER:PLACE" as test data, or what its own splits call so; their captions are read by
    the tokenizers that lie beside the weights."""
    name, colon, where = place.partition(":")
    if not colon or Path(place).expanduser().exists():
        name, where = OF_RECORDS[0], place
    if name not in OF_RECORDS:
        raise ConfigError(f"--data={place}: expected records, as {' or '.join(f'{k}:PLACE' for k in OF_RECORDS)}")
    data, before = copy.copy(loaded.stage.data), loaded.stage.data.options
    names = {
        file.removeprefix("tokenizer").removesuffix(".json").removeprefix("_"): path
        for file, path in loaded.keepsakes.items()
        if file.startswith("tokenizer")
    }
    options: dict[str, Any] = {"tokenizers": {name: {"path": str(path)} for name, path in names.items()}}
    options |= {key: before[key] for key in ("length", "missing", "cache", "bits") if key in before}
    if name == "medpix":
        options |= {"root": where, "images": "image" in build_model(loaded.stage.model).inputs}
    else:
        labels = json.loads(loaded.about.get("label_classes", "{}"))
        options |= {"table": where, "labels": {label: tuple(classes) for label, classes in labels.items()}}
    data.source, data.options, data.split = name, options, (0.0, 0.0, 1.0)
    data.labelled, data.augment = 1.0, {}
    return data


def refuse_other_labels(loaded: Kept, dataset: Any, place: str) -> None:
    """Records whose labels have other classes, or another order of them, than those of training."""
    expected, found = json.loads(loaded.about.get("label_classes", "{}")), getattr(dataset, "label_classes", {})
    faults = [
        f"{label}: expected {', '.join(classes)}, found {', '.join(found.get(label, ())) or 'no such label'}"
        for label, classes in expected.items()
        if tuple(classes) != tuple(found.get(label, ()))
    ]
    if faults:
        told = "\n  ".join([f"--data={place}: expected the labels of {loaded.path}:", *faults])
        raise ConfigError(f"{told}\nName the classes alike, or choose other data")
