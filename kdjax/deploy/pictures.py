"""Going through a folder of images with a model, and the pictures that come of it."""

import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image, PngImagePlugin

from kdjax.config import ConfigError, Experiment, Stage
from kdjax.data.images import files
from kdjax.data.images.dataset import SHOWN
from kdjax.data.images.resize import resize
from kdjax.distill.taps import Network
from kdjax.distill.teachers import build_model
from kdjax.train import sharding
from kdjax.train.setup import task_of

OURS = ("Software", "kdjax")  # written into every picture, so that only pictures of ours are ever written over
FORMATS = {"heat": ".jpg", "cam": ".jpg"}  # of what is written; all else is PNG, which keeps class ids
MADE = re.compile(r".*_(mask(_\d+)?|overlay|heat)")  # names of what is written, which are no images to predict
MARKED = "_cam"  # likewise, where the picture is marked as ours: photographs have such names too

T = TypeVar("T")
Program = Callable[[dict, dict[str, Any]], dict[str, Any]]  # (variables, batch) -> arrays with a row for each image


def bits_of(stage: Stage) -> int | None:
    """How many bits its images use in files of 16, where the config says it."""
    return stage.data.options.get("bits")


# -- the images ------------------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """An image, and what a program gives for it."""

    path: Path
    image: UInt8[np.ndarray, "h w 3"]
    small: UInt8[np.ndarray, "s s 3"]  # as the model sees it
    rows: dict[str, Any]


def network_of(stage: Stage, variables: dict) -> Network:
    """The stage's model, which gives what its task reads."""
    network = Network(build_model(stage.model, stage.dtype), names=tuple(stage.inputs.items()))
    task_of(stage).check(network.shapes(variables, shapes(network)))
    return network


def shapes(network: Network, rows: int = 1) -> dict[str, Any]:
    """Of a batch that the network reads."""
    fields: dict[str, str] = dict(network.names)
    return {str(fields.get(name, name)): spec.shape(rows) for name, spec in network.model.inputs.items()}


def as_floats(batch: dict[str, Any]) -> dict[str, Any]:
    """Images travel as bytes, and are read in [0, 1]."""
    return {k: value.astype(np.float32) / 255 if value.dtype == np.uint8 else value for k, value in batch.items()}


@cache
def predicted(network: Network, task: Any) -> Program:
    """What the task predicts of each image."""

    def run(variables: dict, batch: dict[str, Any]) -> dict[str, jax.Array]:
        batch = as_floats(batch)
        return task.predict(network(variables, batch)[0], batch)

    return jax.jit(run)


def going_through(
    paths: list[Path], stage: Stage, experiment: Experiment, variables: dict, program: Program, pool: ThreadPoolExecutor
) -> Iterator[Seen]:
    """Each image with what `program` gives for it."""
    side, bits = stage.data.image_size, bits_of(stage)

    def read(i: int) -> tuple[np.ndarray, dict[str, Any]]:
        image = files.read_image(str(paths[i]), bits=bits)
        return image, {"image": resize(image, (side, side)), "index": np.int32(i)}

    for path, (image, fields, rows) in zip(
        paths, in_batches(read, len(paths), stage, experiment, variables, program, pool), strict=True
    ):
        yield Seen(path, image, fields["image"], rows)


def in_batches(
    read: Callable[[int], tuple[T, dict[str, Any]]],
    count: int,
    stage: Stage,
    experiment: Experiment,
    variables: dict,
    program: Program,
    pool: ThreadPoolExecutor,
) -> Iterator[tuple[T, dict[str, Any], dict[str, Any]]]:
    """Of each of `count` examples what `read` gives, the second of which are its fields of a batch, and what `program`
    makes of these, in batches of one shape, so that it compiles once. While a batch is computed the next is read."""
    mesh = sharding.make_mesh(experiment.mesh)
    shares = sharding.shares(mesh)
    size = -(-min(stage.data.batch_size, count) // shares) * shares
    variables = sharding.place(variables, sharding.shardings(variables, mesh, experiment.mesh.rules))

    def begun(chunk: range) -> list[Any]:
        return [pool.submit(read, i) for i in chunk]

    chunks = [range(begin, min(begin + size, count)) for begin in range(0, count, size)]
    waiting = begun(chunks[0])
    for following in [*chunks[1:], range(0)]:
        examples = [reading.result() for reading in waiting]
        batch = {name: padded([fields[name] for _, fields in examples], size) for name in examples[0][1]}
        rows = program(variables, sharding.global_batch(batch, mesh))
        waiting = begun(following)
        rows = jax.device_get(rows)
        for i, (kept, fields) in enumerate(examples):
            yield kept, fields, {name: values[i] for name, values in rows.items()}


def padded(values: list[Any], size: int) -> np.ndarray:
    """These rows, and rows of zeros behind them."""
    rows = np.stack(values)
    return np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)])


# -- the files -------------------------------------------------------------------------------------------------------


def plan(
    images: Path, output: Path, kinds: tuple[str, ...], bits: int | None = None, marks: dict[str, str] | None = None
) -> dict[Path, Path]:
    """Image -> where its results of these kinds go, without kind and suffix; raises one error with everything that
    stands in the way. `marks` are of the other files that are written: name -> what one of ours has near its top."""
    paths = listed(images)
    top = images.parent if images.is_file() else images
    targets, taken = {}, {}
    unreadable = faults_of(paths, bits)
    faults = [
        fault_of_foreign(output / name) for name, mark in (marks or {}).items() if not marked(output / name, mark)
    ]
    for path in paths:
        target = output / path.relative_to(top).with_suffix("")
        if kinds and target in taken:
            faults.append(f"{path} and {taken[target].name} would share one {kinds[0]}; rename one of them")
        targets[path] = taken[target] = target
        faults += map(fault_of_foreign, foreign([named(target, kind) for kind in kinds]))
        faults += [unreadable[path]] if unreadable[path] else []
        faults += [files.unwritable(str(path))] if marks and files.as_utf8(str(path)) != str(path) else []
    refuse(f"the images in {images} cannot be predicted:", faults)
    return targets


def listed(images: Path) -> list[Path]:
    """The image, or every image in the folder and in the folders inside it, but for what came of another one."""
    if images.is_file():
        paths = [images] if images.suffix.lower() in files.PICTURES else []
    elif images.is_dir():
        paths = [path for path in files.listing(images) if not made(path)]
    else:
        raise ConfigError(files.missing(images, "a folder of images").replace("set root", "set --images"))
    if not paths:
        raise ConfigError(f"{images}: expected images ({', '.join(files.SUFFIXES)}), found none; set --images")
    return paths


def refuse(what: str, faults: list[str]) -> None:
    """Raises one error with the faults, if there are any."""
    if faults:
        more = [f"... and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        raise ConfigError("\n  ".join([what, *faults[:SHOWN], *more]))


def made(path: Path) -> bool:
    """Whether a picture is what came of another one."""
    return bool(MADE.fullmatch(path.stem)) or (path.stem.endswith(MARKED) and is_ours(path))


def faults_of(paths: list[Path], bits: int | None) -> dict[Path, str]:
    """Why each image cannot be read; "" where it can."""
    with ThreadPoolExecutor() as pool:
        return dict(zip(paths, pool.map(partial(fault_of, bits=bits), paths), strict=True))


def fault_of(path: Path, bits: int | None) -> str:
    """Why an image cannot be read; "" where it can."""
    try:
        files.read_image(str(path), bits=bits)
    except ConfigError as error:
        return str(error)
    return ""


def fault_of_foreign(path: Path) -> str:
    return f"{path}: a file that kdjax did not write; choose another --output"


def marked(path: Path, mark: str) -> bool:
    """Whether a text is ours, or not there yet."""
    if not path.exists():
        return True
    with open(path, encoding="utf-8", errors="replace") as file:
        return mark in file.read(1000)


def foreign(paths: list[Path]) -> list[Path]:
    """Files where results belong, such as true masks, that are not earlier results."""
    return [path for path in paths if path.exists() and not is_ours(path)]


def is_ours(path: Path) -> bool:
    try:
        with Image.open(path) as picture:
            return OURS[1] in (picture.info.get(OURS[0]), picture.info.get("comment", b"").decode(errors="replace"))
    except (OSError, SyntaxError):
        return False


def named(target: Path, what: str) -> Path:
    return target.with_name(f"{target.name}_{what}{FORMATS.get(what, '.png')}")


def save(path: Path, picture: UInt8[np.ndarray, "h w *c"]) -> None:
    """A whole picture or none, PNG or JPEG by its name, marked as ours."""
    text = PngImagePlugin.PngInfo()
    text.add_text(*OURS)
    written: dict[str, Any] = {"format": "PNG", "pnginfo": text}
    if path.suffix == ".jpg":
        written = {"format": "JPEG", "quality": 90, "comment": OURS[1]}
    partial = path.with_name(f".{path.name}.partial")
    try:
        Image.fromarray(picture).save(partial, **written)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
