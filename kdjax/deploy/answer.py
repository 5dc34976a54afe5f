"""Labels of new records, images with captions: a table, and a page to look at."""

import csv
import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from kdjax.config import Experiment
from kdjax.data.images import files
from kdjax.data.text.source import Record
from kdjax.deploy import classify, pictures, predict, records
from kdjax.deploy.classify import PAGE, TABLE
from kdjax.deploy.predict import Kept
from kdjax.report import predictions
from kdjax.report.figures import curves
from kdjax.report.page import MADE
from kdjax.report.predictions import Answer, Ranking, Shown
from kdjax.tasks.answers import SHARES, Answers, logits_of, temperature_of
from kdjax.tasks.classification import completed
from kdjax.train.kept import write
from kdjax.train.setup import task_of

TOP = 3  # classes of a label on the page
PARTS = ("image", "text")  # what shares are of


class Head(NamedTuple):
    """How a label is read from what is predicted."""

    logits: str
    classes: list[str]
    temperature: float


def answer(
    experiment: Experiment,
    workdir: str | Path,
    stage: str,
    weights: str,
    images: str,
    captions: str,
    output: str | Path,
) -> dict[str, Any]:
    """Writes `predictions.csv`, a line for each record with the class of each label and its probability, and
    `index.html`.

    Everything wrong with images and captions is said at once, before anything is written. Returns how many records
    there were, and notes on what they lack.
    """
    output, loaded = Path(output).expanduser(), predict.opened(experiment, workdir, stage, weights)
    network, plain = pictures.network_of(loaded.stage, loaded.whole), loaded.stage
    given = records.given(loaded, network.model, images, captions)
    marks = {TABLE: "image,caption,", PAGE: MADE}
    foreign = [output / name for name, mark in marks.items() if not pictures.marked(output / name, mark)]
    faults = [*given.faults, *map(pictures.fault_of_foreign, foreign)]
    pictures.refuse("the records cannot be predicted:", faults)
    batches, cut = records.batches(loaded, network.model, given.records)
    program, by_label = pictures.predicted(network, task_of(plain)), heads(loaded)
    output.mkdir(parents=True, exist_ok=True)
    answers, notes = [], [*given.notes, *cut]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for record, _, rows in pictures.in_batches(
            batches.read, len(given.records), plain, experiment, loaded.whole, program, pool
        ):
            answers.append(told(record, rows, by_label))
        write(output / TABLE, table(answers))
        stored = {record.name: record.image for record in given.records if isinstance(record.image, str)}
        small = partial(thumbnail, stored=stored, bits=batches.bits)
        shown = list(pool.map(small, predictions.first(answers)))
    title = f"{' with '.join(filter(None, (images, captions)))} by {loaded.path}"
    note = " ".join(f"{note}." for note in notes)
    write(output / PAGE, predictions.render(title, answers, shown, note, TABLE, "record"))
    return {"records": len(answers), "notes": notes}


def heads(loaded: Kept) -> dict[str, Head]:
    """Of each label that the stage's model has learned; a classifier has but one, its class."""
    task, calibrated = task_of(loaded.stage), predict.calibrated(loaded.about)
    if not isinstance(task, Answers):
        return {"class": Head("logits", classify.names_of(loaded), calibrated.get("temperature", 1.0))}
    names = json.loads(loaded.about.get("label_classes", "{}"))
    return {
        label: Head(logits_of(label), names.get(label, []), calibrated.get(temperature_of(label), 1.0))
        for label in task.labels
    }


def told(record: Record, rows: dict[str, Any], by_label: dict[str, Head]) -> Answer:
    labels: dict[str, Ranking] = {}
    for label, head in by_label.items():
        logits = rows[head.logits]
        labels[label] = classify.ranking(logits, completed(head.classes, len(logits)), head.temperature, TOP)
    shares: dict[str, float] = {}
    if SHARES in rows:
        shares = {part: float(share) for part, share in zip(PARTS, rows[SHARES], strict=True)}
    return Answer(record.name, labels, record.caption, shares)


def table(answers: list[Answer]) -> str:
    text = io.StringIO()
    lines = csv.writer(text)
    labels = [column for label in answers[0].labels for column in (label, f"{label}_probability")]
    lines.writerow(["image", "caption", *labels, *(f"{part}_share" for part in answers[0].shares)])
    for one in answers:
        first = [(ranked.classes[0], f"{ranked.probabilities[0]:.6f}") for ranked in one.labels.values()]
        shares = [f"{share:.6f}" for share in one.shares.values()]
        lines.writerow([one.name, one.caption or "", *(cell for pair in first for cell in pair), *shares])
    return text.getvalue()


def thumbnail(answer: Answer, stored: dict[str, str], bits: int | None) -> Shown:
    """A record of the page, with its image where it has one."""
    path = stored.get(answer.name)
    return Shown(answer, curves.resize(files.read_image(path, bits=bits), predictions.SIDE) if path else None)
