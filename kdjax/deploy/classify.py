"""Classes of new images: a table, a page to look at, and where in each image the model sees its class."""

import csv
import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from scipy.special import softmax

from kdjax.config import ConfigError, Experiment, nearest
from kdjax.data.images import files
from kdjax.deploy import gradcam, pictures, predict
from kdjax.deploy.predict import Kept
from kdjax.report import predictions
from kdjax.report.figures import curves, heat, legend
from kdjax.report.page import MADE
from kdjax.report.predictions import ALONE, Answer, Ranking, Shown
from kdjax.report.tables import percent
from kdjax.train.kept import write
from kdjax.train.setup import task_of

TABLE, PAGE = "predictions.csv", "index.html"
COLUMNS = ("image", "predicted", "probability", "energy")
TOP = 5  # classes of an image that are told
SIDES = (224, 1024)  # least and most pixels of an overlay's longer side: room for its line; what it shows is coarse


def classify(
    experiment: Experiment,
    workdir: str | Path,
    stage: str,
    weights: str,
    images: str | Path,
    output: str | Path,
    layer: str = "",
    of: str = "",
) -> dict[str, Any]:
    """Writes `predictions.csv`, `index.html`, and with a `layer` (`gradcam.LAST`: the last map) `NAME_cam.jpg`, where
    it sees the class `of`, or else the one that is predicted.

    Everything wrong with the images is said at once, before anything is written. Returns how many images there were,
    and the name of the layer.
    """
    images, output = Path(images).expanduser(), Path(output).expanduser()
    loaded = predict.opened(experiment, workdir, stage, weights)
    plain, variables, names = loaded.stage, loaded.whole, names_of(loaded)
    explained = number_of(of, names) if of else None
    network, bits = pictures.network_of(plain, variables), pictures.bits_of(plain)
    among = gradcam.candidates(network, variables, pictures.shapes(network), layer) if layer else []
    marks = {TABLE: ",".join(COLUMNS), PAGE: MADE}
    targets = pictures.plan(images, output, ("cam",) if layer else (), bits, marks)
    program, at = pictures.predicted(network, task_of(plain)), None
    if layer:
        at = gradcam.first_read(network, variables, plain.data.image_size, among)
        program = gradcam.explaining(network, task_of(plain), at, explained)
    temperature = predict.calibrated(loaded.about).get("temperature", 1.0)
    output.mkdir(parents=True, exist_ok=True)
    top, answers, energies, drawn = images if images.is_dir() else images.parent, [], [], []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for seen in pictures.going_through(list(targets), plain, experiment, variables, program, pool):
            logits, name = seen.rows["logits"], seen.path.relative_to(top).as_posix()
            answers.append(Answer(name, {ALONE: ranking(logits, names, temperature, TOP)}))
            energies.append(-float(np.logaddexp.reduce(logits, dtype=np.float64)))
            if layer:
                told = spoken_for(logits, names, temperature, explained)
                drawn.append(pool.submit(draw, targets[seen.path], seen.image, seen.rows["cam"], told))
        for picture in drawn:
            picture.result()
        write(output / TABLE, table(answers, energies))
        pair = partial(thumbnails, top=top, targets=targets if layer else {}, bits=bits)
        shown = list(pool.map(pair, predictions.first(answers)))
    note = f"On the right what speaks for {of or 'the answer'}: Grad-CAM++ at {at.name}" if at else ""
    write(output / PAGE, predictions.render(f"{images} by {loaded.path}", answers, shown, note, TABLE))
    return {"images": len(answers), "layer": at.name if at else ""}


def names_of(loaded: Kept) -> list[str]:
    """Of all classes; one without a name is called by its number."""
    told, count = json.loads(loaded.about.get("image_classes", "[]")), loaded.stage.data.class_count
    return [*told, *map(str, range(len(told), count))][:count]


def number_of(name: str, names: list[str]) -> int:
    if name not in names:
        raise ConfigError(f"--of={name}: no such class; {nearest(name, names)}")
    return names.index(name)


def probabilities(logits: Float[np.ndarray, " k"], temperature: float) -> Float[np.ndarray, " k"]:
    return softmax(logits.astype(np.float64) / temperature)


def ranking(logits: Float[np.ndarray, " k"], names: list[str], temperature: float, most: int) -> Ranking:
    """So many of the most probable classes."""
    sure = probabilities(logits, temperature)
    order = np.argsort(-sure, kind="stable")[:most]
    return Ranking(tuple(names[k] for k in order), tuple(float(sure[k]) for k in order))


def spoken_for(logits: Float[np.ndarray, " k"], names: list[str], temperature: float, of: int | None) -> str:
    """The class that an overlay explains, and its probability."""
    k = int(logits.argmax()) if of is None else of
    return f"{names[k]}, {percent(probabilities(logits, temperature)[k])}"


def draw(target: Path, image: UInt8[np.ndarray, "h w 3"], cam: Float[np.ndarray, "r c"], told: str) -> None:
    """The overlay, with the class that it is of in a strip below."""
    target.parent.mkdir(parents=True, exist_ok=True)
    side = max(image.shape[:2])
    if side != (fitting := min(max(side, SIDES[0]), SIDES[1])):
        image = curves.resize(image, fitting)
    shown = legend.below(heat.evidence(image, cam), heat.swatches(told))
    pictures.save(pictures.named(target, "cam"), shown)


def thumbnails(answer: Answer, top: Path, targets: dict[Path, Path], bits: int | None) -> Shown:
    """An image of the page, and its overlay where there are `targets`, at which these lie."""
    path = top / answer.name
    image = files.read_image(str(path), bits=bits)
    small = curves.resize(image, predictions.SIDE)
    if not targets:
        return Shown(answer, small)
    overlay = files.read_image(str(pictures.named(targets[path], "cam")))
    wide = overlay.shape[1]  # without the strip
    return Shown(
        answer, small, curves.resize(overlay[: round(wide * image.shape[0] / image.shape[1])], predictions.SIDE)
    )


def table(answers: list[Answer], energies: list[float]) -> str:
    """Of each image its classes, and the energy -log Σ exp(logits) (Liu et al. 2020, arXiv 2010.03759), which is high
    of images that are like none of those of training."""
    text = io.StringIO()
    lines = csv.writer(text)
    count = len(answers[0].labels[ALONE].classes)
    lines.writerow([*COLUMNS, *(f"{name}_{i}" for i in range(2, count + 1) for name in COLUMNS[1:3])])
    for one, energy in zip(answers, energies, strict=True):
        ranked = one.labels[ALONE]
        (name, share), *others = zip(ranked.classes, (f"{p:.6f}" for p in ranked.probabilities), strict=True)
        lines.writerow([one.name, name, share, f"{energy:.6g}", *(cell for other in others for cell in other)])
    return text.getvalue()
