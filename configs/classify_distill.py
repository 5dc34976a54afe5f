"""A convolutional network distilled into one of a tenth its size or less: digits, CIFAR-100, any folder of images.

    python -m kdjax.launch --config=configs/classify_distill.py                  digits, nothing to download
    python -m kdjax.launch --config=configs/classify_distill.py:smoke            the same, tiny
    python -m kdjax.launch --config=configs/classify_distill.py:cifar100=DIR     the folder of cifar-100-python
    python -m kdjax.launch --config=configs/classify_distill.py:tfds=NAME,K      K classes; pip install 'kdjax[tfds]'
    python -m kdjax.launch --config=configs/classify_distill.py:classes=DIR,K    DIR/CLASS/*.png, or DIR/train/CLASS/*

The teacher learns from mixed images (mixup, CutMix), the student from its softened logits (Hinton et al. 2015, arXiv
1503.02531), from its last map, and from the labels. Of the digits one in ten is labelled, for teacher and student
alike; what the teacher says of the others is what distillation adds. Everywhere else all labels are used. K may be left
out: there are as many classes as are found.

Digits, accuracy on 270 test images over seeds 0 to 2, mean and standard deviation: teacher 0.991 ± 0.008 (308,458
parameters), student 0.983 ± 0.006 (19,906), the same without teacher 0.957 ± 0.002. A run takes 110 s of processor
time, 3 min on two cores that others used too (load 5); smoke 33 s. The other variants have not been run.
"""

from typing import Any

from kdjax.config import ConfigError, Data, Experiment, Model, Optim, Stage, Teacher, Term, nearest

VARIANTS = ("", "smoke", "cifar100", "tfds", "classes")
SIZES = {"": 16, "smoke": 8, "cifar100": 32, "tfds": 64, "classes": 64}  # pixels
EPOCHS = {"": (24, 20), "smoke": (2, 2)}  # of teacher and student; digits: an epoch of labelled images is a short one


def get_config(variant: str = "") -> Experiment:
    variant, _, place = variant.partition("=")
    if variant not in VARIANTS:
        raise ConfigError(f"configs/classify_distill.py has no variant {variant!r}; {nearest(variant, VARIANTS[1:])}")
    smoke, digits, size = variant == "smoke", variant in ("", "smoke"), SIZES[variant]
    large, small = ("small", "nano") if digits else ("base", "small")
    shared: dict[str, Any] = {"image_size": size, "num_classes": None}
    thin = ({"widths": (16, 32, 32)}, {"widths": (4, 8, 8)}) if smoke else ({}, {})
    epochs = EPOCHS.get(variant, (60, 60))
    average = 0.9 if smoke else 0.98
    # Digits are not mirrored, and a mixed digit can be another digit.
    augment = {"crop": 0.5, "rotate": 0.5} if digits else {"crop": 1.0, "hflip": 0.5}
    mixing = {"mixup": 0.3} if digits else {"mixup": 0.4, "cutmix": 0.4}

    teacher = Stage(
        task="classification",
        title="teacher",
        data=images(variant, place, augment | mixing),
        model=Model("convnet", variant=large, **shared, **thin[0]),
        optim=Optim("adamw", lr=2e-3, warmup=0.5, weight_decay=0.02, ema=average),
        epochs=epochs[0],
        grad_norms_every=0,
    )
    student = Stage(
        task="classification",
        title="student, distilled",
        data=images(variant, place, augment),
        model=Model("convnet", variant=small, **shared, **thin[1]),
        teachers={"large": Teacher(stage="teacher")},
        terms={
            "ce": Term("ce", label="class", weight=0.3),
            "kl": Term("kl", teacher="large:logits", weight=1.0, args={"temperature": 3.0}),
            "map": Term("mse", "stage_2", "large:stage_2", adapter="conv_bn_relu", weight=0.3),
        },
        optim=Optim("adamw", lr=4e-3, warmup=0.5, weight_decay=0.02, ema=average),
        epochs=epochs[1],
        grad_norms_every=0 if smoke else 5,
    )
    stages = {"teacher": teacher, "student": student}
    return Experiment(name="classify_distill", stages=stages, quick_compile=smoke)


def images(variant: str, place: str, augment: dict[str, float]) -> Data:
    """The images of a variant; `place` is the folder or the name after its "=", with ",K" where K classes are named."""
    common: dict[str, Any] = {"image_size": SIZES[variant], "augment": augment}
    if variant in ("", "smoke"):
        return Data("digits", num_classes=10, batch_size=64, labelled=0.1, **common)
    if variant == "cifar100":
        return Data("cifar", root=place or "data/cifar-100-python", num_classes=100, batch_size=128, **common)
    name, comma, count = place.rpartition(",")
    name, classes = (name, int(count)) if comma and count.isdigit() else (place, None)
    common |= {"num_classes": classes, "batch_size": 64}
    if variant == "tfds":
        return Data("tfds", name=name or "cifar10", **common)
    return Data("classes", root=name or "data/images", **common)
