"""Using what a stage left behind: scores on its test images, and masks for a folder of new images."""

import copy
import dataclasses
import json
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8

from kdjax import config
from kdjax.config import ConfigError, Data, Experiment, Optim, Stage, nearest
from kdjax.data import pipeline
from kdjax.data.graphs.packs import KEEPSAKE
from kdjax.data.images.resize import resize
from kdjax.data.text.tokenizers import SETTINGS
from kdjax.deploy import pictures
from kdjax.distill.taps import Network
from kdjax.distill.teachers import build_model
from kdjax.experiment import checks
from kdjax.experiment.plan import with_controls, without_teachers
from kdjax.experiment.resolve import CLASSES, resolved
from kdjax.experiment.workdir import MODEL, as_left, stage_folder, weights_file
from kdjax.report.figures import curves, legend
from kdjax.train.setup import initial_shapes
from kdjax.weights import safetensors


def predict(
    experiment: Experiment, workdir: str | Path, stage: str, weights: str, images: str | Path, output: str | Path
) -> int:
    """Writes `NAME_mask.png` and `NAME_overlay.png`, at the image's own size, for one image, or for every image in a
    folder and in the folders inside it, whose places they keep. Returns how many images there were.

    Masks hold 0 and 255 for two classes, else class ids; overlays of several classes, or of named ones, name the
    colours in a strip below. No training data is needed. Everything wrong with the images is said at once, before
    anything is written.
    """
    images, output = Path(images).expanduser(), Path(output).expanduser()
    _, plain, variables, *_ = opened(experiment, workdir, stage, weights)
    targets = pictures.plan(images, output, ("mask", "overlay"), pictures.bits_of(plain))
    data = plain.data
    names = ("background", *data.classes) if data.classes else ()
    swatches = legend.colours(data.class_count, names) if names or data.class_count > 2 else {}
    program = compiled(pictures.network_of(plain, variables))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for seen in pictures.going_through(list(targets), plain, experiment, variables, program, pool):
            image, target = seen.image, targets[seen.path]
            mask = classes(seen.rows["logits"], (image.shape[0], image.shape[1]))
            target.parent.mkdir(parents=True, exist_ok=True)
            pictures.save(pictures.named(target, "mask"), mask * np.uint8(255) if data.num_classes == 2 else mask)
            shown = curves.overlay(image, mask.astype(np.int32))
            pictures.save(pictures.named(target, "overlay"), legend.below(shown, swatches) if swatches else shown)
    return len(targets)


# -- the model -------------------------------------------------------------------------------------------------------


def chosen(experiment: Experiment, name: str) -> tuple[str, Stage]:
    """The stage of that name, controls included, as its finished model is: plain, with nothing left to learn."""
    stages = with_controls(experiment)
    if not name:
        name = [*([k for k, s in experiment.stages.items() if s.teachers] or experiment.stages)][-1]
    if name not in stages:
        raise ConfigError(f"--stage={name}: no such stage; {nearest(name, stages)}")
    plain = without_teachers(stages[name])
    its = {"title": stages[name].title, "folder": stages[name].folder}
    plain = dataclasses.replace(plain, **its, terms={}, init="", init_skip=(), lora=None)
    return name, dataclasses.replace(plain, optim=Optim(), gate=None)


def kind_of(experiment: Experiment, name: str) -> str:
    """What the stage's model reads: "images", "graphs" or "nodes"."""
    return pipeline.kind(chosen(experiment, name)[1].data)


def task_name(experiment: Experiment, name: str) -> str:
    """What the stage's model has learned."""
    return config.task_of(chosen(experiment, name)[1]).name


class Kept(NamedTuple):
    """A file of weights for a stage's model."""

    path: Path
    stage: Stage  # with all options of its model known
    whole: dict  # the variables in the file
    about: dict[str, str]  # its metadata
    keepsakes: dict[str, Path]  # what its users must know of its data: files beside it, or else in the stage's folder


def opened(experiment: Experiment, workdir: str | Path, stage: str, weights: str) -> Kept:
    """The model of a stage, to go through images with in one process."""
    checks.validate(experiment)
    if jax.process_count() > 1:
        raise ConfigError("--mode=predict runs in one process; leave --coordinator out, or share out the images")
    name, plain = chosen(experiment, stage)
    return load(plain, Path(workdir), name, weights)


def load(stage: Stage, workdir: Path, name: str, weights: str) -> Kept:
    """What the stage left, or another file; refused where it is not for the stage's model."""
    folder = stage_folder(workdir, name, stage)
    path = Path(weights_file(weights)).expanduser() if weights else folder / MODEL
    if not weights and not path.is_file():
        raise ConfigError(
            f"stage {name!r} has left no {path} yet, or it is gone: train the run, which makes it anew of a finished "
            "stage, or name a file with --weights"
        )
    variables, about = safetensors.load(path if weights else as_left(path))
    try:
        model = safetensors.model_in(about)
        options = as_told(stage.model.options, model.options if model else {})
        stage = dataclasses.replace(stage, model=config.Model(stage.model.name, **options))
        stage = resolved(stage, {}, model)
        variables = safetensors.overlay(initial_shapes(build_model(stage.model)), variables)
    except (ConfigError, safetensors.WeightsError) as error:
        raise ConfigError(f"{path} for stage {name!r}: {error}") from error
    stage = dataclasses.replace(stage, data=as_trained_on(stage.data, about))
    return Kept(path, stage, variables, about, keepsakes_in(folder) | keepsakes_in(path.parent))


def keepsakes_in(folder: Path) -> dict[str, Path]:
    """How logs become graphs, and captions tokens: the files that say it, by their names."""
    names = (KEEPSAKE, *sorted(path.name for path in folder.glob("tokenizer*.json") if path.name != SETTINGS))
    return {name: as_left(folder / name) for name in names if (folder / name).is_file()}


def as_trained_on(data: Data, about: dict[str, str]) -> Data:
    """The data with the classes that the stage found in them, which the file tells."""
    trained_data = copy.copy(data)
    trained_data.num_classes = int(about.get("num_classes", 2)) if data.num_classes is None else data.num_classes
    trained_data.classes = data.classes or tuple(json.loads(about.get("mask_classes", "[]")))[1:]
    return trained_data


def as_told(options: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Options of a model, and of the models inside it, completed by those in `before`, which the data gave; an option
    that neither has keeps the model's default. Classes and vocabulary are the data's where the config is silent."""
    options = {**{name: None for name in (*CLASSES, "vocabulary") if name in before}, **options}
    inside = {k: as_told(v, before.get(k) or {}) for k, v in options.items() if isinstance(v, dict)}
    merged = {k: before.get(k) if v is None else v for k, v in {**options, **inside}.items()}
    return {k: v for k, v in merged.items() if v is not None}


def calibrated(about: dict[str, str]) -> dict[str, float]:
    """The values set on validation data, from the metadata of a file of weights; a model of several labels has a
    "temperature_LABEL" of each."""
    return {k: float(v) for k, v in about.items() if k in ("threshold", "temperature") or k.startswith("temperature_")}


@cache
def compiled(network: Network) -> Any:
    """(variables, a batch of images as files have them) -> the logits of each."""
    return jax.jit(lambda v, b: {"logits": network(v, pictures.as_floats(b))[0]["logits"].astype("float32")})


def classes(logits: Float[np.ndarray, "h w k"], size: tuple[int, int]) -> UInt8[np.ndarray, "_ _"]:
    """The class of every pixel of an image of `size` (height, width): first the logits are resized, then decided."""
    large = resize(logits, size)
    chosen = large[..., 0] > 0 if large.shape[-1] == 1 else large.argmax(axis=-1)
    return chosen.astype(np.uint8)
