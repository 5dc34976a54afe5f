"""Fine-grained images in three stages: SupCon, a margin, distillation into a model of a tenth of the size.

    python -m kdjax.launch --config=configs/image_pipeline.py                     drawn beetles, nothing to download
    python -m kdjax.launch --config=configs/image_pipeline.py:smoke               the same, tiny
    python -m kdjax.launch --config=configs/image_pipeline.py:digits              handwritten ones, nothing to download
    python -m kdjax.launch --config=configs/image_pipeline.py:cifar100=DIR        the folder of cifar-100-python
    python -m kdjax.launch --config=configs/image_pipeline.py:tfds=NAME           pip install 'kdjax[tfds]'
    python -m kdjax.launch --config=configs/image_pipeline.py:classes=DIR         DIR/CLASS/*.png, or DIR/train/CLASS/*
    python -m kdjax.launch --config=configs/image_pipeline.py --stage=supcon      one stage

`supcon` warms a hybrid of a convolutional network and a transformer up: views of the images of a class come to lie
close (SupCon, arXiv 2004.11362). `teacher` tells its classes apart by a margin (ArcFace, arXiv 1801.07698). `student`
learns from the teacher's answers, and from the features of a published one, on the clean image while it sees the mixed
one. What a part of it is worth:

    --config.stages.teacher.init= --config.stages.teacher.init_skip="()"          the margin without SupCon before it
    --config.stages.teacher.terms.ce.args.margin=0.0                              the teacher without a margin
    --config.stages.student.terms.features.weight=0.4                             its features, too

and the control of the student is the same without a teacher.

`:classes=DIR,small` takes the models of the beetles, at 32 pixels. Without it images of one's own are for ConvNeXt-V2
and Swin-V2, which start from published weights where these are named:
`:classes=DIR,convolutional=weights/convnextv2.safetensors,transformer=weights/swinv2.safetensors`. They are trained as
the original trains: sharpness-aware steps of AdamW, lookahead, centralised gradients, one cycle, clipping, an average.

Beetles, 200 of 1,600 labelled, accuracy on 800 test images, mean of three seeds: hybrid 0.825 (261,174 parameters),
student 0.770 (21,896), the same without teacher 0.280, or 0.686 with the teacher's augmentation; 232 s on two idle
cores of an AMD EPYC. Published models were built, and have not been trained.
"""

from typing import Any

from kdjax.config import ConfigError, Data, Experiment, Model, Optim, Stage, Teacher, Term, nearest

VARIANTS = ("", "smoke", "digits", "cifar100", "tfds", "classes")
PARTS = ("convolutional", "transformer")  # behind a comma: weights that a part of the hybrid starts from; or "small"
SIZES = {"": 32, "smoke": 32, "digits": 16, "cifar100": 64, "tfds": 128, "classes": 128}  # pixels
# Of supcon, teacher and student; beetles want many small steps. Published models: (30, 60, 60) and 64.
EPOCHS = {"": (6, 12, 20), "smoke": (1, 1, 1), "digits": (8, 16, 24)}
BATCH = {"": (32, 32, 16), "smoke": (32, 32, 16)}  # images; of other small models: (64, 64, 32)
TOGETHER = {"student": "student:features", "labels": "batch:class", "index": "batch:index"}
HEAD = ("params/head/.*",)


def get_config(variant: str = "") -> Experiment:
    variant, place, small, files = read(variant)
    smoke, size = variant == "smoke", 32 if small and variant != "digits" else SIZES[variant]
    large, tiny = small_models(variant, size) if small else published_models(size)
    scale, margin = (16.0, 0.2) if small else (64.0, 0.5)
    # Of the labels, the teacher's answers and its features. Of drawn images few have labels, and it speaks of all.
    weights = (0.2, 0.8, 0.0) if small else (0.7, 0.15, 0.15)
    hard = {"margin": 0.0 if small else margin, "gamma": 2.0, "label_smoothing": 0.1}  # focal
    cosine: dict[str, Any] = {"head": "cosine", "scale": scale, "num_classes": None}
    epochs = EPOCHS.get(variant, (30, 60, 60))
    batch = BATCH.get(variant, (64, 64, 32) if small else (64, 64, 64))
    data: dict[str, Any] = {"variant": variant, "place": place, "size": size}

    supcon = Stage(
        task="contrastive",
        title="hybrid, SupCon alone",
        data=images(**data, batch=batch[0], coloured=True, copies=3 if variant in BATCH else 2),
        model=Model("hybrid", num_classes=0, **large),
        parts=files,
        terms={"supcon": Term("supcon", reads=TOGETHER, args={"temperature": 0.1 if small else 0.07})},
        optim=optim(small, 5e-4),
        epochs=epochs[0],
        grad_norms_every=0,
    )
    teacher = Stage(
        task="classification",
        title="hybrid, SupCon and margin",
        data=images(**data, batch=batch[1], coloured=True),
        model=Model("hybrid", **large, **cosine),
        init="stage:supcon",
        init_skip=HEAD,
        terms={"ce": Term("arcface", "cosines", label="class", args={"scale": scale, "margin": margin})},
        optim=optim(small, 3e-4),
        epochs=epochs[1],
        grad_norms_every=0,
    )
    student = Stage(
        task="classification",
        title="student, distilled",
        data=images(**data, batch=batch[2], mixup=0.2),
        model=Model("hybrid", **tiny, **cosine),
        teachers={"hybrid": Teacher(stage="teacher", inputs={"image": "clean_image"})},
        terms={
            "ce": Term("arcface", "cosines", label="target", weight=weights[0], args={"scale": scale, **hard}),
            "kl": Term("kl", teacher="hybrid:logits", weight=weights[1], args={"temperature": 2.0}),
            "features": Term("mse", "features", "hybrid:features", weight=weights[2]),
        },
        optim=optim(small, 1e-3),
        epochs=epochs[2],
        grad_norms_every=0 if smoke else 6,
    )
    stages = {"supcon": supcon, "teacher": teacher, "student": student}
    return Experiment(name="image_pipeline", stages=stages, quick_compile=smoke)


def read(variant: str) -> tuple[str, str, bool, dict[str, str]]:
    """ "classes=DIR,transformer=FILE" -> the variant, its place, whether models are small, and the weights of parts."""
    first, *others = variant.split(",")
    name, _, place = first.partition("=")
    if name not in VARIANTS:
        raise ConfigError(f"configs/image_pipeline.py has no variant {name!r}; {nearest(name, VARIANTS[1:])}")
    small, weights = name in ("", "smoke", "digits"), {}
    for other in others:
        word, _, file = other.partition("=")
        if other != "small" and not (word in PARTS and file):
            words = [*(f"{part}=FILE" for part in PARTS), "small"]
            raise ConfigError(f"{other!r}: expected {', '.join(words)}; {nearest(other, words)}")
        small, weights = small or other == "small", weights | ({word: file} if file else {})
    if small and weights:
        raise ConfigError(f"{', '.join(weights)}: published weights are for ConvNeXt-V2 and Swin-V2; leave them out")
    return name, place, small, weights


def published_models(size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parts of teacher and student, and how wide their features are."""
    parts = {"convolutional": part("convnextv2", size, "tiny"), "transformer": part("swinv2", size, "tiny")}
    return {**parts, "dim": 1024}, {"convolutional": part("convnextv2", size, "atto"), "dim": 1024}


def small_models(variant: str, size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same for two cores and a few minutes."""
    wide, narrow = ([4, 8, 8], [4, 4, 8]) if variant == "smoke" else ([16, 32, 64], [8, 16, 24])
    windows = {"patch_size": 2 if size < 32 else 4, "dim": 32, "depths": [1, 1], "heads": [2, 4], "window": 4}
    parts = {
        "convolutional": part("convnet", size, "small", widths=wide, depths=[1, 1, 2]),
        "transformer": part("swinv2", size, "tiny", **windows),
    }
    return {**parts, "dim": 96}, {"convolutional": part("convnet", size, "nano", widths=narrow), "dim": 96}


def part(name: str, size: int, variant: str, **options: Any) -> dict[str, Any]:
    return {"name": name, "options": {"variant": variant, **options, "image_size": size}}


def images(
    variant: str,
    place: str,
    size: int,
    batch: int,
    coloured: bool = False,
    mixup: float = 0.0,
    copies: int = 1,
) -> Data:
    """A batch of so many images, of which each has so many rows."""
    augment = {"crop": 1.0, "rotate": 0.5, "mixup": mixup}
    if variant != "digits":  # which are grey and not to be mirrored
        colours = {"colour": 0.8, "gamma": 0.3, "contrast": 0.5}
        augment |= {"hflip": 0.5} | {name: chance * coloured for name, chance in colours.items()}
    common: dict[str, Any] = {"image_size": size, "num_classes": None, "augment": augment, "mix_alpha": 0.2}
    common |= {"batch_size": batch * copies, "copies": copies}
    match variant:
        case "digits":
            return Data("digits", labelled=0.1, **common)
        case "cifar100":
            return Data("cifar", root=place or "data/cifar-100-python", **common)
        case "tfds":
            return Data("tfds", name=place or "cifar10", **common)
        case "classes":
            return Data("classes", root=place or "data/images", **common)
    drawn = {"train": 160, "val": 40, "test": 40} if variant == "smoke" else {"train": 1600, "val": 200, "test": 800}
    return Data("beetles", labelled=0.125, size=size, **drawn, **common)


def optim(small: bool, lr: float) -> Optim:
    """`lr` is that of large models; small ones take more, and their average forgets sooner."""
    if small:
        return Optim("adamw", lr=3e-3, warmup=0.5, weight_decay=0.02, ema=0.98)
    return Optim(
        "adamw",
        lr=lr,
        schedule="onecycle",
        weight_decay=1e-4,
        clip=1.0,
        pull="sharpness",
        lookahead=5,
        centralise=True,
        ema=0.9995,
    )
