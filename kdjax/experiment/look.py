"""A look at the data of a stage, as its student will see them, before anything is trained."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdjax.config import ConfigError, Experiment, Stage, nearest, task_of
from kdjax.data import pipeline
from kdjax.data.fields import known
from kdjax.data.images.dataset import Images
from kdjax.experiment import checks
from kdjax.experiment.plan import needed
from kdjax.report import look as page
from kdjax.train import kept
from kdjax.train.setup import augmentation
from kdjax.train.step import as_floats, named_key

EXAMPLES, LABELLED = 12, 9  # of each split, and of them at least so many that have a label
COUNTED = 2_000  # examples of a split whose classes are counted at most
PAGE = "look.html"


def look(experiment: Experiment, workdir: str | Path, stage: str = "") -> Path:
    """Writes `look.html` into the working directory and touches nothing else there; without a name it is the last stage
    with teachers, else the last one."""
    checks.validate(experiment)
    name = stage or [*([k for k, s in experiment.stages.items() if s.teachers] or needed(experiment))][-1]
    if name not in experiment.stages:
        raise ConfigError(f"--stage={name}: no such stage; {nearest(name, experiment.stages)}")
    chosen = experiment.stages[name]
    if (kind := pipeline.kind(chosen.data)) != "images":
        raise ConfigError(
            f"--mode=look shows images, and the data of stage {name!r} are {kind}; --mode=train tells what it reads "
            "and all that is wrong with it, before it trains"
        )
    dataset: Any = pipeline.build(chosen.data)
    folder = Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    html = page.render(seen(f"{experiment.name}, {name}", chosen, dataset, experiment.seed))
    kept.write(folder / PAGE, html)
    return folder / PAGE


def seen(title: str, stage: Stage, dataset: Images, seed: int) -> page.Look:
    """What the page shows of a data set."""
    masks = any(field.kind == "mask" for field in dataset.fields.values())
    names = list(dataset.mask_classes or ["background", *(f"class {k}" for k in range(1, dataset.num_classes))])
    if not masks:
        given = list(dataset.image_classes)
        names = [*given, *map(str, range(len(given), dataset.num_classes))][: dataset.num_classes]
    splits = {split: counted(stage, dataset, split, names, masks, seed) for split in dataset.sizes}
    sizes: Counter = Counter()
    for split in dataset.sizes:
        sizes.update(dataset.original_sizes(split, EXAMPLES))
    balanced = task_of(stage).options.get("balanced")
    weights = dataset.fact("class_weights") if balanced else ()
    size, augment = stage.data.image_size, stage.data.augment
    return page.Look(title, splits, names, masks, weights, sizes, size, augment, list(dataset.notes))


def counted(stage: Stage, dataset: Images, split: str, names: list[str], masks: bool, seed: int) -> page.Split:
    """The classes of a split, and a dozen examples of it: every class among them, the rarest first."""
    usable = dataset.labelled(split)
    order = np.random.default_rng(stage.data.split_seed).permutation(dataset.sizes[split])
    inside = np.zeros((dataset.sizes[split], len(names)), bool)
    pixels = np.zeros(len(names) if masks else 0, np.int64)
    looked = [int(i) for i in order if usable[i]][:COUNTED]
    for i in looked:
        example = dataset.resized(split, i)
        label = example.get("mask") if masks else example.get("class")
        if label is None:
            continue
        counts = np.bincount(np.ravel(label), minlength=len(names))[: len(names)]
        inside[i] = counts > 0
        pixels += counts if masks else 0
    chosen: list[int] = []
    for k in np.argsort(inside.sum(0), kind="stable"):
        having = [int(i) for i in looked if inside[i, k] and int(i) not in chosen]
        chosen += having[: int(not inside[chosen, k].any())]
    labelled = [i for i in looked if i not in chosen][: max(0, LABELLED - len(chosen))]
    chosen = list(dict.fromkeys([*chosen, *labelled, *map(int, order)]))[:EXAMPLES]
    examples = shown(stage, dataset, split, chosen, names, masks, seed)
    return page.Split(dataset.sizes[split], int(usable.sum()), examples, pixels, inside.sum(0), len(looked))


def shown(
    stage: Stage, dataset: Images, split: str, chosen: list[int], names: list[str], masks: bool, seed: int
) -> list[page.Shown]:
    batch, picture = dataset.batch(split, np.array(chosen)), dataset.picture
    augment = augmentation(stage, dataset) if split == "train" else None
    seen_in_training = jax.jit(partial(augment, named_key(seed, "augment")))(as_floats(batch)) if augment else None
    examples = []
    for row, i in enumerate(chosen):
        example, augmented = dataset.resized(split, i), None
        usable = bool(batch[known("mask" if masks else "class")][row])
        if seen_in_training is not None:
            image = np.asarray(seen_in_training[picture][row] * 255).round().clip(0, 255).astype(np.uint8)
            augmented = image, np.asarray(seen_in_training["mask"][row]) if masks and usable else None
        mask = example.get("mask") if masks and usable else None
        label = names[int(example["class"])] if not masks and usable else ""
        examples.append(page.Shown(example["name"], example[picture], mask, label, usable, augmented))
    return examples
