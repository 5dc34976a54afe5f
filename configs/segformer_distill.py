"""A large SegFormer distilled into a small one (B4 into B0): lesions in breast ultrasound.

    python -m kdjax.launch --config=configs/segformer_distill.py                generated images, nothing to download
    python -m kdjax.launch --config=configs/segformer_distill.py:smoke          the same, tiny
    python -m kdjax.launch --config=configs/segformer_distill.py:busi=DIR       BUSI: benign, malignant, normal
    python -m kdjax.launch --config=configs/segformer_distill.py:busi_b4=DIR    B4 as published into B0, for a GPU
    python -m kdjax.launch --config=configs/segformer_distill.py:folder=DIR     your own images, as in `sam_distill.py`

The story is that of `sam_distill.py`: few labels where it matters, many images without. The teacher of `busi_b4` starts
from `weights/segformer_b4.safetensors`, a converted checkpoint of Hugging Face's names, whatever its classes. Elsewhere
it is a B0 that is trained here on other generated scans (`pretrained`), and the student a small relative.

The default, seed 0: Dice 0.766 teacher (3.7 M parameters), 0.717 student (0.35 M), 0.644 the same without teacher. It
took 395 s of processor time, 8 min 20 s on the two cores of an AMD EPYC that others were using (load 3 to 5); smoke
45 s there. `busi_b4` has not been run.
"""

from typing import Any

from kdjax.config import ConfigError, Data, Experiment, Gate, Model, Optim, Stage, Task, Teacher, Term, nearest

VARIANTS = ("", "smoke", "busi", "busi_b4", "folder")
AUGMENT = {"hflip": 0.5, "rotate": 0.5, "zoom": 0.5, "gamma": 0.5, "contrast": 0.5}
SMALL = {"dims": (16, 32, 64, 96), "depths": (1, 1, 1, 1), "heads": (1, 2, 4, 6), "decoder_dim": 64}
TINY = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "heads": (1, 2, 3, 4), "decoder_dim": 16}


def get_config(variant: str = "") -> Experiment:
    variant, _, folder = variant.partition("=")
    if variant not in VARIANTS:
        raise ConfigError(f"configs/segformer_distill.py has no variant {variant!r}; {nearest(variant, VARIANTS[1:])}")
    smoke, own, published = variant == "smoke", variant == "folder", variant == "busi_b4"
    small_set = own or variant.startswith("busi")
    size = {"": 64, "smoke": 48, "busi": 96, "busi_b4": 512, "folder": 96}[variant]
    teacher_model, student_model = models(size, smoke, published)
    target, other = images(size, variant, folder or "data/busi")

    pretrained = Stage(
        task=supervised(0.5),
        title="SegFormer, pretraining",
        auxiliary=True,  # not run where the teacher starts from a file, or from nothing, to be done sooner
        data=other,
        model=teacher_model,
        optim=Optim("adamw", lr=1e-3, warmup=0.5, weight_decay=0.01, clip=1.0, ema=0.98),
        epochs=1 if smoke else 5,
        grad_norms_every=0,
    )
    teacher = Stage(
        task=supervised(0.5),
        title="teacher (SegFormer)",
        data=target,
        model=teacher_model,
        init="weights/segformer_b4.safetensors" if published else "" if smoke else "stage:pretrained",
        init_skip=("params/decode_head/classifier/.*",) if published or own else (),
        optim=Optim("adamw", lr=1e-4, warmup=0.5, weight_decay=0.01, clip=1.0, ema=0.98),
        epochs=1 if smoke else 20 if small_set else 3,
        gate=Gate(0.0 if smoke else 0.3 if small_set else 0.6),
        grad_norms_every=0,
        dtype="bfloat16" if published else "float32",
    )
    student = Stage(
        task=supervised(0.1),
        title="student, distilled",
        data=target,
        model=student_model,
        teachers={"large": Teacher(stage="teacher")},
        terms={
            "kl": Term("kl", teacher="large:logits", weight=1.0, args={"temperature": 2.0}),
            "feature": Term("mse", "fused", "large:fused", adapter="conv_bn_relu", weight=0.1),
        },
        optim=Optim("adamw", lr=2e-3, warmup=1.0, weight_decay=0.01, clip=1.0, ema=0.98),
        epochs=2 if smoke else 60 if small_set else 10,
        grad_norms_every=0 if smoke else 1,
    )
    stages = {"pretrained": pretrained, "teacher": teacher, "student": student}
    return Experiment(name="segformer_distill", stages=stages, quick_compile=smoke)


def supervised(weight: float) -> Task:
    """Cross-entropy and soft Dice; smooth=1 so that an image without a lesion asks for an empty mask."""
    return Task("segmentation", weight=weight, smooth=1.0, balanced=False)


def models(size: int, smoke: bool, published: bool) -> tuple[Model, Model]:
    if published:
        return (
            Model("segformer", variant="b4", image_size=size, remat=True),
            Model("segformer", variant="b0", image_size=size),
        )
    return (
        Model("segformer", variant="b0", image_size=size, **(TINY if smoke else {})),
        Model("segformer", variant="b0", image_size=size, **(TINY if smoke else SMALL)),
    )


def images(size: int, variant: str, folder: str) -> tuple[Data, Data]:
    """The images that matter, of which few are labelled, and others that the teacher comes to know images from."""
    common: dict[str, Any] = {"image_size": size, "batch_size": 8, "augment": AUGMENT}
    if variant == "smoke":
        common |= {"size": size, "train": 64, "val": 16, "test": 16}
        return Data("ultrasound", labelled=0.5, **common), Data("ultrasound", seed=1, **common)
    other = Data("ultrasound", size=size, seed=1, train=2400, val=96, test=96, **common)
    if variant == "folder":
        return Data("folder", root=folder or "data/folder", num_classes=None, bits=None, **common), other
    if variant:
        return Data("busi", root=folder, labelled=0.25, **common), other
    here = Data("ultrasound", size=size, domain="linear", train=1200, val=96, test=128, labelled=0.02, **common)
    return here, other
