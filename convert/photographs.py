"""What photographs tell of a checkpoint: by which value of an option its BatchNorms get what they got in training."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps

from convert.family import Converted, ConvertError, Family, build, spelled
from convert.onto import read
from convert.sources import plain
from kdjax.models.layers.resize import resize
from kdjax.models.statistics import MOST, Judgement, judge

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def chosen(
    family: Family, fitted: Callable[[Mapping[str, Any]], Converted], given: Mapping[str, Any], place: str
) -> tuple[dict, str]:
    """The options with the one that photographs tell, and what they tell of it. One that they do not tell is refused,
    unless it is given; one that is given and that they speak against is warned about. `fitted` is the checkpoint as a
    model of such options."""
    option, given = family.told_by_photographs, spelled(family, given)
    values = build(next(iter(family.variants.values()))).choices[option]
    trial = fitted({**given, option: given.get(option, values[0])})
    judged = judged_by(trial, option, Path(place))
    if option in given:
        warning = judged.mismatch(given[option])
        return given, f"WARNING, {warning}" if warning else judged.summary()
    if len(judged.fitting) != 1:
        raise ConvertError(
            f"{place} does not tell the {option} of this {trial.model.name}; {judged.summary()}. Add --set "
            f"{option}=... if you know it from where the file comes from, or give more photographs, of the kind it was "
            "trained with"
        )
    return {**given, option: judged.fitting[0]}, judged.summary()


def judged_by(converted: Converted, option: str, place: Path) -> Judgement:
    images = photographs(place, build(converted.model).inputs["image"].hw)
    return judge(converted.model, read(converted.variables), images, option)


def photographs(place: Path, hw: tuple[int, int]) -> np.ndarray:
    """[n, h, w, 3] in [0, 1], resized as the model's view of them is: a file, or some of those in a folder, evenly."""
    files = [place] if place.is_file() else sorted(x for x in place.rglob("*") if x.suffix.lower() in SUFFIXES)
    if not files:
        raise ConvertError(f"{place}: expected a photograph or a folder of photographs ({', '.join(SUFFIXES)})")
    return np.concatenate([photograph(file, hw) for file in files[:: -(-len(files) // MOST)]])


def photograph(file: Path, hw: tuple[int, int]) -> np.ndarray:
    try:
        with Image.open(file) as image:
            pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"), np.float32) / 255
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # as Pillow has it
        raise ConvertError(f"{file}: no photograph that can be read ({plain(str(error))}); leave it out") from error
    return np.asarray(resize(jnp.asarray(pixels[None]), hw, antialias=True))
