"""A look at the data of a stage, as its student will see them, before anything is trained."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdjax.config import ConfigError, Experiment, Stage, nearest, task_of
from kdjax.data import pipeline
from kdjax.data.fields import IMAGE_THERE, known
from kdjax.data.images.dataset import Images
from kdjax.data.text.dataset import RecordSet
from kdjax.experiment import checks
from kdjax.experiment.plan import needed
from kdjax.report import look as page
from kdjax.tasks.classification import completed
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
    if (kind := pipeline.kind(chosen.data)) not in ("images", "records"):
        raise ConfigError(
            f"--mode=look shows images and records, and the data of stage {name!r} are {kind}; --mode=train tells "
            "what it reads and all that is wrong with it, before it trains"
        )
    dataset: Any = pipeline.build(chosen.data)
    folder = Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    html = page.render(seen(f"{experiment.name}, {name}", chosen, dataset, experiment.seed))
    kept.write(folder / PAGE, html)
    return folder / PAGE


def seen(title: str, stage: Stage, dataset: Images, seed: int) -> page.Look:
    """What the page shows of a data set."""
    labels = labels_of(dataset)
    splits = {split: counted(stage, dataset, split, labels, seed) for split in dataset.sizes}
    sizes: Counter = Counter()
    for split in dataset.sizes if with_images(dataset) else ():
        sizes.update(dataset.original_sizes(split, EXAMPLES))
    balanced = task_of(stage).options.get("balanced")
    weights = dataset.fact("class_weights") if balanced else ()
    alone = not isinstance(dataset, RecordSet)
    names = {"" if alone else label: names for label, names in labels.items()}
    size, augment = stage.data.image_size, stage.data.augment
    masks = "mask" in labels
    return page.Look(title, splits, names, masks, weights, sizes, size, augment, list(dataset.notes), dataset.item)


def labels_of(dataset: Images) -> dict[str, list[str]]:
    """The field of each label that is shown, and the names of its classes."""
    if isinstance(dataset, RecordSet):
        return {label: list(classes) for label, classes in dataset.label_classes.items()}
    if any(field.kind == "mask" for field in dataset.fields.values()):
        numbered = ["background", *(f"class {k}" for k in range(1, dataset.num_classes))]
        return {"mask": list(dataset.mask_classes or numbered)}
    return {"class": completed(dataset.image_classes, dataset.num_classes)}


def with_images(dataset: Images) -> bool:
    return any(field.kind == "image" for field in dataset.fields.values())


def counted(stage: Stage, dataset: Images, split: str, labels: dict[str, list[str]], seed: int) -> page.Split:
    """The classes of a split, and a dozen examples of it: every class among them, the rarest first."""
    usable = dataset.labelled(split)
    order = np.random.default_rng(stage.data.split_seed).permutation(dataset.sizes[split])
    total = sum(map(len, labels.values()))
    inside = np.zeros((dataset.sizes[split], total), bool)
    pixels = np.zeros(total if "mask" in labels else 0, np.int64)
    looked = [int(i) for i in order if usable[i]][:COUNTED]
    for i in looked:
        example = dataset.resized(split, i)
        counts = np.concatenate([counts_of(example.get(label), len(names)) for label, names in labels.items()])
        inside[i] = counts > 0
        pixels += counts if len(pixels) else 0
    chosen: list[int] = []
    for k in np.argsort(inside.sum(0), kind="stable"):
        having = [int(i) for i in looked if inside[i, k] and int(i) not in chosen]
        chosen += having[: int(not inside[chosen, k].any())]
    labelled = [i for i in looked if i not in chosen][: max(0, LABELLED - len(chosen))]
    chosen = list(dict.fromkeys([*chosen, *labelled, *map(int, order)]))[:EXAMPLES]
    examples = shown(stage, dataset, split, chosen, labels, seed)
    lengths = dataset.token_lengths(split) if isinstance(dataset, RecordSet) else {}
    return page.Split(dataset.sizes[split], int(usable.sum()), examples, pixels, inside.sum(0), len(looked), lengths)


def counts_of(label: Any, classes: int) -> np.ndarray:
    """How often each class occurs in a label of an example; nowhere, where it has none."""
    return np.bincount(np.ravel([] if label is None else label).astype(np.int64), minlength=classes)[:classes]


def shown(
    stage: Stage, dataset: Images, split: str, chosen: list[int], labels: dict[str, list[str]], seed: int
) -> list[page.Shown]:
    batch, masks = dataset.batch(split, np.array(chosen, np.int64)), "mask" in labels
    augment = augmentation(stage, dataset) if split == "train" and with_images(dataset) else None
    seen_in_training = jax.jit(partial(augment, named_key(seed, "augment")))(as_floats(batch)) if augment else None
    examples = []
    for row, i in enumerate(chosen):
        example, augmented = dataset.resized(split, i), None
        usable = any(bool(batch[known(label)][row]) for label in labels)
        picture = dataset.picture if example.get(IMAGE_THERE, with_images(dataset)) else ""
        if seen_in_training is not None and picture:
            image = np.asarray(seen_in_training[picture][row] * 255).round().clip(0, 255).astype(np.uint8)
            augmented = image, np.asarray(seen_in_training["mask"][row]) if masks and usable else None
        mask = example.get("mask") if masks and usable else None
        told = [names[int(example[k])] for k, names in labels.items() if k in example and not masks and usable]
        caption = dataset.caption(split, i) if isinstance(dataset, RecordSet) else ""
        label = ", ".join(told)
        examples.append(page.Shown(example["name"], example.get(picture), mask, label, usable, augmented, caption))
    return examples
